"""What all trials of a worker read, and what one of them trains."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from deepfake.config import Split, TrainConfig, VariantName
from deepfake.data import Faces, Prepared, ensure_store
from deepfake.models import (
    DRAWN,
    Backbone,
    Features,
    Pretrained,
    build_head,
    build_model,
    ensure_features,
    frozen_backbone,
    load_pretrained,
    robust_features,
    whole_state,
)
from deepfake.parallel import Progress
from deepfake.training import Feed
from deepfake.transforms import augmented, robust_faces
from deepfake.variants import VARIANTS
from study.config import StudyConfig
from study.tracking import Dataset, dataset


@dataclass
class Inputs:
    """What all trials of a worker read: faces of train and val, and the pretrained weights."""

    prepared: Prepared
    pretrained: Mapping[str, Pretrained]  # by network
    under_corruptions: bool = False  # whether validation faces are read so, too
    _faces: dict[tuple[Split, int], Faces] = field(default_factory=dict)
    _backbones: dict[VariantName, Backbone] = field(default_factory=dict)  # frozen ones

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        prepared: Prepared,
        pretrained: Mapping[str, Pretrained] | None = None,
    ) -> "Inputs":
        """pretrained: what load_pretrained returned; without it, it is called here.

        Builds the stores that a search lacks. Those of a study beside it are built when they are
        first read, for its slots may need only one of them. Raises ConfigError or DataError.
        """
        if pretrained is None:
            pretrained = load_pretrained(config.train.weights, config.space.variant)
        for side in config.sides_px if config.kind == "search" else ():
            ensure_store(prepared.work_dir, side, prepared.crops_sha256)
        return cls(prepared, pretrained, config.study.robust)

    def begins_from(self, variant: VariantName) -> Pretrained:
        entry = VARIANTS[variant]
        return self.pretrained[entry.network] if entry.pretrained else DRAWN

    @property
    def weights_sha256(self) -> str:
        """Of all that the study's variants begin from."""
        each = [pretrained.sha256 for pretrained in self.pretrained.values()]
        return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()

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
        return robust_faces(self.faces("val", side)) if self.under_corruptions else None

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
        weights = self.begins_from(train.variant).state
        if not VARIANTS[train.variant].frozen:
            fit_on = augmented(fit_on, train.augment)
            return Material(fit_on, held_out, robust, lambda: build_model(train, weights))
        if train.variant not in self._backbones:
            self._backbones[train.variant] = frozen_backbone(train.variant, weights)
        backbone = self._backbones[train.variant]
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
