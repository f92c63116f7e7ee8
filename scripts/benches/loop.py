"""What an epoch takes beside forward, backward and step, and augmented; workers or threads."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from benches.table import Row
from deepfake.config import Augment, DataConfig, ImageSize, TrainConfig, VariantName
from deepfake.data import Faces, prepare_data
from deepfake.models import build_model
from deepfake.parallel import available_cores
from deepfake.sample import draw_sample
from deepfake.training import train_one_epoch
from deepfake.transforms import augmented

PHOTOS, ROUNDS = 60, 5
SIDES: dict[VariantName, int] = {"cnn": 128, "mobilenet_v2_finetuned": 96}
SPREAD_S = 4.0  # how long each worker trains
CPU = torch.device("cpu")
P = 0.3
AUGMENT = Augment.model_validate({name: {"p": P} for name in Augment.model_fields})


def bench() -> list[Row]:
    """Epochs of the CNN in turn with the bare steps on batches that lie in memory."""
    with tempfile.TemporaryDirectory() as name:
        work_dir = _prepared(Path(name))
        rows = [_beside_the_steps(work_dir), _augmented(work_dir)]
        for variant, side in SIDES.items():
            apart, together = _rate(work_dir, variant, 2, 1), _rate(work_dir, variant, 1, 2)
            figure = f"{variant}, {side} px, faces/s of two workers with a thread each"
            note = "usual: one worker with two threads"
            rows.append(Row(figure, apart, together, apart / together, note=note))
    return rows


def _beside_the_steps(work_dir: Path) -> Row:
    torch.set_num_threads(2)
    config = _config("cnn", 2)
    faces = Faces.load(work_dir, "train", config.side_px)
    batches = [(images.clone(), labels) for images, labels in faces.batches(32, CPU)]
    model = build_model(config, None)
    optimizer = Adam(model.parameters(), lr=config.lr, fused=True)
    epoch, bare = [], []
    for turn in range(1 + ROUNDS):
        started = time.perf_counter()
        train_one_epoch(model, faces, optimizer, config, turn, CPU)
        between = time.perf_counter()
        _bare_steps(model, optimizer, batches)
        epoch.append(between - started)
        bare.append(time.perf_counter() - between)
    shares = [100 * (whole / steps - 1) for whole, steps in zip(epoch, bare, strict=True)][1:]
    note = f"median of {ROUNDS}: {', '.join(f'{share:.1f}' for share in shares)}"
    usual, ours = statistics.median(bare[1:]), statistics.median(epoch[1:])
    figure = "s of an epoch of the CNN at 128 px; ratio: % beside forward, backward and step"
    return Row(figure, ours, usual, statistics.median(shares), high=3, note=note)


def _augmented(work_dir: Path) -> Row:
    """CPU seconds of epochs with the whole augmentation, in turn with plain ones."""
    torch.set_num_threads(1)
    config = _config("cnn", 1)
    faces = Faces.load(work_dir, "train", config.side_px)
    feeds = {"plain": faces, "augmented": augmented(faces, AUGMENT)}
    model = build_model(config, None)
    optimizer = Adam(model.parameters(), lr=config.lr, fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    for turn in range(1 + ROUNDS):
        for name, feed in feeds.items():
            started = time.process_time()
            train_one_epoch(model, feed, optimizer, config, turn, CPU)
            seconds[name].append(time.process_time() - started)
    pairs = zip(seconds["augmented"], seconds["plain"], strict=True)
    shares = [100 * (1 - plain / whole) for whole, plain in pairs][1:]
    usual, ours = (statistics.median(seconds[name][1:]) for name in ("plain", "augmented"))
    note = f"all five at p {P:g}, one thread; {', '.join(f'{share:.1f}' for share in shares)}"
    figure = "CPU s of an augmented epoch of the CNN at 128 px; ratio: % that is augmentation"
    return Row(figure, ours, usual, statistics.median(shares), high=10, note=note)


def _bare_steps(
    model: torch.nn.Module, optimizer: Adam, batches: list[tuple[Tensor, Tensor]]
) -> None:
    model.train()
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def _rate(work_dir: Path, variant: VariantName, workers: int, threads: int) -> float:
    """Faces a second of all workers together, each a process of its own."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def rates(seconds: float) -> list[float]:
            started = [
                pool.submit(_train_for, work_dir, variant, threads, seconds)
                for _ in range(workers)
            ]
            return [future.result() for future in started]

        rates(1.0)  # imports and first-time memory
        return sum(rates(SPREAD_S))


def _train_for(work_dir: Path, variant: VariantName, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    config = _config(variant, threads)
    faces = Faces.load(work_dir, "train", config.side_px)
    model = build_model(config, None)
    optimizer = Adam(model.parameters(), lr=config.lr, fused=True)
    started, trained = time.perf_counter(), 0
    for images, labels in _endless(faces):
        _bare_steps(model, optimizer, [(images, labels)])
        trained += len(labels)
        if time.perf_counter() - started > seconds:
            break
    return trained / (time.perf_counter() - started)


def _endless(faces: Faces) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from faces.batches(32, CPU)


def _config(variant: VariantName, threads: int) -> TrainConfig:
    side = ImageSize(cnn=SIDES["cnn"], mobilenet_v2=SIDES["mobilenet_v2_finetuned"])
    return TrainConfig(
        variant=variant, lr=1e-3, weight_decay=1e-5, dropout=0.2, image_size=side, threads=threads
    )


def _prepared(folder: Path) -> Path:
    annotations = draw_sample(folder, PHOTOS, 0, available_cores())
    data = DataConfig(annotations=(annotations,), photos_dir=folder, work_dir=folder / "work")
    return prepare_data(data, sides=tuple(SIDES.values())).work_dir
