"""Crops -> one uint8 array a resolution on disk, shared by all workers; whether there is room."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from deepfake.config import Split
from deepfake.data.arrays import Rows, writing
from deepfake.data.crops import pixels_of
from deepfake.data.splits import SPLITS_CSV, ordered, read_splits_csv
from deepfake.errors import DataError, writing_data
from deepfake.files import free_bytes, sha256_of, size_text, unfinished_path, whole, write_whole
from deepfake.parallel import Progress, available_cores

log = logging.getLogger(__name__)

_ROWS_A_CHUNK = 64


def store_path(work_dir: Path, side: int) -> Path:
    return work_dir / "store" / f"faces_{side}.npy"


def meta_path(store: Path) -> Path:
    """What the store was made of. Written last: without it there is no store."""
    return store.with_suffix(".json")


def stores_bytes(faces: int, sides: Sequence[int]) -> int:
    """What the stores of those sides take on disk: three bytes a pixel."""
    return sum(faces * side * side * 3 for side in sides)


def check_room(work_dir: Path, faces: int, sides: Sequence[int]) -> None:
    """Say how large the stores that are not there will be; DataError if the disk is too small.

    work_dir need not be there yet.
    """
    missing = [side for side in sides if not meta_path(store_path(work_dir, side)).exists()]
    if not missing:
        return
    needed, free = stores_bytes(faces, missing), _free_bytes(work_dir, missing)
    needs, has = size_text(needed), size_text(free)
    each = ", ".join(f"{side} px {size_text(stores_bytes(faces, [side]))}" for side in missing)
    if free < needed:
        raise DataError(
            f"{work_dir}: the stores need {needs} ({each}), {has} are free; make room, or set"
            " data.work_dir to another disk"
        )
    log.info(
        "stores of %d faces: %s (%s), %s free", faces, size_text(needed), each, size_text(free)
    )


def _free_bytes(work_dir: Path, sides: Sequence[int]) -> int:
    """Of the disk the stores go to, with what killed builds of these sides hold of it."""
    unfinished = [unfinished_path(store_path(work_dir, side)) for side in sides]
    held = sum(path.stat().st_blocks * 512 for path in unfinished if path.exists())
    return free_bytes(store_path(work_dir, 0).parent) + held  # may be a link to another disk


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
    with writing_data(path):
        if _is_current(path, crops_sha256):
            return path
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_current(path, crops_sha256):
                _build(path, side, crops_sha256, processes or available_cores(), progress)
    return path


def _is_current(path: Path, crops_sha256: str) -> bool:
    meta = meta_path(path)
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
    order = ordered(splits["split"])
    by_split = [splits.loc[splits["split"] == split, "cutted_name"] for split in order]
    names = pd.concat(by_split).tolist()
    for stale in (meta_path(path), path):  # until the new array is whole there is no store
        stale.unlink(missing_ok=True)
    check_room(work_dir, len(names), [side])
    crops = [work_dir / "crops" / name for name in names]
    with whole(path) as unfinished:
        _write_rows(unfinished, crops, side, threads, progress)
    stops = np.cumsum([len(rows) for rows in by_split]).tolist()
    meta = {
        "crops_sha256": crops_sha256,
        "splits_sha256": sha256_of(work_dir / SPLITS_CSV),
        "rows": {
            split: [stop - len(rows), stop]
            for split, rows, stop in zip(order, by_split, stops, strict=True)
        },
    }
    write_whole(meta_path(path), json.dumps(meta, indent=1).encode())


def _write_rows(
    path: Path, crops: list[Path], side: int, threads: int, progress: Progress | None
) -> None:
    with writing(path, (len(crops), side, side, 3), np.uint8) as writer:

        def write_chunk(first: int) -> int:
            chunk = crops[first : first + _ROWS_A_CHUNK]
            writer.write(first, b"".join(pixels_of(crop, side) for crop in chunk))
            return first + len(chunk)

        # threads: Pillow decodes and resizes outside Python's lock
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in pool.map(write_chunk, range(0, len(crops), _ROWS_A_CHUNK)):
                    if progress:
                        progress(f"store {side} px", done, len(crops))
            finally:
                pool.shutdown(cancel_futures=True)


def stored_rows(work_dir: Path, split: Split, side: int) -> Rows:
    """A split's rows of the store; DataError if it is not there, or was built for other splits."""
    path = store_path(work_dir, side)
    if not meta_path(path).is_file():
        raise DataError(f"{path}: not built yet: run deepfake-study prepare CONFIG")
    made_of = json.loads(meta_path(path).read_bytes())
    if made_of["splits_sha256"] != sha256_of(work_dir / SPLITS_CSV):
        raise DataError(f"{path}: built for another splits.csv: run deepfake-study prepare CONFIG")
    return Rows(path, *made_of["rows"][split])
