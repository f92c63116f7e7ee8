"""MLflow's store as it is looked at: without MLflow, whose imports take seconds, where it can be.

A plain SQLite file is read directly; of a server its client asks.
"""

import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
    return said != (STATUS[record.state], record.state, reason_of(record))


def reason_of(record: SlotRecord) -> str:
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


class Looks(Protocol):
    """What can be asked of a store. Every method raises TrackingError."""

    def experiment(self, name: str) -> LoggedExperiment | None: ...

    def slot_runs(self, experiment_id: str, study_id: str) -> list[LoggedRun]:
        """More than one of a slot if there are."""

    def weights_bytes(self, run_id: str) -> int:
        """0 if the run has none."""

    def is_registered(self, run_id: str) -> bool:
        """Whether a model of the registry came from the run."""

    def remove_weights(self, run_id: str) -> None:
        """For good; the run says so in a tag."""


class Shelf:
    """The experiment of one study, if there is one: a Tracker would create it."""

    def __init__(self, looks: Looks, experiment_id: str, study_id: str) -> None:
        self.experiment_id = experiment_id
        self.study_id = study_id
        self.weights_bytes = looks.weights_bytes
        self.is_registered = looks.is_registered
        self.remove_weights = looks.remove_weights
        self._looks = looks

    @classmethod
    def of(cls, config: StudyConfig, study_id: str) -> Self | None:
        """None if the study has no experiment there; TrackingError if it was deleted, too."""
        uri = config.tracking.uri
        looks = looks_of(uri)
        experiment = looks.experiment(config.name)
        if experiment is None:
            return None
        if experiment.deleted:
            raise TrackingError(f"tracking.uri: {uri}: {deleted_line(experiment, uri)}")
        return cls(looks, experiment.experiment_id, study_id)

    def runs(self) -> list[LoggedRun]:
        """Of slots, more than one of a slot if there are. Raises TrackingError."""
        return self._looks.slot_runs(self.experiment_id, self.study_id)


def looks_of(uri: str) -> Looks:
    if (sqlite := sqlite_path(uri)) is not None:
        return SqliteLooks(sqlite, uri)
    from study.tracking.client import ClientLooks  # with all of MLflow

    return ClientLooks(uri)


class SqliteLooks:
    """MLflow's own tables, read."""

    def __init__(self, sqlite: Path, uri: str) -> None:
        self._sqlite = sqlite
        self._uri = uri

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
            "SELECT runs.run_uuid, runs.status FROM runs"
            " JOIN tags AS study ON study.run_uuid = runs.run_uuid AND study.key = 'study_id'"
            " JOIN tags AS slot ON slot.run_uuid = runs.run_uuid AND slot.key = 'slot'"
            " WHERE runs.experiment_id = ? AND runs.lifecycle_stage = 'active'"
            " AND study.value = ? AND slot.value != ''"
            " ORDER BY runs.start_time DESC, runs.run_uuid",
            int(experiment_id),
            study_id,
        )
        return [LoggedRun(run_id, status, self._tags(run_id)) for run_id, status in found]

    def weights_bytes(self, run_id: str) -> int:
        found = self._rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
        place = urlsplit(found[0][0])
        if place.scheme not in ("", "file"):
            return self._by_client().weights_bytes(run_id)
        weights = Path(unquote(place.path)) / WEIGHTS
        return weights.stat().st_size if weights.is_file() else 0

    def is_registered(self, run_id: str) -> bool:
        query = (
            "SELECT 1 FROM model_versions WHERE run_id = ? AND current_stage != 'Deleted_Internal'"
        )
        return bool(self._rows(query, run_id))

    def remove_weights(self, run_id: str) -> None:
        self._by_client().remove_weights(run_id)  # a tag is written, too

    def _by_client(self) -> Looks:
        from study.tracking.client import ClientLooks  # with all of MLflow

        return ClientLooks(self._uri)

    def _tags(self, run_id: str) -> dict[str, str]:
        return dict(self._rows("SELECT key, value FROM tags WHERE run_uuid = ?", run_id))

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
    """To be read: nothing is created."""
    uri = f"{sqlite.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_S)
