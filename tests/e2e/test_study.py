"""Whole studies with real worker processes on SQLite and MLflow stores."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from deepfake.data.prepare import prepare_data
from study.config.load import load_config
from study.slots.study import create_or_join
from study.worker.inputs import Inputs
from study.worker.setup import study_fingerprint
from tests.support.exact import holders
from tests.support.runs import Folder

pytestmark = pytest.mark.slow


def runs_of(folder: Folder) -> tuple[list[Run], list[Run]]:
    """The parent runs and the slots' runs, as MLflow has them."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    experiments = client.search_experiments(filter_string="name = 'sample'")
    runs = client.search_runs([experiment.experiment_id for experiment in experiments])
    children = [run for run in runs if "slot" in run.data.tags]
    return [run for run in runs if "slot" not in run.data.tags], children


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def checkpoints(folder: Folder) -> list[Path]:
    return list((folder.path / "mlruns/checkpoints").rglob("slot_*/e*.pt"))


def test_workers_started_before_the_data_wait_for_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=1")
    worker = folder.start("worker")
    wait_for(lambda: "waiting: " in worker.said())
    assert folder.call("prepare").returncode == 0
    _, errors = worker.communicate(timeout=200)
    assert worker.returncode == 0, errors


LONG = ("study.n_trials=3", "train.max_epochs=6", "study.prune_patience=5")


def curve(folder: Folder, slot: int) -> dict[int, float]:
    _, children = runs_of(folder)
    run = next(run for run in children if run.data.tags["slot"] == str(slot))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    rows = client.get_metric_history(run.info.run_id, "val_loss")
    assert len({row.step for row in rows}) == len(rows)  # no epoch twice
    return {row.step: row.value for row in rows}


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, *LONG)
    run = folder.start("run", "--workers", "2")
    wait_for(lambda: len(checkpoints(folder)) > 0)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "stopped; continue with: deepfake-study run" in errors
    status = folder.json("status")
    assert status["slots"]["running"] == 0
    assert status["slots"]["failed"] == 0
    assert {child.info.status for child in runs_of(folder)[1]} <= {"SCHEDULED", "FINISHED"}

    again = folder.run("run", "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert folder.json("status")["slots"]["complete"] == 3


def test_a_worker_told_to_end_frees_its_slot(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, *LONG)
    assert folder.call("prepare").returncode == 0
    worker = folder.start_afresh("worker", "--device", "cpu")
    wait_for(lambda: len(checkpoints(folder)) > 0)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 128 + signal.SIGTERM, errors
    slots = folder.json("status")["slots"]
    assert (slots["running"], slots["failed"]) == (0, 0)


def test_a_worker_that_dies_is_replaced_and_its_slot_finished(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, *LONG)
    run = folder.start("run")
    wait_for(lambda: len(checkpoints(folder)) > 0)
    (worker,) = holders(folder).values()
    os.kill(worker, signal.SIGKILL)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "a worker died (exit code -9), another starts" in errors
    assert folder.json("status")["slots"]["complete"] == 3


def test_workers_end_cleanly_when_the_process_that_launched_them_is_killed(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path, 24, *LONG)
    run = folder.start("run")
    wait_for(lambda: len(checkpoints(folder)) > 0)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 30)
    assert folder.json("status")["slots"]["running"] == 0
    assert folder.run("run").returncode == 0


def test_new_begins_a_fresh_study_beside_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=1")
    monkeypatch.chdir(tmp_path)
    config = load_config(folder.config, folder.overrides)
    inputs = Inputs.load(config, prepare_data(config.data, config.sides_px))
    create_or_join(config, study_fingerprint(config, inputs))
    before = folder.json("status")
    done = folder.run("run", "--new")
    assert done.returncode == 0, done.stderr
    assert "study 'sample-2' has 3 of 3 slots to run" in done.stderr
    assert folder.json("status") == before
    assert folder.json("status", "--set", "name=sample-2")["slots"]["complete"] == 3
