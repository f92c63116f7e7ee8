"""A claimed slot, the lease that keeps it ours, and which silent workers are gone."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from deepfake.reproducibility import derive_seed
from study.slots.training import Training
from study.storage import StorageError

if TYPE_CHECKING:
    from study.slots.slots import Slots  # which takes Slot and Silence from here

log = logging.getLogger(__name__)

_FINAL = 2**32 + 1  # no slot's number


class SlotLost(Exception):
    """The slot was given to another worker, or finished by one: write nothing more for it."""


@dataclass(frozen=True)
class Slot:
    """A slot that this worker has claimed."""

    number: int
    attempt: int  # from 0; a killed, freed or failed attempt adds one
    baseline: str | None  # the name of the report's model whose parameters are fixed here
    trial: Trial
    rerun: Training | None = None  # what it trains again, where slots are given

    @property
    def fixed(self) -> bool:
        """Its parameters were given: it is never pruned."""
        return self.baseline is not None or self.rerun is not None

    def training_seed(self, study_seed: int) -> int:
        """A finalist's differs from its slot's in the search, and from its other seeds'."""
        if self.rerun is None:
            return derive_seed(study_seed, self.number)
        return derive_seed(study_seed, _FINAL, self.rerun.slot, self.rerun.seed)


@contextmanager
def lost_if_finished(slot: Slot) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise lost(slot) from error


def lost(slot: Slot) -> SlotLost:
    return SlotLost(
        f"slot {slot.number}: attempt {slot.attempt} was given up; another worker has it"
    )


class Lease:
    """Held by one worker on one slot; a thread of its own beats for it."""

    def __init__(self, slots: "Slots", slot: Slot, on_stall: Callable[[], None]) -> None:
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


class Silence:
    """Tells a dead worker's lease from one that ran out while nobody could beat.

    Behind an outage of the database every lease has run out. A live worker beats as soon as the
    database is back, so a lease counts as given up only if it stayed silent for some time in
    which this process was in contact.
    """

    def __init__(self, confirm_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.confirm_s = confirm_s
        self._clock = clock
        self._lock = threading.Lock()  # a worker and the keeper of its lease both look
        self._since: dict[int, float] = {}  # first look that found the lease stale
        self._last_look = clock()
        self._outages = 0

    def confirmed(self, stale: Collection[int], outages: int) -> list[int]:
        """Those of the stale trials that are beyond doubt.

        outages: how many calls have failed so far; a change means that contact was lost.
        """
        with self._lock:
            now = self._clock()
            out_of_contact = outages != self._outages or now - self._last_look > 2 * self.confirm_s
            if out_of_contact:  # the database was away, or this process was frozen
                self._since.clear()
            self._last_look, self._outages = now, outages
            self._since = {trial: self._since.get(trial, now) for trial in stale}
            return [trial for trial, since in self._since.items() if now - since >= self.confirm_s]
