#!/usr/bin/env python3
"""What the project promises, measured: scripts/bench.py [NAME...] [--json FILE].

Names: sample (the drawn data set; about 15 minutes on one idle core), tracking (a study without
its MLflow server; about 6 minutes). Without a name, all of them.
Run it with the venv's Python. Exit code 1 if a goal is missed.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepfake.config import DataConfig, ImageSize, TrainConfig
from deepfake.fit import fit
from deepfake.metrics import measure
from deepfake.models import build_model
from deepfake.prepare import prepare
from deepfake.sample import draw_sample
from deepfake.splits import read_split
from deepfake.store import Faces

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server and tiny study
from tests import mlflow_server
from tests.runs import Folder

SEEDS = (0, 1, 2)
PROBED_PHOTOS, TRAINED_PHOTOS, TIMED_PHOTOS = 1670, 600, 200  # 1670 photos hold 5,000 faces
EPOCHS = 10
STUDY_EPOCHS = 10  # of each baseline
CNN = TrainConfig(
    variant="cnn",
    lr=1e-3,
    weight_decay=1e-5,
    dropout=0.5,
    image_size=ImageSize(cnn=64),
    max_epochs=EPOCHS,
    stop_patience=EPOCHS,  # every epoch is run
)


@dataclass(frozen=True)
class Row:
    """A figure, measured once a seed, and the range its mean should be in."""

    figure: str
    measured: tuple[float, ...]
    low: float | None = None
    high: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.measured)

    @property
    def goal(self) -> str:
        match self.low, self.high:
            case None, None:
                return ""
            case low, None:
                return f"at least {low:g}"
            case None, high:
                return f"at most {high:g}"
            case low, high:
                return f"{low:g} to {high:g}"
            case _:
                raise AssertionError(self)

    @property
    def is_met(self) -> bool:
        return (self.low is None or self.mean >= self.low) and (
            self.high is None or self.mean <= self.high
        )


@dataclass(frozen=True)
class SampleFigures:
    """One seed's: seconds to draw, and validation AUCs."""

    seconds: float
    geometry: float
    colours: float
    cnn_first: float  # after one epoch
    cnn_last: float  # after all

    @property
    def gain(self) -> float:
        return self.cnn_last - self.cnn_first


def bench_sample() -> list[Row]:
    """Shortcuts that must not work on the drawn faces, and the training that must."""
    figures = [_measure_sample(seed) for seed in SEEDS]

    def each(name: str) -> tuple[float, ...]:
        return tuple(getattr(of_seed, name) for of_seed in figures)

    cnn = f"AUC of the CNN, {TRAINED_PHOTOS} photos"
    return [
        Row(f"seconds to draw {TIMED_PHOTOS} photos on one core", each("seconds")),
        Row("AUC of box geometry, 5,000 faces", each("geometry"), high=0.55),
        Row("AUC of colour means and deviations, 5,000 faces", each("colours"), high=0.62),
        Row(f"{cnn}, 1 epoch", each("cnn_first")),
        Row(f"{cnn}, {EPOCHS} epochs", each("cnn_last"), low=0.80, high=0.99),
        Row(f"AUC gained between 1 and {EPOCHS} epochs", each("gain"), low=0.05),
    ]


def _measure_sample(seed: int) -> SampleFigures:
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        draw_sample(Path(name, "timed"), TIMED_PHOTOS, seed)
        seconds = time.perf_counter() - started
        probed = _prepared(Path(name, "probed"), PROBED_PHOTOS, seed)
        trained = _prepared(Path(name, "trained"), TRAINED_PHOTOS, seed, side=CNN.side_px)
        return SampleFigures(
            seconds=seconds,
            geometry=_probe(probed, _geometry),
            colours=_probe(probed, _colours),
            cnn_first=_train(trained, CNN.model_copy(update={"max_epochs": 1}), seed),
            cnn_last=_train(trained, CNN, seed),
        )


def _prepared(folder: Path, photos: int, seed: int, side: int | None = None) -> DataConfig:
    annotations = draw_sample(folder, photos, seed)
    data = DataConfig(
        annotations=(annotations,), photos_dir=folder, work_dir=folder / "work", seed=seed
    )
    prepare(data, sides=() if side is None else (side,), processes=1)
    return data


def _probe(
    data: DataConfig, describe: Callable[[DataConfig, pd.DataFrame], NDArray[np.float64]]
) -> float:
    """The validation AUC of a logistic regression on a description of the training faces."""
    train, val = (read_split(data.work_dir, split) for split in ("train", "val"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(describe(data, train), train["category_id"])
    return float(roc_auc_score(val["category_id"], probe.decision_function(describe(data, val))))


def _geometry(data: DataConfig, faces: pd.DataFrame) -> NDArray[np.float64]:
    images = json.loads(data.annotations[0].read_bytes())["images"]
    photos = pd.DataFrame(images).set_index("id").loc[faces["image_id"]]
    width, height = photos["width"].to_numpy(float), photos["height"].to_numpy(float)
    x, y, w, h = np.array([json.loads(bbox) for bbox in faces["bbox"]], float).T
    return np.stack([x, y, w, h, w / h, w * h / (width * height), width, height], axis=1)


def _colours(data: DataConfig, faces: pd.DataFrame) -> NDArray[np.float64]:
    rows = []
    for name in faces["cutted_name"]:
        with Image.open(data.work_dir / "crops" / name) as crop:
            pixels = np.asarray(crop, float) / 255
        rows.append([*pixels.mean((0, 1)), *pixels.std((0, 1))])
    return np.array(rows)


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
    return measure(result.best_logits, val.labels).auc


def bench_tracking() -> list[Row]:
    """What training loses when MLflow's server is dead from the start, or dies in the middle."""
    alive = [_train_study(stop_after=None) for _ in SEEDS]
    dead = [_train_study(stop_after=0) for _ in SEEDS]
    dying = [_train_study(stop_after=STUDY_EPOCHS) for _ in SEEDS]

    def lost(seconds: list[float]) -> tuple[float, ...]:
        return tuple(own - live for own, live in zip(seconds, alive, strict=True))

    return [
        Row(f"seconds from the first of {3 * STUDY_EPOCHS} epochs to the last", tuple(alive)),
        Row("seconds more with the server dead from the start", lost(dead), high=3.0),
        Row("seconds more with the server dying in the middle", lost(dying), high=3.0),
    ]


def _train_study(stop_after: int | None) -> float:
    """Seconds from the first epoch's end to the last's, of one worker on the three baselines.

    stop_after: epochs until the MLflow server is killed; None leaves it alone.
    """
    with tempfile.TemporaryDirectory() as name, mlflow_server.running(Path(name)) as server:
        epochs = f"train.max_epochs={STUDY_EPOCHS}"
        patient = f"train.stop_patience={STUDY_EPOCHS}"
        uri = f"tracking.uri={server.uri}"
        folder = Folder(Path(name), 60, epochs, patient, uri, "study.n_trials=3")
        prepared = folder.call("prepare")
        assert prepared.returncode == 0, prepared.stderr
        if stop_after == 0:
            server.stop()
        worker = folder.start("worker", "--device", "cpu")
        assert worker.stderr is not None
        ends = []
        for line in worker.stderr:
            if re.search(r"epoch \d+ val_loss", line):
                ends.append(time.monotonic())
                if len(ends) == stop_after:
                    server.stop()
        assert worker.wait() == 0
        assert len(ends) == 3 * STUDY_EPOCHS
        return ends[-1] - ends[0]


BENCHES: dict[str, Callable[[], list[Row]]] = {
    "sample": bench_sample,
    "tracking": bench_tracking,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"unknown name {unknown[0]!r}; choose from {', '.join(BENCHES)}")
    rows = [(name, row) for name in names for row in BENCHES[name]()]
    table = Table("bench", "figure", "measured", "each seed", "goal", "met")
    for name, row in rows:
        each = " ".join(f"{value:.3f}" for value in row.measured)
        verdict = ("yes" if row.is_met else "NO") if row.goal else ""
        table.add_row(name, row.figure, f"{row.mean:.3f}", each, row.goal, verdict)
    Console(width=130).print(table)  # one line a row, in a pipe too
    if arguments.json is not None:
        report = [{"bench": name, **asdict(row), "met": row.is_met} for name, row in rows]
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if all(row.is_met for _, row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
