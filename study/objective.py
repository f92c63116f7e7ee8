"""One trial, on one screen."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepfake.checkpoint import Checkpoints
from deepfake.config import Split, TrainConfig
from deepfake.fit import EpochStats, FitResult, fit
from deepfake.models import build_model, load_weights
from deepfake.prepare import Prepared
from deepfake.seeds import derive_seed
from deepfake.store import Faces, ensure_store
from study.config import StudyConfig, public_yaml
from study.lease import Lease
from study.records import State
from study.slots import Slot, Slots
from study.space import suggest
from study.spool import SlotRun, run_name

log = logging.getLogger(__name__)


@dataclass
class Inputs:
    """What all trials of a worker read: faces of train and val, and the pretrained weights."""

    prepared: Prepared
    weights: dict[str, Tensor] | None
    weights_sha256: str
    _faces: dict[tuple[Split, int], Faces] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        prepared: Prepared,
        pretrained: tuple[dict[str, Tensor] | None, str] | None = None,
    ) -> "Inputs":
        """pretrained: what load_weights gave, if it ran. Builds a store that is missing.

        Raises ConfigError or DataError.
        """
        weights, weights_sha256 = pretrained or load_weights(config.train.weights)
        for side in config.sides_px:
            ensure_store(prepared.work_dir, side, prepared.crops_sha256)
        return cls(prepared, weights, weights_sha256)

    def faces(self, split: Split, side: int) -> Faces:
        if (split, side) not in self._faces:
            self._faces[split, side] = Faces.load(self.prepared.work_dir, split, side)
        return self._faces[split, side]


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
    val_loss: float | None  # of the best epoch
    reason: str | None = None


def run_trial(
    attempt: Attempt, inputs: Inputs, device: torch.device, check_stop: Callable[[], None]
) -> Outcome:
    """Train what the slot draws, from its checkpoint if it has one. Does not tell the study.

    Raises SlotLost if the slot was given to another worker meanwhile, and what check_stop does.
    """
    slot, config = attempt.slot, attempt.config
    train = config.train_config(suggest(slot.trial, config.space), fixed=slot.fixed)
    begin_run(attempt, train, tags(inputs, train, device))
    val = inputs.faces("val", train.side_px)
    resume = resumed(attempt)
    epochs_before = len(resume["history"]) if resume else 0

    def on_batch(done: int, total: int) -> None:
        check_stop()
        attempt.lease.progress()

    def save(epoch: int, state: dict[str, Any]) -> None:
        attempt.lease.confirm()
        attempt.checkpoints.save(epoch, state)

    def on_epoch(stats: EpochStats) -> bool:
        attempt.slots.report(slot, stats.epoch, stats.val_loss)
        attempt.run.log_epoch(stats)
        if stats.epoch >= epochs_before:
            where = f"slot {slot.number} attempt {slot.attempt} epoch {stats.epoch}"
            log.info("%s val_loss %.4f", where, stats.val_loss)
        plateaued = stats.plateaued(config.study.prune_patience)
        return slot.fixed or not (plateaued and slot.trial.should_prune())

    result = fit(
        lambda: build_model(train, inputs.weights),
        inputs.faces("train", train.side_px),
        val,
        train,
        seed=derive_seed(config.study.seed, slot.number),
        device=device,
        on_epoch=on_epoch,
        on_batch=on_batch,
        resume=resume,
        save=save,
    )
    attempt.lease.confirm()
    attempt.run.log_result(result, val.labels)
    return judge(slot, result)


def begin_run(attempt: Attempt, train: TrainConfig, tags: Mapping[str, str]) -> None:
    """What a slot's MLflow run says from its start."""
    slot = attempt.slot
    settings = train.model_dump(mode="json", exclude={"image_size"})
    attempt.run.start(
        name=run_name(slot.number, slot.baseline, train),
        params={**settings, "image_size": train.side_px},
        tags={**tags, "variant": train.variant, "baseline": slot.baseline or ""},
        files={"config.yaml": public_yaml(attempt.config)},
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
    best = result.best.val_loss if result.best else None
    epochs = len(result.history)
    match result.ended:
        case "max_epochs" | "early_stop":
            return Outcome("complete", best)
        case "on_epoch":
            reason = f"behind the median of its variant's peers after {epochs} epochs"
            return Outcome("pruned", best, reason)
        case "diverged":
            reason = f"the loss was not finite behind {epochs} finite epochs"
            return Outcome("failed" if slot.fixed else "pruned", best, reason)
        case _:
            raise AssertionError(result.ended)


def tags(inputs: Inputs, train: TrainConfig, device: torch.device) -> dict[str, str]:
    """What a run was made from, and on: to find it, and to prove its figures later."""
    return {
        "splits_sha256": inputs.prepared.splits_sha256,
        "crops_sha256": inputs.prepared.crops_sha256,
        "pretrained_sha256": inputs.weights_sha256 if train.variant != "cnn" else "",
        "dataset": ", ".join(sorted(inputs.faces("val", train.side_px).table["source"].unique())),
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
