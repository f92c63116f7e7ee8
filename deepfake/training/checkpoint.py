"""The files that a training continues from: whole or absent, hashed, the one before kept."""

import hashlib
import io
import logging
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from deepfake.errors import UserError
from deepfake.files import whole

log = logging.getLogger(__name__)

FORMAT = 2  # of what fit saves; another release's counts as damaged
KEPT = 2  # the newest, and the one before in case it is damaged
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"e(\d{4,})\.a(\d+)\.pt")


class CheckpointError(UserError):
    """A checkpoint can't be written."""


def check_writable(folder: Path) -> None:
    """Raises CheckpointError if no checkpoint could be written below folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CheckpointError(
            f"study.checkpoints_dir: {folder} can't be written: {error.strerror}; name another"
        ) from error


@dataclass
class Checkpoints:
    """The checkpoints of one training, in a folder that all who may continue it share.

    A file is named by the last epoch in it and the attempt that wrote it: one that was given up
    and comes back late never writes over a newer one.
    """

    folder: Path
    attempt: int = 0
    damaged: list[str] = field(default_factory=list)  # names of those that load() passed over

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write state (tensors and plain types), its sha256 at the end; older ones are removed.

        A crash at any moment leaves a whole file or none. Raises CheckpointError.
        """
        import torch  # who removes or counts checkpoints needs none of it

        path = self.folder / f"e{epoch:04d}.a{self.attempt}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as unfinished, unfinished.open("wb", buffering=0) as file:
                hashed = _Hashed(file)
                try:
                    torch.save({"format": FORMAT, "state": state}, hashed)  # type: ignore[arg-type]
                except RuntimeError as error:  # torch's, over the write's own
                    raise hashed.failed or error from None
                # in the file, not beside it: two files can't be renamed at once
                hashed.write(hashed.sha256.digest())
            for old in self._newest_first()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{path}: the checkpoint can't be written: {error.strerror}; make room, or name "
                "another folder in study.checkpoints_dir"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The newest whole state; None if there is none.

        A damaged file is set aside as *.damaged and named in damaged, as is one that can't be
        read. What holds more than tensors and plain types counts as damaged: none of its code is
        run.
        """
        for path in self._newest_first():
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # a later attempt has removed it
                continue
            except OSError as error:  # a disk or a share in trouble
                log.warning("%s: %s; going back to the one before it", path, error.strerror)
                self.damaged.append(path.name)
                continue
            state = _loaded(path, content)
            if state is not None:
                return state
            log.warning("%s is damaged: going back to the one before it", path)
            self.damaged.append(path.name)
            with suppress(FileNotFoundError):  # another worker has found it too
                path.replace(path.with_suffix(".damaged"))
        return None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("e*.pt")]
        named = [(int(m[1]), int(m[2]), path) for m, path in found if m]
        return [path for *_, path in sorted(named, reverse=True)]


class _Hashed:
    """A file that is hashed as it is written: no copy of the state is made in memory."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.failed: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        self.sha256.update(content)
        rest = memoryview(content).cast("B")
        try:
            while rest:  # without a buffer the kernel may take less
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.failed = error
            raise
        return len(content)

    def flush(self) -> None:
        """Nothing is held back."""


def _loaded(path: Path, content: bytes) -> dict[str, Any] | None:
    body, digest = memoryview(content)[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    # a flipped byte in a weight loads silently: only the digest shows it
    if hashlib.sha256(body).digest() != digest:
        return None
    import torch

    try:
        loaded = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception:  # pickle's and torch's own kinds
        log.exception("%s can't be loaded", path)
        return None
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
        log.warning("%s is of another release", path)
        return None
    state: dict[str, Any] = loaded["state"]
    return state
