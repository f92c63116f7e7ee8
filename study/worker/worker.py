"""Claim a slot, run it, next; what a failure means."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from deepfake.data import NotPrepared, Prepared, load_prepared
from deepfake.errors import UserError, first_sentence, one_line, out_of_memory
from deepfake.training import check_writable
from study.config import StudyConfig
from study.signals import Stopped, StopSignal, exit_within
from study.slots import (
    Lease,
    NoStudy,
    Slot,
    SlotLost,
    SlotRecord,
    Slots,
    check_stopped,
    create_or_join,
    join,
)
from study.storage import OUTAGE_S, NoDatabase, StorageAway
from study.tracking import Delivery, Machine, SlotRun, Spool, SpoolError
from study.worker.inputs import Inputs
from study.worker.objective import Attempt, Outcome, run_trial
from study.worker.setup import checkpoints_of, set_up, study_fingerprint, worker_name

log = logging.getLogger(__name__)

POLL_S = 1.0  # between two looks for a slot that has come back, at least
MAX_POLL_S = 5.0
STALLED = 70  # exit code of a worker whose trial hung: a death, so that another takes its place


class TooManyFailed(Exception):
    """More slots than study.max_failed have failed."""


def work(config: StudyConfig, device: torch.device, stop: StopSignal) -> list[SlotRecord]:
    """Run slots of the study until none is left anywhere; the records of all of them.

    Creates a search if it is not there and waits for its data if they are not prepared; a study
    of another kind raises NoStudy then, for its slots are another command's to give. Raises
    Stopped after a signal, StudyStopped after `stop`, its slot freed for others, and
    TooManyFailed.
    """
    set_up(config, device)
    check_writable(config.checkpoints_dir)
    if config.kind != "search":
        _check_begun(config)
    prepared = _wait_for_data(config, stop)
    inputs = Inputs.load(config, prepared)
    own = study_fingerprint(config, inputs)
    slots = create_or_join(config, own, patient=True, hurried=stop.asked)
    worker, every_s = worker_name(os.getpid()), config.tracking.system_metrics_s
    spool = Spool.of(config, slots.study_id)
    with Delivery(config, slots, spool) as delivery, Machine(every_s) as machine:
        while True:
            stop.check()
            looked = time.monotonic()
            records = slots.repair()
            _stop_if_hopeless(config, records)
            if all(record.finished for record in records):
                for record in records:  # of workers that were killed behind their result
                    checkpoints_of(slots, record.number).remove()
                delivery.study_ended()
                return records
            check_stopped(slots)
            waiting = any(record.state == "waiting" for record in records)
            slot = slots.claim(worker) if waiting else None
            if slot is None:  # a running one may still come back
                _pause(time.monotonic() - looked, stop)
                continue
            _run_slot(slot, slots, partial(spool.run, machine=machine), inputs, device, stop)


def _check_begun(config: StudyConfig) -> None:
    """Raises NoStudy where there is none to train: an empty study would be over at once."""
    try:
        there = bool(join(config).records())
    except (NoDatabase, NoStudy):
        there = False
    if not there:
        raise NoStudy(f"no study '{config.name}' with slots yet")


def _pause(look_s: float, stop: StopSignal) -> None:
    """Between two looks at the study, of which the last took look_s: a tenth of the time, if more.

    A look at 1,000 slots takes some tenths of a second, of the database's time too.
    """
    until = time.monotonic() + min(max(POLL_S, 9 * look_s), MAX_POLL_S)
    while (left := until - time.monotonic()) > 0:
        stop.check()
        time.sleep(min(left, POLL_S))


def _run_slot(
    slot: Slot,
    slots: Slots,
    record: Callable[[int, int], SlotRun],
    inputs: Inputs,
    device: torch.device,
    stop: StopSignal,
) -> None:
    try:
        run = record(slot.number, slot.attempt)
    except SpoolError as error:
        slots.free(slot, str(error))
        raise
    lease = Lease(slots, slot, lambda: _end_stalled(slot, slots, run))
    checkpoints = checkpoints_of(slots, slot.number, slot.attempt)
    attempt = Attempt(slot, lease, checkpoints, slots, run)
    try:
        with lease.held(), _settled(attempt, device):
            outcome = run_trial(attempt, inputs, device, stop.check)
            _tell(slots, slot, outcome)
            run.end(outcome.state, outcome.reason)
            attempt.checkpoints.remove()  # the spool has the weights
            ended = f"slot {slot.number} {outcome.state}"
            log.info("%s, %s %s", ended, slots.config.study.objective, outcome.value)
    except SlotLost as lost:
        log.warning("%s; going on with the next", lost)
    # here, not where a failure is handled: its traceback still holds what was on the device
    torch.cuda.empty_cache()


def _tell(slots: Slots, slot: Slot, outcome: Outcome) -> None:
    match outcome.state:
        case "complete":
            assert outcome.value is not None
            slots.complete(slot, outcome.value)
        case "pruned":
            slots.prune(slot, outcome.reason or "")
        case _:
            slots.fail(slot, outcome.reason or "", retry=False)


@contextmanager
def _settled(attempt: Attempt, device: torch.device) -> Iterator[None]:
    """Whatever ends the block, the slot is left for another worker or another attempt."""
    slot, slots = attempt.slot, attempt.slots
    try:
        yield
    except (SlotLost, StorageAway):
        raise  # the one is another's, the other comes back with its lease
    except Stopped as told:
        try:
            slots.free(slot, str(told) or "stopped by a signal")
        except StorageAway as away:
            log.warning("slot %d comes back with its lease: %s", slot.number, away)
        else:
            attempt.run.end("waiting", None)
            log.info("slot %d is free again: this worker was told to stop", slot.number)
        raise
    except (UserError, OSError) as error:  # this machine can't go on; another may
        reason = one_line(error)
        slots.free(slot, reason)
        raise UserError(f"slot {slot.number} is left to other workers: {reason}") from error
    except Exception as error:  # whatever a trial raises costs its slot an attempt, not the study
        reason = _reason(error, slots.config, device)
        log.error("slot %d failed: %s", slot.number, reason, exc_info=not out_of_memory(error))
        slots.fail(slot, reason, retry=True)  # memory too: another process may have had it
        attempt.run.fail(reason, traceback.format_exc())


def _reason(error: Exception, config: StudyConfig, device: torch.device) -> str:
    if not out_of_memory(error):
        return f"{type(error).__name__}: {one_line(error)}"
    batch = config.train.batch_size
    return (
        f"out of memory on {device} ({first_sentence(error)}) with train.batch_size {batch}: "
        "give it fewer workers, or begin a study with smaller batches: "
        f"--set train.batch_size={max(1, batch // 2)} --new"
    )


def _end_stalled(slot: Slot, slots: Slots, run: SlotRun) -> None:
    """From the lease's thread: the trial's own can't be interrupted, so the process ends."""
    reason = f"no progress for {slots.config.study.stall_s} s (study.stall_s)"
    exit_within(OUTAGE_S, STALLED)
    log.error("slot %d: %s", slot.number, reason)
    main = sys._current_frames()[threading.main_thread().ident or 0]
    try:
        slots.fail(slot, reason, retry=True)
        run.fail(reason, "".join(traceback.format_stack(main)))
    except Exception:  # then the slot comes back with its lease
        log.exception("slot %d: its end can't be told", slot.number)
    finally:
        os._exit(STALLED)


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
