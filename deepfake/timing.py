"""How fast this machine prepares and trains: real work on a few photos and on drawn faces."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from deepfake.config import SEEN, DataConfig, TrainConfig
from deepfake.data import (
    CROPS,
    PHOTO,
    Change,
    NotPrepared,
    cut_faces,
    epoch_order,
    find_photos,
    load_prepared,
    meta_path,
    normalise,
    pixels_of,
    read_annotations,
    store_path,
)
from deepfake.errors import DataError
from deepfake.models import BATCH_ROWS, FrozenBackbone, build_head, build_model
from deepfake.parallel import available_cores
from deepfake.reproducibility import full_precision
from deepfake.training import EVAL_BATCHES, Checkpoints, EpochStats, evaluate, fit
from deepfake.transforms import augmentation

TIMED_S = 3.0  # of the epoch that counts
FEWEST, MOST = 2, 400  # batches of it
CUT = 40  # photos


@dataclass(frozen=True)
class Amount:
    """How much there is to prepare and to train on, and what preparing it takes."""

    train: int  # faces
    val: int
    faces: int  # test sets, too
    crops_bytes: int
    prepare_s: float  # on all cores; 0 if it is done


@dataclass(frozen=True)
class Pace:
    """What a variant's training takes on one device, beside whatever else runs there."""

    variant: str
    face_s: float  # of an epoch, a training face; validation included
    checkpoint_s: float  # behind each epoch
    checkpoint_bytes: int
    weights_bytes: int  # what a slot's run keeps
    embed_s: float = 0.0  # a face, once for all, where the backbone is frozen
    feature_bytes: int = 0  # a face, as that gives it


def measure_data(data: DataConfig, sides: Sequence[int]) -> Amount:
    """From what prepare left; before it, from the JSONs and the cutting of some photos.

    Raises DataError for data that prepare would refuse.
    """
    try:
        prepared = load_prepared(data)
    except NotPrepared:
        return _cut_some(data, sides)
    folder = data.work_dir / CROPS
    crops = [path for path in folder.glob("*") if path.suffix != ".tmp"]
    if not crops:  # prepare will cut them again
        return _cut_some(data, sides)
    train, val = (sum(prepared.summary.splits[split].values()) for split in SEEN)
    missing = [side for side in sides if not meta_path(store_path(data.work_dir, side)).exists()]
    return Amount(
        train=train,
        val=val,
        faces=prepared.summary.faces,
        crops_bytes=sum(crop.stat().st_size for crop in crops),
        prepare_s=_storing_s(crops[:CUT], missing) * prepared.summary.faces / available_cores(),
    )


def _cut_some(data: DataConfig, sides: Sequence[int]) -> Amount:
    annotations = read_annotations(data.jsons, data.box)
    faces, places = annotations.faces, find_photos(annotations, data).photos
    faces = faces[[isinstance(places[name], Path) for name in faces["file_name"]]]
    photos = faces.groupby(list(PHOTO)).ngroup()
    n_photos = int(photos.max()) + 1
    chosen = np.random.default_rng(data.seed).permutation(n_photos)[:CUT]
    some = faces[photos.isin(chosen)].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as name:
        crops_dir = Path(name)
        started = time.perf_counter()
        cut_faces(some, places, data, crops_dir, processes=1)
        cut_s = time.perf_counter() - started
        crops = list(crops_dir.iterdir())
        if not crops:
            raise DataError(
                f"{data.photos_dir}: none of {len(chosen)} photos gave a face; run deepfake-study"
                " prepare: it says why"
            )
        store_s = _storing_s(crops, sides)
        n_bytes = sum(crop.stat().st_size for crop in crops)
    share = len(crops) / len(some)  # the others have no usable box
    n = round(share * len(faces))
    train, val = _shares(data, faces)
    return Amount(
        train=round(train * n),
        val=round(val * n),
        faces=n,
        crops_bytes=n_bytes * n // len(crops),
        prepare_s=(cut_s * n_photos / len(chosen) + store_s * n) / available_cores(),
    )


def _shares(data: DataConfig, faces: pd.DataFrame) -> tuple[float, float]:
    """Of the faces, those of train and those of val."""
    if data.splits == "drawn":
        return data.fractions.train, data.fractions.val
    of_face = faces["source"].map(data.split_of_source)
    return float((of_face == "train").mean()), float((of_face == "val").mean())


def _storing_s(crops: Sequence[Path], sides: Sequence[int]) -> float:
    """Seconds a face, on one core."""
    if not sides:
        return 0.0
    started = time.perf_counter()
    for crop, side in itertools.product(crops, sides):
        pixels_of(crop, side)
    return (time.perf_counter() - started) / len(crops)


def time_variant(
    config: TrainConfig, device: torch.device, val_share: float, scratch_dir: Path
) -> Pace:
    """Train config's variant for some seconds, from drawn weights.

    val_share: validation faces a training face. scratch_dir: on the disk of the checkpoints;
    nothing stays in it. Raises CheckpointError if it can't be written, and what fit raises.
    """
    torch.set_num_threads(config.threads)
    whole = build_model(config, None)
    pixels: tuple[int, ...] = (config.side_px, config.side_px, 3)
    shape, embed_s, feature_bytes = pixels, 0.0, 0
    build: Callable[[], nn.Module] = partial(build_model, config, None)
    if isinstance(whole, FrozenBackbone):
        shape, build = (whole.width,), partial(build_head, config)
        feature_bytes = whole.width * 4  # float32
        embed_s = _embedding_s(whole, config, device, pixels)
    with tempfile.TemporaryDirectory(dir=scratch_dir) as name:
        writing = _Writing(Checkpoints(Path(name)))

        def epoch(batches: int, epochs: int) -> EpochStats:
            n = batches * config.batch_size
            result = fit(
                build,
                Drawn(n, shape, augmentation(config.augment)),
                Drawn(max(round(n * val_share), 1), shape),
                config.model_copy(update={"max_epochs": epochs, "stop_patience": epochs}),
                seed=0,
                device=device,
                on_epoch=lambda stats: True,
                save=writing.save,
            )
            return result.history[-1]

        batch_s = epoch(FEWEST, epochs=1).seconds / FEWEST  # first-time work and all: too long
        batches = min(max(round(TIMED_S / batch_s), FEWEST), MOST)
        timed = epoch(batches, epochs=2)  # the second
    return Pace(
        variant=config.variant,
        face_s=timed.seconds / (batches * config.batch_size),
        checkpoint_s=statistics.median(writing.seconds),
        checkpoint_bytes=writing.n_bytes,
        weights_bytes=sum(value.nbytes for value in whole.state_dict().values()),
        embed_s=embed_s,
        feature_bytes=feature_bytes,
    )


def _embedding_s(
    whole: nn.Module, config: TrainConfig, device: torch.device, pixels: tuple[int, ...]
) -> float:
    """Seconds a face; fp32 in batches of BATCH_ROWS, as features are computed."""
    as_embedded = {"precision": "fp32", "batch_size": BATCH_ROWS // EVAL_BATCHES}
    once = config.model_copy(update=as_embedded)
    for faces in (BATCH_ROWS, 2 * BATCH_ROWS):  # the first pass pays first-time work
        started = time.perf_counter()
        with full_precision():
            evaluate(whole.to(device), Drawn(faces, pixels), once, device)
        seconds = time.perf_counter() - started
    return seconds / faces


@dataclass(frozen=True)
class Drawn:
    """n faces of noise, as a split of the store or of the features gives them."""

    n: int
    shape: tuple[int, ...]
    change: Change | None = None

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.n) % 2

    def __len__(self) -> int:
        return self.n

    def batches(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As Faces.batches for (side, side, 3), as Features.batches for (1280,)."""
        is_image = len(self.shape) == 3
        drawn = torch.randint(0, 256, (batch_size, *self.shape), dtype=torch.uint8)
        for numbers in torch.split(epoch_order(self.n, generator), batch_size):
            batch = drawn[: len(numbers)].to(device)
            if self.change is not None:
                batch = self.change(batch, numbers, generator)
            yield normalise(batch) if is_image else batch / 255, self.labels[numbers].to(device)


@dataclass
class _Writing:
    """Checkpoints as they are written, and what each took."""

    checkpoints: Checkpoints
    seconds: list[float] = field(default_factory=list)
    n_bytes: int = 0

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        started = time.perf_counter()
        self.checkpoints.save(epoch, state)
        self.seconds.append(time.perf_counter() - started)
        self.n_bytes = max(path.stat().st_size for path in self.checkpoints.folder.iterdir())
