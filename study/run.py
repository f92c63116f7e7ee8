"""One `run`: its workers started, watched, and how they ended."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

from deepfake.checkpoint import check_writable
from deepfake.config import UserError
from deepfake.models import load_weights
from deepfake.prepare import Prepared
from study.config import StudyConfig
from study.delivery import check_tracking, sync
from study.launch import outlives_its_parent, watch
from study.lookout import Lookout
from study.objective import Inputs
from study.place import Placement
from study.records import SlotRecord
from study.slots import Slots, create_or_join
from study.spool import Spool
from study.stop import StopSignal
from study.worker import study_fingerprint


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


def begin(
    config: StudyConfig, prepare: Callable[[StudyConfig], Prepared], warn: Callable[[str], None]
) -> Slots:
    """The study of config, created or joined, with its data prepared.

    What can't work is said before data is touched: weights, checkpoints, the tracking store.
    """
    weights = load_weights(config.train.weights)
    check_writable(config.checkpoints_dir)
    if (warning := check_tracking(config)) is not None:
        warn(warning)
    inputs = Inputs.load(config, prepare(config), weights)
    return create_or_join(config, study_fingerprint(config, inputs))


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
    stop.unlisten()
    with slots.impatient():
        records = slots.records()
        undelivered = Spool.of(slots.config, slots.study_id).pending()
    if undelivered and not stop.asked() and all(record.finished for record in records):
        with suppress(UserError):  # what a worker had no time for; `sync` can be called again
            undelivered = sync(slots.config).waiting
    last_words = workers.last_words() if workers.worst else ""
    return Ended(records, stop.number, workers.worst, last_words, undelivered)
