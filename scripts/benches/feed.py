"""Normalised batches from the store, beside a Dataset that opens each crop every time."""

import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benches.table import Row
from deepfake.data import IMAGENET_MEAN, IMAGENET_STD, Faces, ensure_store, write_csv
from deepfake.files import sha256_of
from tests.support.large_store import FACES, draw_large_store, private_mib_of_feeding

SIDE_PX, BATCH, THREADS = 128, 32, 2
STORED, DECODED = 4000, 1200  # faces: ours reads all, the usual parts the first of them
WARM_UP, ROUNDS, PASSES = 5, 3, 5  # batches; passes of ours in a round
WORKERS = (0, 1, 2, 3, 4)
FED = 6000  # faces of 224 px: 0.9 GB, and 0.45 GB more
CPU = torch.device("cpu")


class WithPillow(Dataset[tuple[Tensor, int]]):
    """What a tutorial writes."""

    def __init__(self, crops: list[Path]) -> None:
        self.crops = crops
        self.transform = transforms.Compose(
            [
                transforms.Resize((SIDE_PX, SIDE_PX)),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.crops[index]).convert("RGB")), index % 2


class WithTorchvision(WithPillow):
    """The same with torchvision's own JPEG decoder and transforms on tensors."""

    def __init__(self, crops: list[Path]) -> None:
        super().__init__(crops)
        self.transform = v2.Compose(
            [
                v2.Resize((SIDE_PX, SIDE_PX), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = decode_image(str(self.crops[index]), ImageReadMode.RGB)
        return self.transform(picture), index % 2


def bench() -> list[Row]:
    """Images a second beside the usual parts with their best number of workers; own memory."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        faces, crops = _faces(Path(name))
        rates = _rates(faces, crops)
    with tempfile.TemporaryDirectory() as name:
        draw_large_store(Path(name))
        own_mib = private_mib_of_feeding(Path(name), FED)
    return [
        _row(rates, WithPillow, "Dataset(PIL) + DataLoader", 40),
        _row(rates, WithTorchvision, "torchvision.io + DataLoader", 25),
        Row(f"MiB of its own a worker needs to feed {FACES:,} faces of 224 px", own_mib, high=300),
    ]


def _rates(faces: Faces, crops: list[Path]) -> dict[object, list[float]]:
    """Images a second of each round: of every loader in turn, then of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores: tried, not advised
        loaders = {
            (kind, workers): DataLoader(
                kind(crops),
                batch_size=BATCH,
                shuffle=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            for kind in (WithPillow, WithTorchvision)
            for workers in WORKERS
        }
        for loader in loaders.values():  # workers start
            list(itertools.islice(loader, WARM_UP))
    order = torch.Generator().manual_seed(0)
    list(faces.batches(BATCH, CPU, order))
    rates: dict[object, list[float]] = {}
    for _ in range(ROUNDS):
        for key, loader in loaders.items():
            rates.setdefault(key, []).append(_rate(iter(loader)))
        passes = (faces.batches(BATCH, CPU, order) for _ in range(PASSES))
        rates.setdefault(Faces, []).append(_rate(itertools.chain.from_iterable(passes)))
    return rates


def _row(rates: dict[object, list[float]], kind: type, label: str, goal: float) -> Row:
    medians = {workers: statistics.median(rates[kind, workers]) for workers in WORKERS}
    best = max(WORKERS, key=medians.__getitem__)
    ours, usual = statistics.median(rates[Faces]), medians[best]
    each = ", ".join(f"{workers}: {medians[workers]:,.0f}" for workers in WORKERS)
    return Row(
        f"normalised batches of {SIDE_PX} px, images/s",
        ours,
        usual,
        ours / usual,
        low=goal,
        note=f"{label}, {best} workers the best ({each})",
    )


def _rate(batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    started = time.perf_counter()
    images = sum(len(labels) for _, labels in batches)
    return images / (time.perf_counter() - started)


def _faces(folder: Path) -> tuple[Faces, list[Path]]:
    """Faces in the store, and crops of 100 to 220 px that cost what a photo's cost to decode."""
    (folder / "crops").mkdir()
    names = [f"{i:06d}.jpg" for i in range(STORED)]
    generator = np.random.default_rng(0)
    photos = [_photo(generator) for _ in range(10)]
    boxes = _boxes(generator, STORED)

    def cut(i: int) -> None:
        photos[i % len(photos)].crop(boxes[i]).save(folder / "crops" / names[i], quality=95)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(cut, range(STORED)))
    split = np.where(np.arange(STORED) < STORED - 20, "train", "val")
    split[-10:] = "test"
    table = pd.DataFrame({"id_x": range(STORED), "image_id": range(STORED), "category_id": 0})
    table = table.assign(bbox="[]", file_name="", cutted_name=names, source="drawn")
    write_csv(table, folder / "faces.csv")
    write_csv(pd.DataFrame({"cutted_name": names, "split": split}), folder / "splits.csv")
    ensure_store(folder, SIDE_PX, sha256_of(folder / "faces.csv"))
    crops = [folder / "crops" / name for name in names[:DECODED]]
    return Faces.load(folder, "train", SIDE_PX), crops


def _photo(generator: np.random.Generator) -> Image.Image:
    """1,024 px of soft shapes and a sensor's noise."""
    coarse = Image.fromarray(generator.integers(0, 256, (77, 77, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + generator.normal(0, 4, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _boxes(generator: np.random.Generator, n: int) -> list[tuple[int, int, int, int]]:
    corners, sizes = (
        generator.integers(0, 1024 - 220, (n, 2)),
        generator.integers(100, 221, (n, 2)),
    )
    return [tuple(box) for box in np.hstack([corners, corners + sizes]).tolist()]
