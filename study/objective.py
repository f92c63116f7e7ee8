"""One trial, on one screen."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from optuna.exceptions import UpdateFinishedTrialError
from torch import Tensor

from deepfake.config import Split, TrainConfig
from deepfake.fit import EpochStats, FitResult, fit
from deepfake.models import build_model, load_weights
from deepfake.prepare import Prepared
from deepfake.seeds import derive_seed
from deepfake.store import Faces, ensure_store
from study.config import StudyConfig
from study.records import State
from study.slots import Slot, SlotLost
from study.space import suggest
from study.tracking import Tracker


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
class Outcome:
    """How a trial ended."""

    state: State
    val_loss: float | None  # of the best epoch
    reason: str | None = None
    spent: Path | None = None  # the checkpoint, once nothing needs it any more


def run_trial(
    slot: Slot,
    config: StudyConfig,
    inputs: Inputs,
    tracker: Tracker,
    device: torch.device,
    on_batch: Callable[[int, int], None],
) -> Outcome:
    """Train what the slot draws, from its checkpoint if it has one. Does not tell the study.

    The checkpoint is removed by whoever told the study: until then the slot may be run again.

    Raises SlotLost if the slot was given to another worker meanwhile, and whatever on_batch does.
    """
    train = config.train_config(suggest(slot.trial, config.space), fixed=slot.fixed)
    run = tracker.open_run(slot, train, tags(inputs, train, device))
    slot.trial.set_user_attr("run_id", run.run_id)
    val = inputs.faces("val", train.side_px)
    checkpoint = config.checkpoints_dir / tracker.study_id / f"slot_{slot.number:03d}.pt"

    def on_epoch(stats: EpochStats) -> bool:
        report(slot, stats)
        run.log_epoch(stats)
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
        checkpoint=checkpoint,
    )
    run.log_result(result, val.labels)
    outcome = judge(slot, result)
    run.end(outcome.state, outcome.reason)
    # what MLflow refused stands in the checkpoint alone
    return replace(outcome, spent=checkpoint) if run.whole else outcome


def report(slot: Slot, stats: EpochStats) -> None:
    """Hand the epoch's loss to the study, once."""
    known = slot.trial.storage.get_trial(slot.trial._trial_id).intermediate_values
    if stats.epoch in known:
        return
    try:
        slot.trial.report(stats.val_loss, stats.epoch)
    except UpdateFinishedTrialError as error:
        raise SlotLost(f"slot {slot.number}: attempt {slot.attempt} was given up") from error


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
