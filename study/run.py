"""One `run`: its workers started, watched, and how they ended."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from study.launch import Lookout, outlives_its_parent, watch
from study.place import Placement
from study.records import SlotRecord
from study.slots import Slots
from study.spool import Spool
from study.worker import StopSignal


class View(Protocol):
    """What shows the study while it runs."""

    def __call__(self, finished_before: Sequence[SlotRecord], /) -> AbstractContextManager[object]:
        """Show it while the block runs."""

    def update(self, records: Sequence[SlotRecord]) -> None:
        """The slots as they are now."""


@dataclass(frozen=True)
class Ended:
    """How the workers of a `run` ended."""

    records: list[SlotRecord]
    signal: int | None = None  # that stopped them
    worst: int = 0  # exit code of a worker
    last_words: str = ""  # of one that ended so
    undelivered: int = 0  # entries that wait for MLflow

    @property
    def finished(self) -> bool:
        return all(record.finished for record in self.records)


def run_workers(
    slots: Slots,
    placement: Placement,
    arguments: tuple[str, ...],
    environment: Callable[[], dict[str, str]],
    view: View,
) -> Ended:
    """Start workers and wait until all have ended; with --detach only start them.

    arguments, environment: of a worker, see Placement.place. Raises StorageError if the study
    database is away in the end, and whatever a launcher can't do.
    """
    before = slots.records()
    if all(record.finished for record in before):
        return Ended(before)
    stop = StopSignal(second_exits=False)
    stop.listen()
    if not outlives_its_parent():
        stop.follow_parent(os.getppid())
    lookout = Lookout(slots, view.update)
    workers = placement.place(slots.config, arguments, environment, lookout.free)
    if placement.detach:
        return Ended(before)
    stop.listen()  # again: Ray took SIGTERM
    with view(before):
        watch(workers, stop, lookout)
    with slots.impatient():
        records = slots.records()
    return Ended(
        records,
        stop.number,
        workers.worst,
        workers.last_words() if workers.worst else "",
        Spool.of(slots.config, slots.study_id).pending(),
    )
