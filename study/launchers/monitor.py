"""Looks at the study while its workers run; a database that hangs holds up the look alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from study.slots import SlotRecord, Slots, is_stopped
from study.storage import StorageError

LOOK_S = 0.5
AWAY_S = 5.0  # between two looks at a study database that is away


class View(Protocol):
    """What shows the study while it runs."""

    def __call__(self, finished_before: Sequence[SlotRecord], /) -> AbstractContextManager[object]:
        """Show it while the block runs."""

    def update(self, records: Sequence[SlotRecord]) -> None:
        """The slots as they are now."""


class Lookout:
    """Shows the study while workers run, and frees the slots of those that ended."""

    def __init__(self, slots: Slots, show: Callable[[Sequence[SlotRecord]], None]) -> None:
        self.finished = False  # all slots, at the last look
        self.running = True  # any slot
        self._slots = slots
        self._show = show
        self._ended: list[tuple[str, str | None]] = []
        self._not_before = 0.0
        self._done = threading.Event()

    def free(self, worker: str, reason: str | None) -> None:
        """See Slots.free_worker."""
        self._ended.append((worker, reason))

    def look(self) -> None:
        """With the database away: nothing, and another time."""
        if time.monotonic() < self._not_before:
            return
        try:
            with self._slots.impatient():
                while self._ended:
                    self._slots.free_worker(*self._ended[0])
                    self._ended.pop(0)
                records = self._slots.records()
        except StorageError:
            self._not_before = time.monotonic() + AWAY_S
            return
        self.finished = all(record.finished for record in records)
        self.running = any(record.state == "running" for record in records)
        self._show(records)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Looks in a thread while the block runs, and once more behind it."""

        def work() -> None:
            while not self._done.wait(LOOK_S):
                self.look()
            self.look()

        thread = threading.Thread(target=work, name="lookout", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join(AWAY_S)


def follow(slots: Slots, view: View, interval_s: float) -> None:
    """Show a study that others run, until no slot is left or none runs for `stop` ended it."""
    lookout = Lookout(slots, view.update)
    with view(slots.records()):
        lookout.look()
        while not (lookout.finished or (not lookout.running and is_stopped(slots))):
            time.sleep(interval_s)
            lookout.look()
