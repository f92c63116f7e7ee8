"""The lease of a claimed slot: kept while its trial makes progress, asked about before a write."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from study.claimed import Slot, SlotLost
from study.slots import Slots
from study.storage import StorageError

log = logging.getLogger(__name__)


class Lease:
    """Held by one worker on one slot; a thread of its own beats for it."""

    def __init__(self, slots: Slots, slot: Slot, on_stall: Callable[[], None]) -> None:
        self._slots = slots
        self._slot = slot
        self._search = slots.config.study
        self._on_stall = on_stall
        self._done = threading.Event()
        self._lost: SlotLost | None = None
        # monotonic, and taken before the beat: by the database's clock the lease ends later
        self._beat_at = time.monotonic()
        self._idle_s = 0.0  # since the last progress, as far as this process ran

    def progress(self) -> None:
        """Say that the trial moves on. Raises SlotLost if the slot is another worker's by now."""
        self._idle_s = 0.0
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """Be sure, before something is written, that the slot is still ours; else SlotLost.

        A worker that was frozen, or cut off for longer than its lease, asks the database first.
        """
        self.progress()
        if time.monotonic() - self._beat_at >= self._search.lease_s:
            self._beat()

    def _beat(self) -> None:
        now = time.monotonic()
        self._slots.beat(self._slot)
        self._beat_at = now

    def _keep(self) -> None:
        waiting_since = time.monotonic()
        while not self._done.wait(self._search.heartbeat_s):
            # a process that was frozen (Ctrl-Z) has not stalled, nor has one whose beat waits for
            # a database that is away
            waited_s = time.monotonic() - waiting_since
            self._idle_s += min(waited_s, 2 * self._search.heartbeat_s)
            try:
                self._beat()
                self._slots.repair()  # of others: else a lost slot waits for an idle worker
            except SlotLost as lost:
                self._lost = lost
                return
            except StorageError as error:  # the lease may run out, and the trial will be told
                log.warning("slot %d: no heartbeat: %s", self._slot.number, error)
            except Exception:  # the watchdog below must outlive whatever a beat meets
                log.exception("slot %d: no heartbeat", self._slot.number)
            if self._idle_s > self._search.stall_s:
                self._on_stall()
                return
            waiting_since = time.monotonic()

    @contextmanager
    def held(self) -> Iterator["Lease"]:
        thread = threading.Thread(
            target=self._keep, name=f"lease-{self._slot.number}", daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            # a beat that waits for a database that is away must not hold the worker up
            thread.join(timeout=1.0)
