"""One file that a training continues from: whole or absent, and hashed."""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write state (tensors and plain types), its sha256 at the end; the one before is kept.

    A crash at any moment leaves the new one or the one before, never a torn file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    with partial.open("w+b") as file:
        torch.save(state, file)
        file.seek(0)
        # in the file, not beside it: two files can't be renamed at once
        file.write(hashlib.file_digest(file, "sha256").digest())
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.replace(_before(path))
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state, or that of the one before if this one is damaged, or None if neither is whole.

    What holds more than tensors and plain types counts as damaged: none of its code is run.
    """
    for candidate in (path, _before(path)):
        if not candidate.exists():
            continue
        content = memoryview(candidate.read_bytes())
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        # a flipped byte in a weight loads silently: only the digest shows it
        if hashlib.sha256(body).digest() == digest:
            try:
                state: dict[str, Any] = torch.load(
                    io.BytesIO(body), map_location="cpu", weights_only=True
                )
            except Exception:  # pickle's and torch's own kinds
                log.exception("%s can't be loaded", candidate)
            else:
                return state
        log.warning("%s is damaged: going back to the one before it", candidate)
    return None


def remove_checkpoint(path: Path) -> None:
    for kept in (path, _before(path), _partial(path)):
        kept.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_suffix(".before" + path.suffix)


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")
