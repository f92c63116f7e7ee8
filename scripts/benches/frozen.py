"""A frozen trial on stored features, beside the loop that runs the backbone each epoch."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benches.table import Row
from deepfake.config import DataConfig, ImageSize, TrainConfig
from deepfake.data import Faces, prepare_data
from deepfake.models import Features, build_head, build_model, ensure_features, frozen_backbone
from deepfake.parallel import available_cores
from deepfake.sample import draw_sample
from deepfake.training import Feed, fit

PHOTOS, SIDE_PX, EPOCHS, LOOP_EPOCHS = 120, 128, 10, 1
CPU = torch.device("cpu")


def bench() -> list[Row]:
    """Seconds of a ten-epoch trial. One epoch of the loop is run; its epochs are alike."""
    torch.set_num_threads(2)
    config = TrainConfig(
        variant="mobilenet_v2_frozen",
        lr=1e-3,
        weight_decay=1e-5,
        dropout=0.2,
        image_size=ImageSize(mobilenet_v2=SIDE_PX),
        max_epochs=EPOCHS,
        stop_patience=EPOCHS,
        threads=2,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = draw_sample(folder, PHOTOS, 0, available_cores())
        data = DataConfig(
            annotations=(annotations,), photos_dir=folder, work_dir=folder / "work", seed=0
        )
        work_dir = prepare_data(data, sides=(SIDE_PX,)).work_dir
        train, val = (Faces.load(work_dir, split, SIDE_PX) for split in ("train", "val"))
        backbone = frozen_backbone("mobilenet_v2_frozen", None)
        started = time.perf_counter()
        path = ensure_features(work_dir, SIDE_PX, backbone, CPU)
        embedding = time.perf_counter() - started

        def on_features() -> None:
            feeds = (
                Features.load(path, work_dir, "train", SIDE_PX, train.labels),
                Features.load(path, work_dir, "val", SIDE_PX, val.labels),
            )
            _fit(partial(build_head, config), *feeds, config)

        once = config.model_copy(update={"max_epochs": LOOP_EPOCHS})
        loop = _seconds(lambda: _fit(partial(build_model, config, None), train, val, once))
        usual = loop * EPOCHS / LOOP_EPOCHS
        ours = min(_seconds(on_features) for _ in range(3))
    faces = len(train) + len(val)
    setting = f"{faces} faces of {SIDE_PX} px, two threads"
    return [
        Row(
            f"a frozen trial of {EPOCHS} epochs, s",
            ours,
            usual,
            usual / ours,
            low=100,
            note=f"{setting}; the loop: {LOOP_EPOCHS} epoch run, times {EPOCHS}",
        ),
        Row("embedding, paid once, s", embedding, note=f"{faces / embedding:.0f} faces/s"),
    ]


def _fit(build: Callable[[], nn.Module], train: Feed, val: Feed, config: TrainConfig) -> None:
    fit(build, train, val, config, seed=0, device=CPU, on_epoch=lambda stats: True)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
