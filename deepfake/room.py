"""Where the stores lie, and whether the disk has room for them; light: no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path

from deepfake.errors import DataError
from deepfake.files import free_bytes, size_text

log = logging.getLogger(__name__)


def store_path(work_dir: Path, side: int) -> Path:
    return work_dir / "store" / f"faces_{side}.npy"


def meta_path(store: Path) -> Path:
    """What the store was made of. Written last: without it there is no store."""
    return store.with_suffix(".json")


def unfinished_path(store: Path) -> Path:
    """Where it grows; what a killed build left there is written over."""
    return store.with_name(f".{store.name}.tmp")


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
