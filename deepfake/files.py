"""Files written whole or not at all, their hashes and sizes, and the room that a disk has."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path, *, durable: bool = True, shared: bool = False) -> Iterator[Path]:
    """A name to write a file or a folder under: it becomes path if the block ends well.

    If not, path stays as it was and nothing is left. What a kill leaves is named *.tmp.
    durable: even after a power cut; of a file alone. shared: others may be writing path as well.
    """
    unfinished = unfinished_path(path, os.getpid() if shared else None)
    _remove(unfinished)  # a killed run's
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # what can't be written may not be there to be removed
            _remove(unfinished)
        raise


def unfinished_path(path: Path, pid: int | None = None) -> Path:
    """Where it grows until it is whole."""
    return path.with_name(f".{path.name}.tmp" if pid is None else f".{path.name}.{pid}.tmp")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, *, durable: bool = True, shared: bool = False) -> None:
    """Write a file that is either there whole or not at all."""
    with whole(path, durable=durable, shared=shared) as unfinished:
        unfinished.write_bytes(content)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Of the disk that folder is on, or will be."""
    there = next(above for above in (folder, *folder.parents) if above.exists())
    return shutil.disk_usage(there).free


def size_text(n_bytes: int) -> str:
    """1.2 GB, or 3.4 MB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"
