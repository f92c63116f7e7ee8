"""Files written whole or not at all, their hashes and sizes, and the room that a disk has."""

import hashlib
import os
import shutil
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either there whole or not at all, even after a power cut."""
    unfinished = path.with_name(f".{path.name}.tmp")  # a killed run's is written over
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


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
