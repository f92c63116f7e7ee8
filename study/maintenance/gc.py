"""`gc`: weights and checkpoints of slots that nobody needs any more, and what the dead left."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from deepfake.data import CROPS, store_path
from study.config import StudyConfig
from study.maintenance.disk import Usage, bytes_of
from study.slots import SlotRecord, Slots, incumbents, join, ranked
from study.tracking import WEIGHTS, Spool, StudyRuns, TrackingError
from study.worker import checkpoints_of


@dataclass(frozen=True)
class Collected:
    """What gc removed, or with dry_run would remove."""

    removals: list[Usage]
    n_bytes: int
    kept: dict[int, str]  # finished slots whose weights and checkpoints stay, and why
    dry_run: bool
    notes: list[str] = field(default_factory=list)  # what it does not touch
    failed: list[str] = field(default_factory=list)  # what could not be removed, and why


def collect(config: StudyConfig, best: int, *, dry_run: bool) -> Collected:
    """Remove the weights and left-over checkpoints of finished slots that nothing needs.

    Kept are the best so many complete slots, baselines, incumbents, all that an opened list or
    MLflow's registry names, whatever MLflow has still to be told of, and every slot that is not
    finished; studies of reruns are not looked at: theirs are finalists. Files that killed writers
    left unfinished in work_dir go, too. Small files of a run stay: figures, matrices, settings.
    Raises NoStudy, StorageError or TrackingError, and UserError while an evaluate reads weights.
    """
    slots = join(config)
    # an evaluate may be reading them, or about to freeze a list of them
    with nullcontext() if dry_run else slots.removing_weights():
        records = slots.records()
        logged = StudyRuns.of(config, slots.study_id)
        kept = _kept(slots, records, best, logged)
        todo = [*_of_slots(slots, records, kept, logged), *_unfinished(config)]
        failed = {} if dry_run else _remove(todo)
    done = [usage for number, (usage, _) in enumerate(todo) if number not in failed]
    freed = sum(usage.n_bytes for usage in done)
    said = list(failed.values())
    return Collected(done, freed, kept, dry_run, _notes(config, slots), said)


_Todo = tuple[Usage, Callable[[], None]]


def _remove(todo: Sequence[_Todo]) -> dict[int, str]:
    """What could not be removed, by its place in todo, and why."""
    failed = {}
    for number, (usage, remove) in enumerate(todo):
        try:
            remove()
        except (TrackingError, OSError) as error:
            failed[number] = f"{usage.what}: {error}"
    return failed


def _kept(
    slots: Slots, records: Sequence[SlotRecord], best: int, logged: StudyRuns | None
) -> dict[int, str]:
    """Why, by slot."""
    # of the drawn ones, as evaluate chooses its candidates: baselines stay anyway
    drawn = ranked(r for r in records if r.baseline is None)
    waiting = {j.slot for j in Spool.of(slots.config, slots.study_id).journals() if j.pending}
    opened = "\n".join(
        name for entry in slots.attributes().get("openings", []) for name in entry["finalists"]
    )
    named = {int(number) for number in re.findall(r"^slot (\d+) ", opened, re.MULTILINE)}
    reasons: list[tuple[str, set[int]]] = [
        ("baseline", {r.number for r in records if r.baseline is not None}),
        ("finalist", named),
        (f"among the best {best}", {record.number for record in drawn[:best]}),
        ("incumbent", {record.number for record in incumbents(records)}),
        ("MLflow has still to be told of it", waiting),
    ]
    kept: dict[int, str] = {}
    for record in filter(lambda record: record.finished, records):
        for reason, numbers in reasons:
            if record.number in numbers:
                kept[record.number] = reason
                break
        else:
            if logged is not None and record.run_id and logged.is_registered(record.run_id):
                kept[record.number] = "its model is registered"
    return kept


def _of_slots(
    slots: Slots, records: Sequence[SlotRecord], kept: dict[int, str], logged: StudyRuns | None
) -> Iterator[_Todo]:
    runs = {} if logged is None else {run.run_id for run in logged.runs()}
    for record in records:
        if not record.finished or record.number in kept:
            continue
        number, run_id = record.number, record.run_id
        if logged and run_id and run_id in runs and (size := logged.weights_bytes(run_id)):
            what = f"weights of slot {number}, {record.state}"
            place = f"MLflow run {run_id}: {WEIGHTS}"
            yield Usage(what, place, size), _removing_weights(logged, run_id)
        checkpoints = checkpoints_of(slots, number)
        if checkpoints.folder.is_dir():
            what = f"checkpoints of slot {number}, {record.state}"
            size = bytes_of(checkpoints.folder)
            yield Usage(what, str(checkpoints.folder), size), checkpoints.remove


def _removing_weights(logged: StudyRuns, run_id: str) -> Callable[[], None]:
    return lambda: logged.remove_weights(run_id)


def _unfinished(config: StudyConfig) -> Iterator[_Todo]:
    """What killed writers left in work_dir: its writers hold a lock, which their death frees."""
    work_dir = config.data.work_dir
    guarded = [
        (path, work_dir / ".lock")
        for folder in (work_dir, work_dir / CROPS)
        for path in _files(folder)
        if path.suffix == ".tmp"
    ]
    for path in _files(store_path(work_dir, 0).parent):
        if path.suffix == ".tmp" and (side := re.search(r"faces_(\d+)\.", path.name)):
            guarded.append((path, store_path(work_dir, int(side[1])).with_suffix(".lock")))
    for path, lock in guarded:
        if not _is_held(lock):
            removal = Usage("unfinished, of a killed writer", str(path), bytes_of(path))
            yield removal, _removing_file(path, lock)


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _removing_file(path: Path, lock: Path) -> Callable[[], None]:
    def remove() -> None:
        with FileLock(lock, timeout=0):  # a writer may have begun; Timeout is an OSError
            path.unlink(missing_ok=True)

    return remove


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _notes(config: StudyConfig, slots: Slots) -> list[str]:
    """What lies beside it and may be another study's."""
    found = []
    for folder in _files(config.checkpoints_dir):
        is_study = re.fullmatch("[0-9a-f]{32}", folder.name) is not None
        if is_study and folder.name != slots.study_id:
            found.append(f"{folder}: of a study '{config.name}' in another database; left alone")
    ours = {store_path(config.data.work_dir, side) for side in config.sides_px}
    for path in _files(store_path(config.data.work_dir, 0).parent):
        if path.suffix == ".npy" and not path.name.startswith(".") and path not in ours:
            found.append(f"{path}: not read by this study, perhaps by another; left alone")
    return found
