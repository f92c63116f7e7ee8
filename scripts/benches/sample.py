"""The drawn data set: shortcuts that must not work on it, and the training that must."""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benches.table import Row
from deepfake.audit import audit
from deepfake.config import DataConfig, ImageSize, TrainConfig
from deepfake.data import Faces, prepare_data
from deepfake.metrics import measure
from deepfake.models import build_model
from deepfake.parallel import available_cores
from deepfake.sample import draw_sample
from deepfake.training import fit

PROBED_PHOTOS, TRAINED_PHOTOS, TIMED_PHOTOS = 1670, 600, 200  # 1670 photos hold 5,000 faces
SHORTCUTS = {"geometry": 0.55, "colours": 0.62, "encoding": 0.55, "surroundings": 0.55}
SEED = 0
EPOCHS = 10
CNN = TrainConfig(
    variant="cnn",
    lr=1e-3,
    weight_decay=1e-5,
    dropout=0.5,
    image_size=ImageSize(cnn=64),
    max_epochs=EPOCHS,
    stop_patience=EPOCHS,  # every epoch is run
    threads=2,
)


@dataclass(frozen=True)
class SampleFigures:
    """One seed's: seconds to draw, and validation AUCs."""

    seconds: float
    probes: dict[str, float]  # of the audit
    cnn_first: float  # after one epoch
    cnn_best: float  # of all

    @property
    def gain(self) -> float:
        return self.cnn_best - self.cnn_first


def bench() -> list[Row]:
    """One seed: another is SEED changed here."""
    found = _measure(SEED)
    cnn = f"AUC of the CNN, {TRAINED_PHOTOS} photos"
    return [
        Row(f"seconds to draw {TIMED_PHOTOS} photos on one core", found.seconds),
        *(
            Row(f"AUC of {trait} alone, 5,000 faces", auc, high=SHORTCUTS[trait])
            for trait, auc in found.probes.items()
        ),
        Row(f"{cnn}, 1 epoch", found.cnn_first),
        Row(f"{cnn}, best of {EPOCHS} epochs", found.cnn_best, low=0.80, high=0.99),
        Row(f"AUC gained after the first of {EPOCHS} epochs", found.gain, low=0.05),
    ]


def _measure(seed: int) -> SampleFigures:
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        draw_sample(Path(name, "timed"), TIMED_PHOTOS, seed)
        seconds = time.perf_counter() - started
        probed = _prepared(Path(name, "probed"), PROBED_PHOTOS, seed)
        trained = _prepared(Path(name, "trained"), TRAINED_PHOTOS, seed, side=CNN.side_px)
        return SampleFigures(
            seconds=seconds,
            probes={verdict.probe: verdict.auc for verdict in audit(probed).probes},
            cnn_first=_train(trained, CNN.model_copy(update={"max_epochs": 1}), seed),
            cnn_best=_train(trained, CNN, seed),
        )


def _prepared(folder: Path, photos: int, seed: int, side: int | None = None) -> DataConfig:
    annotations = draw_sample(folder, photos, seed, available_cores())
    data = DataConfig(
        annotations=(annotations,), photos_dir=folder, work_dir=folder / "work", seed=seed
    )
    prepare_data(data, sides=() if side is None else (side,))
    return data


def _train(data: DataConfig, config: TrainConfig, seed: int) -> float:
    """The validation AUC of the CNN's best epoch."""
    torch.set_num_threads(config.threads)
    train, val = (Faces.load(data.work_dir, split, config.side_px) for split in ("train", "val"))
    result = fit(
        partial(build_model, config, None),
        train,
        val,
        config,
        seed=seed,
        device=torch.device("cpu"),
        on_epoch=lambda stats: True,
    )
    assert result.best_logits is not None
    return measure(result.best_logits, val.labels, ["auc"])["auc"]
