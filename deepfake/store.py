"""Crops -> one uint8 array a resolution on disk, mapped by all workers; batches from it."""

import functools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from deepfake.config import SPLITS, DataError, Split
from deepfake.parallel import Progress, available_cores
from deepfake.splits import (
    SPLITS_CSV,
    Opening,
    read_split,
    read_splits_csv,
    sha256_of,
    write_whole,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_ROWS_A_CHUNK = 64


def store_path(work_dir: Path, side: int) -> Path:
    return work_dir / "store" / f"faces_{side}.npy"


def ensure_store(
    work_dir: Path,
    side: int,
    crops_sha256: str,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The array of all crops at (side, side), built unless it is there for these very crops.

    (N, side, side, 3) uint8; rows ordered by split, then cutted_name. Several processes may call
    this at once: one builds. Raises DataError if the disk has no room or a crop is damaged.
    """
    path = store_path(work_dir, side)
    try:
        if _is_current(path, crops_sha256):
            return path
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_current(path, crops_sha256):
                _build(path, side, crops_sha256, processes or available_cores(), progress)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; mend that, or set"
            " data.work_dir to another disk"
        ) from None
    return path


def _meta_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_current(path: Path, crops_sha256: str) -> bool:
    meta = _meta_path(path)
    if not (path.is_file() and meta.is_file()):
        return False
    made_of = json.loads(meta.read_bytes())
    splits_sha256 = sha256_of(path.parent.parent / SPLITS_CSV)
    return (made_of["crops_sha256"], made_of["splits_sha256"]) == (crops_sha256, splits_sha256)


def _build(
    path: Path, side: int, crops_sha256: str, threads: int, progress: Progress | None
) -> None:
    work_dir = path.parent.parent
    splits = read_splits_csv(work_dir)
    by_split = [splits.loc[splits["split"] == split, "cutted_name"] for split in SPLITS]
    names = pd.concat(by_split).tolist()
    _check_room(path, len(names) * side * side * 3)
    _meta_path(path).unlink(missing_ok=True)  # until the new array is whole there is no store
    unfinished = path.with_name(f".{path.name}.tmp")
    crops = [work_dir / "crops" / name for name in names]
    _write_rows(unfinished, crops, side, threads, progress)
    unfinished.replace(path)
    stops = np.cumsum([len(rows) for rows in by_split]).tolist()
    meta = {
        "crops_sha256": crops_sha256,
        "splits_sha256": sha256_of(work_dir / SPLITS_CSV),
        "rows": {
            split: [stop - len(rows), stop]
            for split, rows, stop in zip(SPLITS, by_split, stops, strict=True)
        },
    }
    write_whole(_meta_path(path), json.dumps(meta, indent=1).encode())


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"{path}: needs {needed} bytes, {free} are free; make room, or set data.work_dir to"
            " another disk"
        )


def _write_rows(
    path: Path, crops: list[Path], side: int, threads: int, progress: Progress | None
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(crops), side, side, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start = file.tell()

        def write_chunk(first: int) -> int:
            rows = b"".join(_pixels(crop, side) for crop in crops[first : first + _ROWS_A_CHUNK])
            # not through a memory map: there a full disk is a bus error, here an OSError
            _write_at(file.fileno(), rows, start + first * side * side * 3)
            return min(first + _ROWS_A_CHUNK, len(crops))

        # threads: Pillow decodes and resizes outside Python's lock
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in pool.map(write_chunk, range(0, len(crops), _ROWS_A_CHUNK)):
                    if progress:
                        progress(f"store {side} px", done, len(crops))
            finally:
                pool.shutdown(cancel_futures=True)
        os.fsync(file.fileno())


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _pixels(crop: Path, side: int) -> bytes:
    try:
        with Image.open(crop) as face:
            small = face.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"{crop}: not a whole crop ({error}); delete it and run deepfake-study prepare"
        ) from None
    return small.tobytes()


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels_last, as ImageNet's models expect.

    Bit for bit torchvision's ToTensor and Normalize.
    """
    batch, height, width, _ = images.shape
    mean, std = _row_constants(width, images.device)
    rows = images.reshape(batch, height, width * 3).float()
    rows.div_(255).sub_(mean).div_(std)  # along whole rows: 3 channels alone don't vectorise
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)


@functools.cache
def _row_constants(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return mean.repeat(width).to(device), std.repeat(width).to(device)


@dataclass(frozen=True, eq=False)
class Faces:
    """One split at one resolution."""

    table: pd.DataFrame  # rows of faces.csv, in the order of the images
    images: Tensor  # (N, side, side, 3) uint8, mapped from disk; never written to
    labels: Tensor  # (N,) int64

    @classmethod
    def load(
        cls, work_dir: Path, split: Split, side: int, opening: Opening | None = None
    ) -> "Faces":
        """Raises SplitClosed for test without an Opening, DataError if there is no store."""
        table = read_split(work_dir, split, opening)
        path = store_path(work_dir, side)
        if not _meta_path(path).is_file():
            raise DataError(f"{path}: not built yet: run deepfake-study prepare")
        made_of = json.loads(_meta_path(path).read_bytes())
        if made_of["splits_sha256"] != sha256_of(work_dir / SPLITS_CSV):
            raise DataError(f"{path}: built for another splits.csv: run deepfake-study prepare")
        start, stop = made_of["rows"][split]
        rows = np.load(path, mmap_mode="r")[start:stop]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the map is read-only, and nothing here writes to it
            images = torch.from_numpy(rows)
        labels = torch.from_numpy(table["category_id"].to_numpy(np.int64, copy=True))
        return cls(table, images, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: (B, 3, side, side) normalised images and (B,) int64 labels, on the device.

        Shuffled by the generator (a CPU one), or in the table's order; the last batch may be
        smaller. A batch's memory is its own: it stays valid for as long as it is held.
        """
        order = (
            torch.arange(len(self))
            if generator is None
            else torch.randperm(len(self), generator=generator)
        )
        labels = self.labels[order].to(device)
        pinned = device.type == "cuda"
        # two buffers in turn: the copy of one to the device runs while the other is filled
        shape = (min(batch_size, len(self)), *self.images.shape[1:])
        buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in buffers if pinned]  # type: ignore[no-untyped-call]
        for number, start in enumerate(range(0, len(self), batch_size)):
            rows = order[start : start + batch_size]
            gathered = buffers[number % 2][: len(rows)]
            if pinned:
                copied[number % 2].synchronize()  # the copy from it two batches ago has ended
            torch.index_select(self.images, 0, rows, out=gathered)
            images = gathered.to(device, non_blocking=pinned)
            if pinned:
                copied[number % 2].record(torch.cuda.current_stream(device))
            yield normalise(images), labels[start : start + len(rows)]
