"""Fixtures that several test modules share."""

import json
import multiprocessing
import os
import shutil
import sqlite3

# as the command line sets them: tests call its parts directly, and no network may be waited for
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.nodeid import NodeId

# torch, mlflow and the rest are imported by the tests: xdist's first process runs none
if TYPE_CHECKING:
    from study.config.schema import StudyConfig
    from tests.support import postgres as postgres_server
    from tests.support.mlflow_server import MlflowServer
    from tests.support.runs import Folder

REPOSITORY = Path(__file__).parents[1]
PROCESSES = 3  # one more than CI has cores: many tests wait for a lease, a beat or a server
LONGEST = (  # what begins with these comes first: no process ends long after the others
    "small study",
    "tests/e2e/test_readme.py",
    "tests/e2e/test_chaos.py",
    "tests/e2e/",
    "tests/study/launchers/",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """None beside this process for tests that were named: three would only begin later."""
    return PROCESSES if all(Path(argument).is_dir() for argument in config.args) else 0


def pytest_sessionfinish() -> None:
    """What a test that failed left running would slow the next ones, and outlive this."""
    for process in multiprocessing.active_children():
        process.kill()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What shares a fixture stays in one process, each other slow test is free to go to any."""
    if not config.getoption("loadgroup", False):
        return
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        if group != item.nodeid:  # xdist 3.8 itself writes this where pytest 9.2 reads no more
            item._id = NodeId.parse(f"{item.nodeid}@{group}")  # type: ignore[attr-defined]
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[bool, int]:
        group = groups[item]
        places = (place for place, name in enumerate(LONGEST) if group.startswith(name))
        return group not in slow, next(places, len(LONGEST))

    items.sort(key=turn)


def _group(item: pytest.Item) -> str:
    fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    if "small_study" in fixtures:
        return "small study"
    shared = {
        name for name, found in fixtures.items() if found[-1].scope not in ("function", "session")
    }
    if shared - {"one_thread"} or not item.get_closest_marker("slow"):
        return item.location[0]
    return item.nodeid


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> "Folder":
    """A small finished and evaluated study. Who changes it, puts it back."""
    from tests.support.small_study import make_small_study

    return make_small_study(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def evaluated(small_study: "Folder") -> dict[str, Any]:
    """What `evaluate --json` said of it, once for all that read it."""
    from tests.support.small_study import EVALUATED

    found: dict[str, Any] = json.loads((small_study.path / EVALUATED).read_text())
    return found


@pytest.fixture
def small_copy(small_study: "Folder", tmp_path: Path) -> "Folder":
    """The small study in tmp_path, to be changed."""
    return small_study.copied(tmp_path)


@pytest.fixture(scope="session")
def session_mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[MlflowServer]":
    from tests.support.mlflow_server import running

    with running(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server


@pytest.fixture
def mlflow_server(session_mlflow_server: "MlflowServer") -> "MlflowServer":
    """The session's server, running again if a test left it stopped.

    Studies in it need names of their own.
    """
    session_mlflow_server.start()
    return session_mlflow_server


@pytest.fixture(scope="session")
def postgres() -> "Iterator[postgres_server.Postgres]":
    """A PostgreSQL server for the session."""
    from tests.support import postgres as postgres_server

    binaries = postgres_server.find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here (Debian: postgresql)")
    with postgres_server.running(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty study database, of each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_study"), tmp_path / "study.db")
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def make_config(tmp_path: Path) -> "Callable[..., StudyConfig]":
    """A study in tmp_path: make_config("study.n_trials=12", storage=url)."""
    from study.config.load import load_config

    def make(*overrides: str, storage: str | None = None) -> "StudyConfig":
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--random-sets",
        type=int,
        help="so many data sets, other ones each time, for test_random_sets.py (default: 150)",
    )


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and no runs: creating them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study database with its tables and no study: creating them takes a third of a second."""
    from study.config.load import load_config
    from study.storage.rdb import open_storage

    path = tmp_path_factory.mktemp("study") / "study.db"
    overrides = [f"baselines={REPOSITORY}/configs/baselines.yaml"]
    config = load_config(REPOSITORY / "configs/sample.yaml", overrides, f"sqlite:///{path}")
    open_storage(config.study).engine.dispose()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it in the one file
    return path
