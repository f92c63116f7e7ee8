"""Workers started, watched until none is left, and how they ended."""

import logging
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from deepfake.errors import UserError
from study.launchers.base import Environment, Launcher, WorkerCommand, Workers
from study.launchers.monitor import Lookout, View
from study.signals import StopSignal
from study.slots import SlotRecord, Slots, is_stopped
from study.tracking import Spool

log = logging.getLogger(__name__)

STOPPING = (
    "stopping: the epochs under way are dropped; Ctrl-C again stops at once; the study can be "
    "continued after both"
)
LINGER_S = 60.0  # for workers to end on their own when nothing is left to run


def watch(workers: Workers, stop: StopSignal, lookout: Lookout) -> None:
    """Until no worker is left. Signals are passed on, each once.

    Workers that still run LINGER_S behind the last slot's end are asked to end: what they wait for
    no longer matters.
    """
    passed_on, deadline = 0, math.inf
    without_a_signal = False
    with lookout.looking():
        while workers.poll():
            if not lookout.finished:  # or no longer: it was given more slots
                deadline = math.inf
            elif deadline == math.inf:
                workers.drop_waiting()
                deadline = time.monotonic() + LINGER_S
            if time.monotonic() > deadline:
                workers.end(signal.SIGTERM)
                deadline = time.monotonic() + LINGER_S
            # a parent that went away asks without a signal, as a time that is over does
            without_a_signal |= stop.asked() and stop.count == 0
            while passed_on < stop.count + int(without_a_signal):
                passed_on += 1
                if passed_on == 1:
                    log.warning(STOPPING)
                workers.end(stop.number or signal.SIGTERM)


def outlives_its_parent() -> bool:
    """Whether this process was started to go on when its parent is gone: by nohup or setsid."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN or os.getsid(0) == os.getpid()


@dataclass(frozen=True)
class Ended:
    """How the workers of a `run` ended."""

    records: list[SlotRecord]
    signal: int | None = None  # that stopped them
    halted: str | None = None  # how a user had them end without one
    worst: int = 0  # exit code of a worker
    last_words: str = ""  # of one that ended so
    undelivered: int = 0  # entries that wait for MLflow

    @property
    def finished(self) -> bool:
        return all(record.finished for record in self.records)


def run_workers(
    slots: Slots,
    launcher: Launcher,
    command: WorkerCommand,
    environment: Environment,
    view: View,
) -> Ended:
    """Start workers and wait until all have ended; with --detach only start them.

    Raises StorageError if the study database is away in the end, and whatever a launcher can't do.
    """
    before, placement = slots.records(), launcher.placement
    if all(record.finished for record in before):
        return Ended(before)
    stop = StopSignal(second_exits=False)
    stop.listen()
    if placement.timeout_s is not None:
        stop.end_after(placement.timeout_s)
    if not outlives_its_parent():
        stop.follow_parent(os.getppid())
    lookout = Lookout(slots, view.update)
    workers = launcher.start(command, slots.config, environment, lookout.free)
    if placement.detach:
        return Ended(before)
    stop.listen()  # again: Ray took SIGTERM
    with view(before):
        watch(workers, stop, lookout)
    stop.unlisten()
    with slots.impatient():
        records = slots.records()
        halted = "stopped by --timeout" if stop.timed_out else None
        if not stop.asked() and is_stopped(slots):
            halted = "stopped by `stop`"
        undelivered = Spool.of(slots.config, slots.study_id).pending()
    if undelivered and not stop.asked() and all(record.finished for record in records):
        from study.tracking import sync  # with all of MLflow

        with suppress(UserError):  # what a worker had no time for; `sync` can be called again
            undelivered = sync(slots.config).waiting
    last_words = workers.last_words() if workers.worst else ""
    signalled = None if stop.timed_out else stop.number
    return Ended(records, signalled, halted, workers.worst, last_words, undelivered)
