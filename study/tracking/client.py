"""How MLflow's store is opened, asked, and blamed in one line."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from deepfake.errors import one_line
from deepfake.files import whole
from study.config import TrackingError

OPEN_S = 120.0  # another process may be creating MLflow's tables
AWAY = (MlflowException, OSError, SQLAlchemyError, sqlite3.Error)


@dataclass(frozen=True)
class LoggedRun:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: dict[str, str]


def sqlite_path(uri: str) -> Path | None:
    """The file of a plain SQLite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


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


def has_tables(sqlite: Path) -> bool:
    if not sqlite.is_file():
        return False
    with closing(sqlite3.connect(f"{sqlite.as_uri()}?mode=ro", uri=True)) as probe:
        named = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
        return probe.execute(named).fetchone() is not None


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
        raise TrackingError(f"tracking.uri: {uri}: {reason_of(error)}") from None


def by_hand(uri: str, arguments: str) -> str:
    """The command of MLflow's that a person has to type: without the store it makes one."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow {arguments}"


def refuse_deleted(experiment: Experiment, uri: str) -> None:
    """Raises MlflowException with the way to have it back."""
    if experiment.lifecycle_stage == "deleted":
        restore = f"experiments restore --experiment-id {experiment.experiment_id}"
        raise MlflowException(
            f"experiment '{experiment.name}' was deleted; restore it with: {by_hand(uri, restore)}"
        )


def logged_run(run: Run) -> LoggedRun:
    return LoggedRun(str(run.info.run_id), str(run.info.status), dict(run.data.tags))


def reason_of(error: Exception) -> str:
    """One line of what MLflow raises."""
    if isinstance(error, MlflowException) and isinstance(error.__context__, OSError):
        return "the server does not answer"  # requests', whose words are half a page
    return one_line(error)
