"""Fixtures that several test modules share."""

import os

# as the command line sets them: tests call its parts directly, and no network may be waited for
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from study.config.load import load_config
from study.config.schema import StudyConfig
from tests.support import postgres as postgres_server
from tests.support.mlflow_server import mlflow_server, session_mlflow_server  # noqa: F401  # fixtures
from tests.support.small_study import small_study  # noqa: F401  # a fixture

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Postgres]:
    """A PostgreSQL server for the session."""
    binaries = postgres_server.find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here (Debian: postgresql)")
    with postgres_server.running(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty study database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., StudyConfig]:
    """A study in tmp_path: make_config("study.n_trials=12", storage=url)."""

    def make(*overrides: str, storage: str | None = None) -> StudyConfig:
        own = [
            f"study.checkpoints_dir={tmp_path}/checkpoints",
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
            f"tracking.artifacts_dir={tmp_path}/artifacts",
            f"baselines={REPOSITORY}/configs/baselines.yaml",
            *(() if storage else (f"study.storage=sqlite:///{tmp_path}/study.db",)),
        ]
        return load_config(REPOSITORY / "configs/sample.yaml", [*own, *overrides], storage)

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Curves are bit-equal at one number of threads; for tiny models a second would only wait."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and no runs: creating them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
