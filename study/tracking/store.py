"""MLflow's store as it is looked at: without MLflow, whose imports take seconds, where it can be.

A plain SQLite file is read directly; of a server its client asks.
"""

import importlib.util
import re
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import unquote, urlsplit

from deepfake.errors import UserError, one_line
from study.config import StudyConfig
from study.slots import SlotRecord, State

WEIGHTS = "weights/best.safetensors"  # of a run's artifacts
STATUS: dict[State, str] = {
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}
ANSWER_S = 2.0  # of a server that is well
_WAIT_S = 20.0  # for a SQLite file that another writes to


class TrackingError(UserError):
    """MLflow can't be reached, or has not what it should have."""


@dataclass(frozen=True)
class LoggedRun:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: dict[str, str]


@dataclass(frozen=True)
class LoggedExperiment:
    """An experiment as MLflow has it."""

    experiment_id: str
    name: str
    deleted: bool


def differs(run: LoggedRun, record: SlotRecord) -> bool:
    """Whether the run is in another state than the study database says."""
    said = (run.status, run.tags.get("state"), run.tags.get("reason", ""))
    return said != (STATUS[record.state], record.state, final_reason(record))


def final_reason(record: SlotRecord) -> str:
    """Why a slot ended as it did; empty while it has not."""
    return (record.reason or "") if record.finished else ""


def sqlite_path(uri: str) -> Path | None:
    """The file of a plain SQLite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def has_tables(sqlite: Path) -> bool:
    if not sqlite.is_file():
        return False
    with closing(_opened(sqlite)) as database:
        named = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
        return database.execute(named).fetchone() is not None


def by_hand(uri: str, arguments: str) -> str:
    """The command of MLflow's that a person has to type: without the store it makes one."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow {arguments}"


def deleted_line(experiment: LoggedExperiment, uri: str) -> str:
    """With the way to have it back."""
    restore = f"experiments restore --experiment-id {experiment.experiment_id}"
    return f"experiment '{experiment.name}' was deleted; restore it with: {by_hand(uri, restore)}"


def check_tracking(config: StudyConfig) -> str | None:
    """A warning if the MLflow server does not answer: the study can run without it.

    Raises TrackingError for a plain SQLite store that can't be written: nothing would mend it.
    """
    uri = config.tracking.uri
    if (sqlite := sqlite_path(uri)) is None:
        url = urlsplit(uri)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            socket.create_connection((url.hostname or "", port), timeout=ANSWER_S).close()
        except OSError as error:
            return f"tracking.uri: {uri} does not answer ({error}); the study goes on, runs wait"
        return None
    artifacts = config.tracking.artifacts_dir
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"tracking.artifacts_dir: {artifacts}: {error.strerror}; name a folder that can be "
            "written"
        ) from None
    try:
        sqlite.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(sqlite, timeout=0.1)) as probe:
            probe.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        if "locked" not in str(error):  # another writes it: it can be written
            raise TrackingError(
                f"tracking.uri: {uri}: {one_line(error, path=False)}; name another file, or a "
                "server's http://host:port"
            ) from None
    return None


class Store(Protocol):
    """What can be asked of MLflow's store. Every method raises TrackingError."""

    def experiment(self, name: str) -> LoggedExperiment | None: ...

    def slot_runs(self, experiment_id: str, study_id: str) -> list[LoggedRun]:
        """More than one of a slot if there are."""

    def weights_bytes(self, run_id: str) -> int:
        """0 if the run has none."""

    def is_registered(self, run_id: str) -> bool:
        """Whether a model of the registry came from the run."""

    def remove_weights(self, run_id: str) -> None:
        """For good; the run says so in a tag."""


class StudyRuns:
    """The runs of one study, if it has an experiment: a Tracker would create one."""

    def __init__(self, store: Store, experiment_id: str, study_id: str) -> None:
        self.experiment_id = experiment_id
        self.study_id = study_id
        self.weights_bytes = store.weights_bytes
        self.is_registered = store.is_registered
        self.remove_weights = store.remove_weights
        self._store = store

    @classmethod
    def of(cls, config: StudyConfig, study_id: str) -> Self | None:
        """None if the study has no experiment there; TrackingError if it was deleted, too."""
        uri = config.tracking.uri
        store = store_at(uri)
        experiment = store.experiment(config.name)
        if experiment is None:
            return None
        if experiment.deleted:
            raise TrackingError(f"tracking.uri: {uri}: {deleted_line(experiment, uri)}")
        return cls(store, experiment.experiment_id, study_id)

    def runs(self) -> list[LoggedRun]:
        """Of slots, more than one of a slot if there are. Raises TrackingError."""
        return self._store.slot_runs(self.experiment_id, self.study_id)


def store_at(uri: str) -> Store:
    """Raises TrackingError."""
    if (sqlite := sqlite_path(uri)) is not None:
        store = SqliteStore(sqlite, uri)
        if store.revision() in (None, installed_revision()):
            return store
    from study.tracking.client import ClientStore  # with all of MLflow

    return ClientStore(uri)


def installed_revision() -> str:
    """Of the tables that the installed MLflow makes: of its migrations, the one none builds on."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0], "store/db_migrations/versions")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    made = set(re.findall(r"^revision\b.*?= *[\"'](\w+)", text, re.MULTILINE))
    built_on = " ".join(re.findall(r"^down_revision\b.*?=(.*)", text, re.MULTILINE))
    return ", ".join(made - set(re.findall(r"\w+", built_on)))


class SqliteStore:
    """MLflow's own tables, read; where they are those of the MLflow that is installed."""

    def __init__(self, sqlite: Path, uri: str) -> None:
        self._sqlite = sqlite
        self._uri = uri

    def revision(self) -> str | None:
        """Of its tables; None before there are any."""
        with self._asked():
            if not has_tables(self._sqlite):
                return None
        return ", ".join(name for (name,) in self._rows("SELECT version_num FROM alembic_version"))

    def experiment(self, name: str) -> LoggedExperiment | None:
        with self._asked():
            if not has_tables(self._sqlite):
                return None
        found = self._rows(
            "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?", name
        )
        for experiment_id, stage in found:
            return LoggedExperiment(str(experiment_id), name, stage == "deleted")
        return None

    def slot_runs(self, experiment_id: str, study_id: str) -> list[LoggedRun]:
        found = self._rows(
            "SELECT runs.run_uuid, runs.status, tags.key, tags.value FROM runs"
            " JOIN tags ON tags.run_uuid = runs.run_uuid"
            " JOIN tags AS study ON study.run_uuid = runs.run_uuid AND study.key = 'study_id'"
            " JOIN tags AS slot ON slot.run_uuid = runs.run_uuid AND slot.key = 'slot'"
            " WHERE runs.experiment_id = ? AND runs.lifecycle_stage = 'active'"
            " AND study.value = ? AND slot.value != ''"
            " ORDER BY runs.start_time DESC, runs.run_uuid",
            int(experiment_id),
            study_id,
        )
        return [
            LoggedRun(run_id, status, {key: value for *_, key, value in rows})
            for (run_id, status), rows in groupby(found, itemgetter(0, 1))
        ]

    def weights_bytes(self, run_id: str) -> int:
        for (uri,) in self._rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id):
            place = urlsplit(uri)
            if place.scheme not in ("", "file"):
                return self._client.weights_bytes(run_id)
            weights = Path(unquote(place.path)) / WEIGHTS
            with self._asked():
                return weights.stat().st_size if weights.is_file() else 0
        return 0

    def is_registered(self, run_id: str) -> bool:
        query = (
            "SELECT 1 FROM model_versions WHERE run_id = ? AND current_stage != 'Deleted_Internal'"
        )
        return bool(self._rows(query, run_id))

    def remove_weights(self, run_id: str) -> None:
        self._client.remove_weights(run_id)  # a tag is written, too

    @cached_property
    def _client(self) -> Store:
        from study.tracking.client import ClientStore  # with all of MLflow

        return ClientStore(self._uri)

    def _rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._asked(), closing(_opened(self._sqlite)) as database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise TrackingError(f"tracking.uri: {self._uri}: {one_line(error)}") from None


def _opened(sqlite: Path) -> sqlite3.Connection:
    """Nothing is created; rw, for what a killed writer left unfinished is rolled back first."""
    uri = f"{sqlite.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_S)
