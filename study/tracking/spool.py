"""What training says of its slots, written to disk: it waits for no server and outlives a kill."""

import errno
import io
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from deepfake.config import TrainConfig
from deepfake.errors import UserError, one_line
from deepfake.files import write_whole
from study.config import StudyConfig
from study.slots import State
from study.tracking.provenance import Dataset, source_tags
from study.tracking.store import WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from deepfake.training import EpochStats, FitResult
    from study.tracking.system_metrics import Machine


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
        # not durable: an older offset delivers again, which doubles nothing
        write_whole(self._offset_path, str(offset).encode(), durable=False, shared=True)

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


EPOCH_METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "robust_val_loss",  # where it is the objective
    "lr",
    "seconds",
    "images_per_s",
)
LOCK_S = 5.0  # a frozen process may hold a slot's lock: whoever waits tries again later
_NAME = re.compile(r"slot_(\d+)\.a(\d+)\.jsonl")


class Spool:
    """The journals of one study, in a folder that its workers share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own: set[Journal] = set()  # of this process

    @classmethod
    def of(cls, config: StudyConfig, study_id: str) -> "Spool":
        return cls(config.checkpoints_dir / study_id / "spool")

    def run(self, slot: int, attempt: int, machine: "Machine | None" = None) -> "SlotRun":
        """The recorder of an attempt at a slot. Raises SpoolError."""
        journal = Journal(slot, attempt, self.folder)
        self.own.add(journal)
        return SlotRun(journal, machine)

    def journals(self) -> list[Journal]:
        """By slot and attempt."""
        names = [_NAME.fullmatch(path.name) for path in _files(self.folder)]
        return sorted(Journal(int(m[1]), int(m[2]), self.folder) for m in names if m)

    def journals_of(self, slot: int) -> list[Journal]:
        """By attempt."""
        return [journal for journal in self.journals() if journal.slot == slot]

    def pending(self, slot: int | None = None) -> int:
        """Entries not delivered, of one slot or of all."""
        return sum(j.pending for j in self.journals() if slot in (None, j.slot))

    def lock(self, name: str, timeout_s: float = LOCK_S) -> FileLock:
        """For a `with`: one process at a time. Raises TimeoutError, an OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{name}.lock", timeout=timeout_s)

    def tidy(self) -> None:
        """Once a study has ended: remove what no journal needs any more."""
        if self.journals():
            return
        for path in _files(self.folder):
            match path.suffix:
                case ".files" if not path.with_suffix(".jsonl").exists():
                    shutil.rmtree(path, ignore_errors=True)
                case ".lock" | ".offset" | ".tmp":
                    path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: a worker has begun again
            self.folder.rmdir()


class SlotRun:
    """One attempt being recorded. Every method raises SpoolError if the disk refuses it."""

    def __init__(self, journal: Journal, machine: "Machine | None" = None) -> None:
        """machine: whose samples go with the epochs."""
        self.journal = journal
        self.machine = machine
        with _kept(journal.path):
            journal.folder.mkdir(parents=True, exist_ok=True)
            journal.path.touch()
            self._end = journal.path.read_bytes().rfind(b"\n") + 1  # where whole entries end

    def start(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        files: Mapping[str, str],
        datasets: Sequence[Dataset] = (),
    ) -> None:
        """files: name -> text."""
        if self.machine is not None:
            self.machine.begin()
        own = {"state": "running", "attempt": str(self.journal.attempt)}
        said = {key: str(value) for key, value in params.items()}
        given = [asdict(dataset) for dataset in datasets]
        all_tags = {**source_tags(), **tags, **own}
        self._append("start", name=name, params=said, tags=all_tags, datasets=given)
        for file, text in files.items():
            self._file(file, text.encode())

    def log_epoch(self, stats: "EpochStats") -> None:
        said = asdict(stats)
        metrics = {name: said[name] for name in EPOCH_METRICS if said[name] is not None}
        if self.machine is not None:
            metrics |= self.machine.since_last()
        self._append("epoch", epoch=stats.epoch, metrics=metrics)

    def log_result(self, result: "FitResult", labels: "Tensor") -> None:
        """Best weights, validation figures and confusion matrix of the best epoch, curves."""
        if result.best is None or result.best_state is None or result.best_logits is None:
            return  # the first epoch diverged
        # here: who only reads a spool (doctor, gc, run) needs none of their seconds
        from safetensors.torch import save

        from deepfake.metrics import confusion_matrix, logged_figures
        from deepfake.models import state_dict_sha256
        from study.tracking.plots import confusion_figure, curves_figure

        matrix = confusion_matrix(result.best_logits, labels)
        figures = logged_figures(result.best_logits, labels)
        metrics = {"best_val_loss": result.best.val_loss, "best_epoch": result.best.epoch}
        if result.best.robust_val_loss is not None:
            metrics["best_robust_val_loss"] = result.best.robust_val_loss
        metrics |= {f"best_val_{name}": value for name, value in figures.items()}
        self._append("metrics", metrics=metrics)
        self._file("val/confusion_matrix.json", json.dumps(matrix.rows()).encode())
        self._file("val/confusion_matrix.png", _png(confusion_figure(matrix, "validation")))
        self._file("learning_curves.png", _png(curves_figure(result.history)))
        state = {name: value.contiguous() for name, value in result.best_state.items()}
        self._file(WEIGHTS, save(state), sync=True)
        self.set_tags({"weights_sha256": state_dict_sha256(state)})

    def check_there(self) -> None:
        """For who still has the slot: what was said of it must be there. Raises SpoolError."""
        if not self.journal.path.exists():
            raise SpoolError(
                f"{self.journal.path}: removed while the slot was trained; its weights can't be "
                "kept, and it is trained again: leave study.checkpoints_dir alone until it ends"
            )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._append("tags", tags=dict(tags))

    def end(self, state: State, reason: str | None) -> None:
        """complete, pruned or failed; waiting if the slot was freed."""
        self._append("end", sync=True, state=state, reason=reason or "")

    def fail(self, reason: str, traceback_text: str) -> None:
        """The attempt raised."""
        self._file("exception.txt", traceback_text.encode())
        self.end("failed", reason)

    def _file(self, name: str, content: bytes, *, sync: bool = False) -> None:
        if not self.journal.path.exists():
            return
        path = self.journal.files_dir / name
        with _kept(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        self._append("file", name=name)  # behind the file: an entry's file is whole

    def _append(self, kind: str, *, sync: bool = False, **content: Any) -> None:
        entry = {"kind": kind, "at_ms": int(time.time() * 1000), **content}
        line = json.dumps(entry).encode() + b"\n"
        # not there any more: a newer attempt has the slot, and this one writes nothing
        with _kept(path := self.journal.path), suppress(FileNotFoundError):
            with path.open("r+b", buffering=0) as file:
                file.truncate(self._end)  # what a full disk left of an entry
                file.seek(self._end)
                if (file.write(line) or 0) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    os.fsync(file.fileno())
            self._end += len(line)


def run_name(slot: int, baseline: str | None, train: TrainConfig) -> str:
    """What a slot's run is called."""
    drawn = f"{slot:03d} {train.variant} lr={_short(train.lr)}"
    return f"baseline {baseline}" if baseline else drawn


def _short(value: float) -> str:
    """0.00031 as 3.1e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _files(folder: Path) -> list[Path]:
    """Of a folder that another worker may remove at any moment: Path.glob raises then."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"{path}: {one_line(error, path=False)}; what a run leaves can't be kept for MLflow: "
            "make room there, or name another study.checkpoints_dir"
        ) from None
