"""MLflow's SQLite store read without MLflow: what its client would say, or the client asked."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from study.config.schema import StudyConfig
from study.tracking.store import SqliteStore, StudyRuns, TrackingError, store_at

# killed amid a transaction of which a part is in the file already: its journal is left behind
KILLED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")
database.execute("UPDATE runs SET status = 'FAILED'")
for number in range(2000):
    database.execute("INSERT INTO tags VALUES ('k', ?, ?)", (str(number) * 40, f"{number:032}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def config(make_config: Callable[..., StudyConfig], empty_mlflow: Path) -> StudyConfig:
    """Its store has its experiment, and in it one run of slot 0."""
    config = make_config("name=looked-at")
    shutil.copy(empty_mlflow, sqlite_of(config))
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.create_experiment(config.name, config.tracking.artifacts_dir.as_uri())
    client.create_run(experiment, tags={"study_id": "a", "slot": "0"})
    return config


def sqlite_of(config: StudyConfig) -> Path:
    return Path(config.tracking.uri.removeprefix("sqlite:///"))


def test_what_a_killed_writer_left_half_written_is_rolled_back(config: StudyConfig) -> None:
    sqlite = sqlite_of(config)
    subprocess.run([sys.executable, "-c", KILLED, str(sqlite)], check=False)
    assert Path(f"{sqlite}-journal").stat().st_size > 0
    assert isinstance(store_at(config.tracking.uri), SqliteStore)
    runs = StudyRuns.of(config, "a")
    assert runs is not None
    assert [(run.tags["slot"], run.status) for run in runs.runs()] == [("0", "RUNNING")]


def test_tables_of_another_mlflow_are_left_to_its_client(
    config: StudyConfig, tmp_path: Path
) -> None:
    other = Path(shutil.copy(sqlite_of(config), tmp_path / "other.db"))
    with closing(sqlite3.connect(other)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'of-tomorrow'")
    with pytest.raises(TrackingError, match="out-of-date database schema") as caught:
        store_at(f"sqlite:///{other}")
    assert "\n" not in str(caught.value)


def test_a_run_that_is_gone_has_no_weights(config: StudyConfig) -> None:
    assert store_at(config.tracking.uri).weights_bytes("gone") == 0
