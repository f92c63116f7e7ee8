"""What all trials of a worker read, and what one of them trains."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from deepfake.config import Split, TrainConfig
from deepfake.data import Faces, Prepared, ensure_store
from deepfake.models import (
    Features,
    build_head,
    build_model,
    ensure_features,
    frozen_backbone,
    load_weights,
    robust_features,
    whole_state,
)
from deepfake.parallel import Progress
from deepfake.training import Feed
from deepfake.transforms import augmented, robust_faces
from study.config import Objective, StudyConfig
from study.tracking import Dataset, dataset


@dataclass
class Inputs:
    """What all trials of a worker read: faces of train and val, and the pretrained weights."""

    prepared: Prepared
    weights: dict[str, Tensor] | None
    weights_sha256: str
    objective: Objective = "val_loss"
    _faces: dict[tuple[Split, int], Faces] = field(default_factory=dict)
    _backbone: nn.Module | None = None  # the frozen one

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        prepared: Prepared,
        pretrained: tuple[dict[str, Tensor] | None, str] | None = None,
    ) -> "Inputs":
        """pretrained: what load_weights gave, if it ran. Builds a store that is missing; where
        all slots are given only once it is read, for they may need one of several.

        Raises ConfigError or DataError.
        """
        weights, weights_sha256 = pretrained or load_weights(config.train.weights)
        for side in config.sides_px if config.kind == "search" else ():
            ensure_store(prepared.work_dir, side, prepared.crops_sha256)
        return cls(prepared, weights, weights_sha256, config.study.objective)

    def faces(self, split: Split, side: int) -> Faces:
        if (split, side) not in self._faces:
            ensure_store(self.prepared.work_dir, side, self.prepared.crops_sha256)
            self._faces[split, side] = Faces.load(self.prepared.work_dir, split, side)
        return self._faces[split, side]

    def datasets(self, side: int) -> list[Dataset]:
        """What a trial trains and is validated on."""
        splits: tuple[Split, ...] = ("train", "val")
        return [dataset(self.prepared, split, self.faces(split, side).table) for split in splits]

    def robust(self, side: int) -> Faces | None:
        """The validation faces under corruptions, where their loss is the objective."""
        return robust_faces(self.faces("val", side)) if self.objective != "val_loss" else None

    def material(
        self,
        train: TrainConfig,
        device: torch.device,
        tick: Callable[[], None],
        progress: Progress,
    ) -> "Material":
        """What a trial trains, and on what. tick, progress: called as features are computed."""
        side = train.side_px
        fit_on, held_out = self.faces("train", side), self.faces("val", side)
        robust = self.robust(side)
        if train.variant != "mobilenet_v2_frozen":
            fit_on = augmented(fit_on, train.augment)
            return Material(fit_on, held_out, robust, lambda: build_model(train, self.weights))
        backbone = self._backbone = self._backbone or frozen_backbone(self.weights)
        work_dir, where = self.prepared.work_dir, (backbone, device, tick, progress)
        path = ensure_features(work_dir, side, *where)
        return Material(
            Features.load(path, work_dir, "train", side, fit_on.labels),
            Features.load(path, work_dir, "val", side, held_out.labels),
            None if robust is None else robust_features(robust, work_dir, *where),
            build=lambda: build_head(train),
            whole=partial(whole_state, backbone),
        )


@dataclass(frozen=True)
class Material:
    """A frozen backbone's trials train their head alone, on what it gave for each face."""

    train: Feed
    val: Feed
    robust: Feed | None  # whose loss is the monitor
    build: Callable[[], nn.Module]
    whole: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state  # to be logged
