"""Claim a slot, run it, next; what a signal and what a failure mean."""

import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from optuna.exceptions import UpdateFinishedTrialError

from deepfake.checkpoint import remove_checkpoint
from deepfake.config import ConfigError, UserError
from deepfake.prepare import NotPrepared, Prepared, load_prepared
from study.config import StudyConfig, TrackingError, fingerprint
from study.objective import Inputs, run_trial
from study.records import SlotRecord
from study.slots import Slot, SlotLost, Slots, create_or_join
from study.tracking import Tracker

log = logging.getLogger(__name__)

TRACKING_PAUSE_S = 5.0
POLL_S = 1.0  # between two looks for a slot that has come back


class TooManyFailed(Exception):
    """More slots than study.max_failed have failed."""


class Stopped(Exception):
    """A signal asked for the end; the partial epoch is dropped."""


class StopSignal:
    """SIGINT and SIGTERM: the first asks for a clean end, the second ends a worker at once."""

    def __init__(self, *, second_exits: bool) -> None:
        self.number: int | None = None  # the first signal
        self.count = 0
        self._second_exits = second_exits

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def follow_parent(self, parent: int) -> None:
        """Ask for a clean end when the process that started this one is gone."""

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(POLL_S)
            self.number = self.number or signal.SIGTERM

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()

    def check(self) -> None:
        if self.number is not None:
            raise Stopped

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 and self._second_exits:
            os._exit(128 + number)  # the launcher, or the lease, frees the slot
        self.number = self.number or number


def work(config: StudyConfig, device: torch.device, stop: StopSignal) -> list[SlotRecord]:
    """Run slots of the study until none is left anywhere; the records of all of them.

    Creates the study if it is not there, waits for its data if it is not prepared. Raises
    Stopped after a signal, its slot freed for others, and TooManyFailed.
    """
    set_up(config, device)
    prepared = _wait_for_data(config, stop)
    inputs = Inputs.load(config, prepared)
    slots = create_or_join(config, study_fingerprint(config, inputs))
    tracker = Tracker(config, slots)
    worker = worker_name(os.getpid())
    while True:
        stop.check()
        slots.repair()
        records = slots.records()
        _stop_if_hopeless(config, records)
        if all(record.finished for record in records):
            tracker.end_study()
            return records
        slot = slots.claim(worker)
        if slot is None:  # a running one may still come back
            time.sleep(POLL_S)
            continue
        with slots.heartbeat(slot):
            _run_slot(slot, slots, inputs, tracker, device, stop)


def set_up(config: StudyConfig, device: torch.device) -> None:
    """Before the first operation: threads are part of what makes a curve repeatable."""
    check_precision(config, device)
    torch.set_num_threads(config.train.threads)


def check_precision(config: StudyConfig, device: torch.device) -> None:
    if config.train.precision == "bf16" and device.type != "cuda":
        raise ConfigError(f"train.precision: bf16 needs CUDA, this worker's device is {device}")


def pick_device(name: str | None) -> torch.device:
    """The device of that name; without one the first GPU, or the CPU where there is none."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} CUDA devices")
    return device


def study_fingerprint(config: StudyConfig, inputs: Inputs) -> dict[str, object]:
    return fingerprint(config, inputs.prepared, inputs.weights_sha256)


def worker_name(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"


def _run_slot(
    slot: Slot,
    slots: Slots,
    inputs: Inputs,
    tracker: Tracker,
    device: torch.device,
    stop: StopSignal,
) -> None:
    try:
        with _settled(slot, slots, tracker):
            outcome = run_trial(
                slot, slots.config, inputs, tracker, device, lambda done, total: stop.check()
            )
            match outcome.state:
                case "complete":
                    assert outcome.val_loss is not None
                    slots.complete(slot, outcome.val_loss)
                case "pruned":
                    slots.prune(slot, outcome.reason or "")
                case _:
                    slots.fail(slot, outcome.reason or "", retry=False)
            if outcome.spent is not None:
                remove_checkpoint(outcome.spent)
            log.info("slot %d %s, val_loss %s", slot.number, outcome.state, outcome.val_loss)
    except (SlotLost, UpdateFinishedTrialError) as lost:
        log.warning("slot %d is another worker's: %s; going on", slot.number, lost)


@contextmanager
def _settled(slot: Slot, slots: Slots, tracker: Tracker) -> Iterator[None]:
    """Whatever ends the block, the slot is left for another worker or another attempt."""
    try:
        yield
    except (SlotLost, UpdateFinishedTrialError):
        raise
    except TrackingError as error:  # costs the slot nothing: it waits for the store
        log.warning("slot %d waits for MLflow: %s", slot.number, error)
        slots.free(slot)
        time.sleep(TRACKING_PAUSE_S)
    except Stopped:
        slots.check(slot)  # or another worker's run would be paused
        tracker.pause_run(slot.number)
        slots.free(slot)
        raise
    except Exception as error:  # whatever a trial raises costs its slot an attempt, not the study
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        log.exception("slot %d failed", slot.number)
        slots.check(slot)
        tracker.fail_run(slot.number, reason, traceback.format_exc())
        slots.fail(slot, reason, retry=True)


def _wait_for_data(config: StudyConfig, stop: StopSignal) -> Prepared:
    said = False
    while True:
        stop.check()
        try:
            return load_prepared(config.data)
        except NotPrepared as missing:
            if not said:
                log.warning("waiting: %s", missing)
                said = True
            time.sleep(POLL_S)


def _stop_if_hopeless(config: StudyConfig, records: list[SlotRecord]) -> None:
    failed = [record for record in records if record.state == "failed"]
    if len(failed) > config.study.max_failed:
        raise TooManyFailed(
            f"study '{config.name}': {len(failed)} slots failed, more than study.max_failed "
            f"{config.study.max_failed}; the last one: {failed[-1].reason}"
        )
