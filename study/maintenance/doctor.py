"""`doctor`: what is wrong with a study, what would mend it, and what it mends itself."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from deepfake.data import load_prepared
from deepfake.errors import UserError
from deepfake.parallel import Progress
from study.config import StudyConfig, all_beside, fingerprint_of, redact
from study.maintenance.checks import Finding, checked, data, machine, packages
from study.maintenance.disk import Usage, usage
from study.slots import NoStudy, SlotRecord, Slots, join
from study.storage import has_tables
from study.tracking import (
    LoggedRun,
    Spool,
    StudyRuns,
    by_hand,
    check_tracking,
    differs,
    sqlite_path,
)

FIX = "deepfake-study doctor CONFIG --fix"
SYNC = "deepfake-study sync CONFIG"
LISTED = 3  # lost runs that are named one by one


@dataclass(frozen=True)
class Diagnosis:
    """All that doctor saw and did."""

    findings: list[Finding]
    mended: list[str] = field(default_factory=list)
    disk: list[Usage] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return all(finding.level != "wrong" for finding in self.findings)


def examine(
    config: StudyConfig, *, fix: bool = False, progress: Progress | None = None
) -> Diagnosis:
    """Check all that a study stands on; nothing is created, and nothing changed without fix.

    fix: first take back slots whose workers are gone, which takes as long as they must be silent,
    and give each MLflow run its true state. The findings are of what is left then.
    """
    said = f"study '{config.name}': the YAML is whole"
    found = [Finding("config", "ok", said)]
    found += checked("machine", lambda: machine(config))
    found += checked("machine", packages)
    found += checked("data", lambda: data(config, progress))
    mended: list[str] = []
    if fix:
        found += checked("study", lambda: _mend(config, mended))
    found += checked("study", lambda: _studies(config))
    return Diagnosis(found, mended, usage(config))


def _studies(config: StudyConfig) -> Iterator[Finding]:
    """The study and those of its reruns: their slots, and MLflow's runs of them."""
    if (missing := _no_tables(config)) is not None:
        yield missing
        yield from checked("mlflow", lambda: _reached(config))
        return
    known: list[Slots] = []
    try:
        known = _known(config)
    except UserError as error:  # MLflow is looked at all the same
        yield Finding("study", "wrong", str(error))
    else:
        if not known:
            what = f"no study '{config.name}' in the database yet"
            yield Finding("study", "note", what, "deepfake-study run CONFIG")
    for slots in known:
        with slots.impatient():
            yield from checked("study", lambda slots=slots: _slots(slots))  # type: ignore[misc]
    reached = checked("mlflow", lambda: _reached(config))
    yield from reached
    if all(finding.level != "wrong" for finding in reached):
        for slots in known:
            with slots.impatient():
                yield from checked("mlflow", lambda slots=slots: _runs(slots))  # type: ignore[misc]


def _no_tables(config: StudyConfig) -> Finding | None:
    """Said before the database is opened, which would create them."""
    url = config.study.storage.get_secret_value()
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with suppress(SQLAlchemyError, ImportError, ValueError):  # opening says it better
        if (is_file and not Path(parsed.database or "").is_file()) or not has_tables(url):
            begin = "deepfake-study run CONFIG"
            where = parsed.database if is_file else redact(url)
            return Finding("study", "note", f"{where}: no study was started here yet", begin)
    return None


def _known(config: StudyConfig) -> list[Slots]:
    """Of the study and those beside it, those that are there. Raises StorageError."""
    found = []
    for study in (config, *all_beside(config)):
        try:
            found.append(join(study))
        except NoStudy:
            continue
    return found


def _slots(slots: Slots) -> Iterator[Finding]:
    config, records = slots.config, slots.records()
    states = {state: sum(r.state == state for r in records) for state in ("complete", "running")}
    said = f"{len(records)} slots, {states['complete']} complete, {states['running']} running"
    yield Finding("study", "ok", f"study '{config.name}': {said}")
    if config.kind == "search":
        yield from checked("study", lambda: _fingerprint(slots))
    stale = slots.stale()
    for record in stale:
        what = f"study '{config.name}': slot {record.number} runs no more: its worker "
        what += f"{record.worker} is silent for longer than study.lease_s, {config.study.lease_s}"
        yield Finding("study", "wrong", what, f"the next worker takes it back, or {FIX}", True)
    if states["running"] and not stale:
        yield Finding("study", "ok", f"study '{config.name}': every running slot's worker beats")


def _fingerprint(slots: Slots) -> Iterator[Finding]:
    theirs = slots.attributes()["fingerprint"]
    # of the pretrained weights no word: to hash them, they may have to be downloaded
    weights_sha256 = theirs["train.weights (sha256)"]
    slots.refuse_other(
        fingerprint_of(slots.config, load_prepared(slots.config.data), weights_sha256)
    )
    yield Finding("study", "ok", "data and settings are those the study was created with")


def _reached(config: StudyConfig) -> Iterator[Finding]:
    uri = config.tracking.uri
    sqlite = sqlite_path(uri)
    if sqlite is None:
        if (away := check_tracking(config)) is not None:
            remedy = f"start the server, then deliver what waits: {SYNC}"
            yield Finding("mlflow", "wrong", away, remedy)
            return
    elif not sqlite.is_file():
        yield Finding("mlflow", "note", f"{sqlite}: not there yet; the first run creates it")
        return
    StudyRuns.of(config, "")  # raises what hinders it
    yield Finding("mlflow", "ok", f"{uri} answers")


def _runs(slots: Slots) -> Iterator[Finding]:
    config = slots.config
    logged = StudyRuns.of(config, slots.study_id)
    runs = [] if logged is None else logged.runs()
    records = slots.records()
    spool = Spool.of(config, slots.study_id)
    undelivered = {journal.slot for journal in spool.journals() if journal.pending}
    found = [
        *_unlike(runs, records, undelivered),
        *_unmatched(runs, records, undelivered, config.tracking.uri),
    ]
    if waiting := spool.pending():
        running = any(record.state == "running" for record in records)
        what = f"study '{config.name}': {waiting} entries wait for MLflow in {spool.folder}"
        found.append(Finding("mlflow", "note" if running else "wrong", what, SYNC))
    if not found:
        said = f"study '{config.name}': {len(runs)} runs, each in its slot's state"
        found.append(Finding("mlflow", "ok", said))
    yield from found


def _unlike(
    runs: list[LoggedRun], records: list[SlotRecord], undelivered: set[int]
) -> Iterator[Finding]:
    """Runs in another state than their slot, but for slots of which more is to be delivered."""
    for run in runs:
        number = int(run.tags["slot"])
        if number in undelivered or number >= len(records):
            continue
        if differs(run, records[number]):
            state = records[number].state
            what = f"run {run.run_id} of slot {number} is {run.status}, the slot is {state}"
            yield Finding("mlflow", "wrong", what, f"{SYNC}, or {FIX}", True)


def _unmatched(
    runs: list[LoggedRun], records: list[SlotRecord], undelivered: set[int], uri: str
) -> Iterator[Finding]:
    numbers = [int(run.tags["slot"]) for run in runs]
    for number in sorted(set(numbers)):
        if number >= len(records):
            what = f"MLflow has a run of slot {number}, the study has {len(records)} slots"
            yield Finding("mlflow", "note", what, "delete it in MLflow if it is of no use")
        if (count := numbers.count(number)) > 1:
            what = f"slot {number} has {count} runs in MLflow"
            yield Finding("mlflow", "note", what, f"{SYNC} keeps the one that was written to")
    missing = [
        record
        for record in records
        if record.finished and record.number not in numbers and record.number not in undelivered
    ]
    for record in missing:
        if record.run_id is None:
            lost = record.state == "complete"  # others may have ended before they began
            what = f"slot {record.number} is {record.state} and has no run: nothing was said of it"
            again = _train_again(record) if lost else None
            yield Finding("mlflow", "wrong" if lost else "note", what, again)
    yield from _lost([record for record in missing if record.run_id is not None], uri)


def _train_again(record: SlotRecord) -> str:
    assert record.params is not None
    params = ",".join(f"{name}={value}" for name, value in record.params.model_dump().items())
    enqueue = f"deepfake-study enqueue CONFIG --params {params}"
    return f"its weights are lost: train the same parameters again with: {enqueue}"


def _lost(records: list[SlotRecord], uri: str) -> Iterator[Finding]:
    """Slots whose run MLflow had once."""
    if len(records) > LISTED:  # its database is, most likely: not a line for each
        first = records[0]
        what = f"runs of {len(records)} slots are not in MLflow any more, the first that of slot "
        remedy = "put MLflow's database back, or set tracking.uri to where they are; runs that "
        remedy += f"were deleted: {by_hand(uri, f'runs restore --run-id {first.run_id}')}"
        yield Finding("mlflow", "wrong", f"{what}{first.number}", remedy)
        return
    for record in records:
        what = f"run {record.run_id} of slot {record.number} is not in MLflow any more"
        restore = by_hand(uri, f"runs restore --run-id {record.run_id}")
        yield Finding("mlflow", "wrong", what, restore)


def _mend(config: StudyConfig, mended: list[str]) -> Iterator[Finding]:
    """Stale slots and states of runs; what was done is added to mended."""
    from study.tracking import Replay  # writes to MLflow, whose imports take seconds

    if _no_tables(config) is not None:
        return
    try:
        known = _known(config)
    except UserError:  # said when the findings are gathered
        return
    for slots in known:
        name = slots.config.name
        with slots.impatient():
            for record in slots.free_stale():
                mended.append(f"study '{name}': slot {record.number} taken back: {record.worker}")
        try:
            if StudyRuns.of(slots.config, slots.study_id) is None:
                continue
            replay = Replay(slots.config, slots, Spool.of(slots.config, slots.study_id))
            if count := replay.reconcile():
                mended.append(f"study '{name}': {count} runs set to their slots' states")
        except UserError as error:
            yield Finding("mlflow", "wrong", f"not mended: {error}")
