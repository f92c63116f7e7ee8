"""One trial, on one screen."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepfake.config import TrainConfig
from deepfake.training import Checkpoints, EpochStats, FitResult, fit
from deepfake.variants import VARIANTS
from study.config import StudyConfig, flattened, public_yaml
from study.search import suggest
from study.slots import (
    DIVERGED,
    LastEpoch,
    Lease,
    Slot,
    Slots,
    Stage,
    State,
    check_stopped,
    lost_if_finished,
)
from study.tracking import SlotRun, run_name, sources
from study.worker.inputs import Inputs

log = logging.getLogger(__name__)

NOTE_S = 2.0  # between two notes in the study database of how far features are


@dataclass(frozen=True)
class Attempt:
    """One try at a slot, and all that it writes to, in the order of writing."""

    slot: Slot
    lease: Lease
    checkpoints: Checkpoints
    slots: Slots
    run: SlotRun

    @property
    def config(self) -> StudyConfig:
        return self.slots.config


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    value: float | None  # the objective's, of the best epoch
    reason: str | None = None


def run_trial(
    attempt: Attempt, inputs: Inputs, device: torch.device, check_stop: Callable[[], None]
) -> Outcome:
    """Train what the slot draws, from its checkpoint if it has one. Does not tell the study.

    Raises SlotLost if the slot was given to another worker meanwhile, StudyStopped behind an epoch
    if the study was stopped, and what check_stop does.
    """
    slot, config = attempt.slot, attempt.config
    with lost_if_finished(slot):  # of a process that was frozen while it drew
        params = suggest(slot.trial, config.space)
    train = config.train_config(params, fixed=slot.baseline is not None)
    begin_run(attempt, train, inputs, device)
    resume = resumed(attempt)
    epochs_before = len(resume["history"]) if resume else 0
    epoch_ended = False  # since the last look whether the study was stopped

    def tick(done: int = 0, total: int = 0) -> None:
        nonlocal epoch_ended
        check_stop()
        attempt.lease.progress()
        if epoch_ended:  # saved and reported, and training goes on: not behind a slot's last
            epoch_ended = False
            check_stopped(attempt.slots)

    def save(epoch: int, state: dict[str, Any]) -> None:
        attempt.lease.confirm()
        attempt.checkpoints.save(epoch, state)

    def on_epoch(stats: EpochStats) -> bool:
        nonlocal epoch_ended
        beside = LastEpoch(stats.train_loss, stats.images_per_s)
        attempt.slots.report(slot, stats.epoch, stats.monitor, beside)
        attempt.run.log_epoch(stats)
        if stats.epoch >= epochs_before:
            epoch_ended = True
            where = f"slot {slot.number} attempt {slot.attempt} epoch {stats.epoch}"
            log.info("%s %s %.4f", where, config.study.objective, stats.monitor)
        plateaued = stats.plateaued(config.study.prune_patience)
        return slot.fixed or not (plateaued and slot.trial.should_prune())

    material = inputs.material(train, device, tick, _Embedding(attempt))
    result = fit(
        material.build,
        material.train,
        material.val,
        train,
        seed=slot.training_seed(config.study.seed),
        device=device,
        on_epoch=on_epoch,
        robust=material.robust,
        on_batch=tick,
        resume=resume,
        save=save,
    )
    attempt.lease.confirm()
    if result.best_state is not None:
        result = replace(result, best_state=material.whole(result.best_state))
    attempt.run.log_result(result, material.val.labels)
    attempt.run.check_there()
    return judge(slot, result)


class _Embedding:
    """Says in the log and to those who watch the study how far features are."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._first: tuple[str, int, float] | None = None  # stage, done, at
        self._noted = -math.inf

    def __call__(self, stage: str, done: int, total: int) -> None:
        log.info("%s: %d of %d", stage, done, total)
        now, left = time.monotonic(), None
        if self._first is None or self._first[0] != stage or done <= self._first[1]:
            self._first = (stage, done, now)
        else:  # the first chunk was warming up, or another's
            left = (now - self._first[2]) * (total - done) / (done - self._first[1])
        if now - self._noted > NOTE_S or done == total:
            self._noted = now
            self._attempt.slots.note_stage(self._attempt.slot, Stage(done, total, left))


def begin_run(attempt: Attempt, train: TrainConfig, inputs: Inputs, device: torch.device) -> None:
    """What a slot's MLflow run says from its start."""
    slot = attempt.slot
    augment = ""
    if attempt.config.augment and slot.baseline is None and VARIANTS[train.variant].frozen:
        augment = "not done: a frozen backbone sees each face once"
        log.info("slot %d: augment is %s", slot.number, augment)
    settings = train.model_dump(mode="json", exclude={"image_size"})
    name, of_search = run_name(slot.number, slot.baseline, train), {}
    if (rerun := slot.rerun) is not None:
        name = f"{rerun.model} seed {rerun.seed}"
        of_search = {"search_slot": str(rerun.slot), "seed": str(rerun.seed)}
    attempt.run.start(
        name=name,
        params={**dict(flattened(settings)), "image_size": train.side_px},
        tags={
            **tags(inputs, train, device),
            "variant": train.variant,
            "baseline": slot.baseline or "",
            "augment": augment,
            **of_search,
        },
        files={"config.yaml": public_yaml(attempt.config)},
        datasets=inputs.datasets(train.side_px),
    )


def resumed(attempt: Attempt) -> dict[str, Any] | None:
    """The state that training continues from; what was lost of it is said."""
    slot, files = attempt.slot, attempt.checkpoints
    state = files.load()
    if slot.attempt == 0:
        return state
    epochs = len(state["history"]) if state else 0
    reported = len(attempt.slots.losses(slot))
    log.info("slot %d attempt %d resumes behind %d epochs", slot.number, slot.attempt, epochs)
    said = {}
    if files.damaged:
        said["damaged_checkpoints"] = ", ".join(files.damaged)
    if epochs < reported:
        log.warning("slot %d: checkpoints of %d epochs are gone", slot.number, reported - epochs)
        said["epochs_trained_again"] = str(reported - epochs)
    attempt.run.set_tags(said)
    return state


def judge(slot: Slot, result: FitResult) -> Outcome:
    """What the end of a training means for its slot."""
    best = result.best.monitor if result.best else None
    epochs = len(result.history)
    match result.ended:
        case "max_epochs" | "early_stop":
            return Outcome("complete", best)
        case "on_epoch":
            reason = f"behind the median of its variant's peers after {epochs} epochs"
            return Outcome("pruned", best, reason)
        case "diverged":
            reason = f"{DIVERGED} behind {epochs} finite epochs"
            return Outcome("failed" if slot.fixed else "pruned", best, reason)
        case _:
            raise AssertionError(result.ended)


def tags(inputs: Inputs, train: TrainConfig, device: torch.device) -> dict[str, str]:
    """What a run was made from, and on: to find it, and to prove its figures later."""
    return {
        "splits_sha256": inputs.prepared.splits_sha256,
        "crops_sha256": inputs.prepared.crops_sha256,
        "pretrained_sha256": (
            inputs.begins_from(train.variant).sha256 if VARIANTS[train.variant].pretrained else ""
        ),
        "dataset": sources(inputs.faces("val", train.side_px).table),
        "hardware": hardware(device),
    }


def hardware(device: torch.device) -> str:
    """Where the same training gives the same bits: device, threads, instruction set, release."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    )
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
