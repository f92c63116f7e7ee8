"""What one attempt at a slot said, on disk, and how much of it was delivered."""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfake.errors import UserError

log = logging.getLogger(__name__)


class SpoolError(UserError):
    """The disk refuses what has to be kept of a slot."""


@dataclass(frozen=True)
class Entry:
    """One thing that training said."""

    kind: str  # start | epoch | metrics | tags | file | end
    at_ms: int  # wall time
    content: dict[str, Any]
    end: int  # where the next one begins in the journal


@dataclass(frozen=True, order=True)
class Journal:
    """What one attempt at a slot said, and how much of it was delivered."""

    slot: int
    attempt: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"slot_{self.slot:03d}.a{self.attempt}.jsonl"

    @property
    def files_dir(self) -> Path:
        return self.path.with_suffix(".files")

    @property
    def delivered(self) -> int:
        """Bytes that were delivered; 0 if that is not known: delivering again doubles nothing."""
        try:
            return int(self._offset_path.read_text())
        except (OSError, ValueError):
            return 0

    def note_delivered(self, offset: int) -> None:
        """Remember that all before offset was delivered."""
        partial = self._offset_path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(str(offset))
        partial.replace(self._offset_path)

    def entries(self, since: int = 0) -> list[Entry]:
        """Whole entries behind an offset. A torn last line is not there yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(since)
                content = file.read()
        except OSError:  # delivered and removed by another process, or a folder that is none
            return []
        found, end = [], since
        for line in content.splitlines(keepends=True):
            end += len(line)
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                found.append(Entry(entry.pop("kind"), entry.pop("at_ms"), entry, end))
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s: a line that can't be read is left out", self.path)
        return found

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def pending(self) -> int:
        """Entries that were not delivered."""
        delivered = self.delivered
        return len(self.entries(delivered)) if self.size > delivered else 0

    def file(self, name: str) -> Path:
        """The file of an entry. Raises SpoolError for a name that leaves the journal's folder."""
        path = (self.files_dir / name).resolve()
        if not path.is_relative_to(self.files_dir.resolve()):
            raise SpoolError(f"{self.path}: the file name {name!r} leaves its folder")
        return path

    def remove(self) -> None:
        shutil.rmtree(self.files_dir, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._offset_path.unlink(missing_ok=True)

    @property
    def _offset_path(self) -> Path:
        return self.path.with_suffix(".offset")
