"""One file that a training continues from: whole or absent, and hashed."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write state (tensors and plain types) and its sha256 beside it; the one before is kept.

    A crash at any moment leaves the new one or the one before, never a torn file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    digest = _sha256(partial)
    if path.exists():
        path.replace(_before(path))
        _digest_path(path).replace(_digest_path(_before(path)))
    # the digest first: a checkpoint without one is taken as torn
    _digest_path(path).write_text(digest + "\n")
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state, or that of the one before if this one is damaged, or None if neither is whole."""
    for candidate in (path, _before(path)):
        if not candidate.exists():
            continue
        # a flipped byte in a weight loads silently: only the digest shows it
        if _digest_path(candidate).exists() and (
            _digest_path(candidate).read_text().strip() == _sha256(candidate)
        ):
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
            return state
        log.warning("%s is damaged: going back to the one before it", candidate)
    return None


def remove_checkpoint(path: Path) -> None:
    for kept in (path, _before(path)):
        kept.unlink(missing_ok=True)
        _digest_path(kept).unlink(missing_ok=True)
    path.with_suffix(".partial").unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_suffix(".before" + path.suffix)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
