"""How MLflow's store is opened, asked, and blamed in one line."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from deepfake.errors import one_line
from deepfake.files import whole
from study.tracking.store import (
    WEIGHTS,
    LoggedExperiment,
    LoggedRun,
    TrackingError,
    deleted_line,
    sqlite_path,
)

OPEN_S = 120.0  # another process may be creating MLflow's tables
REMOVED = ("weights", "removed by gc")  # a run's tag
AWAY = (MlflowException, OSError, SQLAlchemyError, sqlite3.Error)


@contextmanager
def tables(uri: str) -> Iterator[None]:
    """MLflow's tables in a plain SQLite file are created by one process: of 8 at once, 7 fail."""
    if (sqlite := sqlite_path(uri)) is None:
        yield
        return
    sqlite.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(sqlite)) as probe:  # MLflow retries for minutes
        probe.execute("PRAGMA schema_version")
    with FileLock(f"{sqlite}.lock", timeout=OPEN_S):
        if sqlite.stat().st_size == 0:
            _create_tables(sqlite)
        yield


def _create_tables(sqlite: Path) -> None:
    """Whole or not at all: MLflow never mends tables that a kill left half made."""
    with whole(sqlite) as unfinished:
        MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments(max_results=1)


def search_runs(client: MlflowClient, experiment_id: str, study_id: str, where: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        ours = f"tags.study_id = '{study_id}' and {where}"
        page = client.search_runs([experiment_id], ours, page_token=token)
        found += page
        if not (token := page.token):
            return found


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """TrackingError, one line, for whatever goes wrong between here and MLflow."""
    try:
        yield
    except AWAY as error:
        raise TrackingError(f"tracking.uri: {uri}: {in_one_line(error)}") from None


def refuse_deleted(experiment: Experiment, uri: str) -> None:
    """Raises MlflowException with the way to have it back."""
    if experiment.lifecycle_stage == "deleted":
        raise MlflowException(deleted_line(logged_experiment(experiment), uri))


def logged_experiment(found: Experiment) -> LoggedExperiment:
    deleted = found.lifecycle_stage == "deleted"
    return LoggedExperiment(str(found.experiment_id), str(found.name), deleted)


def logged_run(run: Run) -> LoggedRun:
    return LoggedRun(str(run.info.run_id), str(run.info.status), dict(run.data.tags))


def in_one_line(error: Exception) -> str:
    """One line of what MLflow raises."""
    if isinstance(error, MlflowException) and isinstance(error.__context__, OSError):
        return "the server does not answer"  # requests', whose words are half a page
    return one_line(error)


def preload() -> None:
    """Import what MLflow imports to open a SQLite store, which most studies have: a second."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


class ClientStore:
    """What a store says to MLflow's client: a server's, and whatever else it can open."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with reached(uri):
            self._client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str) -> LoggedExperiment | None:
        with reached(self._uri):
            found = self._client.get_experiment_by_name(name)
        return None if found is None else logged_experiment(found)

    def slot_runs(self, experiment_id: str, study_id: str) -> list[LoggedRun]:
        with reached(self._uri):
            found = search_runs(self._client, experiment_id, study_id, "tags.slot != ''")
        return [logged_run(run) for run in found]

    def weights_bytes(self, run_id: str) -> int:
        with reached(self._uri):
            folder = WEIGHTS.rpartition("/")[0]
            files = self._client.list_artifacts(run_id, folder)
            return sum(file.file_size or 0 for file in files if file.path == WEIGHTS)

    def is_registered(self, run_id: str) -> bool:
        with reached(self._uri):
            return bool(self._client.search_model_versions(f"run_id = '{run_id}'"))

    def remove_weights(self, run_id: str) -> None:
        """Raises TrackingError, also if the store can't."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with reached(self._uri):
            where = self._client.get_run(run_id).info.artifact_uri
            store = get_artifact_repository(where, tracking_uri=self._uri)
            self._client.set_tag(run_id, *REMOVED)  # first: a kill in between leaves no riddle
            store.delete_artifacts(WEIGHTS)
        if self.weights_bytes(run_id):  # not every kind of store deletes
            raise TrackingError(f"run {run_id}: {where} does not delete {WEIGHTS}")
