#!/usr/bin/env python3
"""Trains a pool of random trials on the drawn faces, and records their validation losses.

scripts/benches/record_curves.py FILE.csv [--weights imagenet|none|PATH] [--trials N]: about an
hour on two cores. It made tests/curves.csv, which benches/pruning.py replays.
Started again, it goes on behind the trials that the file holds.
"""

import argparse
import sys
import tempfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from deepfake.config import DataConfig, ImageSize, TrainConfig, VariantName
from deepfake.data import Faces, prepare_data
from deepfake.models import DRAWN, build_model, load_pretrained
from deepfake.reproducibility import derive_seed
from deepfake.sample import draw_sample
from deepfake.training import fit
from deepfake.variants import VARIANTS

PHOTOS, SIDE_PX, EPOCHS, SEED = 400, 64, 10, 0
RECORDED: tuple[VariantName, ...] = ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
LR, WEIGHT_DECAY, DROPOUT = (1e-5, 1e-2), (1e-7, 1e-3), (0.0, 0.7)  # as configs/report.yaml


def drawn(number: int) -> TrainConfig:
    """Trial number's training: at random from the report's space, variants in turn."""
    generator = np.random.default_rng([SEED, number])
    return TrainConfig(
        variant=RECORDED[number % len(RECORDED)],
        lr=float(np.exp(generator.uniform(*np.log(LR)))),
        weight_decay=float(np.exp(generator.uniform(*np.log(WEIGHT_DECAY)))),
        dropout=float(generator.uniform(*DROPOUT)),
        image_size=ImageSize(cnn=SIDE_PX, mobilenet_v2=SIDE_PX),
        max_epochs=EPOCHS,
        stop_patience=EPOCHS,  # every epoch is recorded: the replay stops early by itself
    )


def record(number: int, work_dir: Path, weights: str) -> dict[str, float | str]:
    """One trial, a row of the pool."""
    torch.set_num_threads(1)
    config = drawn(number)
    entry, pretrained = VARIANTS[config.variant], load_pretrained(weights, RECORDED)
    begins_from = pretrained[entry.network] if entry.pretrained else DRAWN
    train, val = (Faces.load(work_dir, split, SIDE_PX) for split in ("train", "val"))
    result = fit(
        partial(build_model, config, begins_from.state),
        train,
        val,
        config,
        seed=derive_seed(SEED, number),
        device=torch.device("cpu"),
        on_epoch=lambda stats: True,
    )
    drawn_here = {k: getattr(config, k) for k in ("variant", "lr", "weight_decay", "dropout")}
    losses = {f"loss_{stats.epoch}": stats.val_loss for stats in result.history}
    return {"trial": number, **drawn_here, **losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--trials", type=int, default=72)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    rows = pd.read_csv(arguments.csv).to_dict("records") if arguments.csv.exists() else []
    done = {row["trial"] for row in rows}
    todo = [number for number in range(arguments.trials) if number not in done]
    with tempfile.TemporaryDirectory() as name:
        annotations = draw_sample(Path(name), PHOTOS, SEED, arguments.processes)
        work_dir = Path(name, "work")
        data = DataConfig(annotations=(annotations,), photos_dir=Path(name), work_dir=work_dir)
        prepare_data(data, sides=(SIDE_PX,))
        one = partial(record, work_dir=work_dir, weights=arguments.weights)
        with get_context("spawn").Pool(arguments.processes) as pool:
            for row in pool.imap_unordered(one, todo):
                rows.append(row)
                table = pd.DataFrame(rows).sort_values("trial")
                table.to_csv(arguments.csv, index=False, float_format="%.5g")
                print(f"{len(rows)} of {arguments.trials}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
