"""Finalists trained again by real workers, opened, compared: through the command line."""

import json
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from study.config.siblings import final_of
from study.evaluation.analysis import analyse
from study.evaluation.predictions import read_predictions
from study.slots.study import NoStudy, join
from tests.support.runs import Folder

pytestmark = pytest.mark.slow
SEEDS, ARMS = 2, 4  # the best and three baselines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study of its own, finished and not evaluated yet."""
    path = tmp_path_factory.mktemp("finalists")
    folder = Folder(path, 30, "name=finalists", "train.max_epochs=1", "study.n_trials=4")
    done = folder.run("run")
    assert done.returncode == 0, done.stderr
    return folder


def test_stopped_and_started_again_each_finalist_is_trained_once_with_each_seed(
    folder: Folder,
) -> None:
    options = ("--seeds", str(SEEDS), "--workers", "2", "--no-corruptions")
    stopped = folder.start("evaluate", *options)
    deadline = time.monotonic() + 120
    while not trained(folder):
        assert time.monotonic() < deadline
        assert stopped.poll() is None
        time.sleep(0.2)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert "continue with: deepfake-study evaluate" in said
    assert "openings" not in join(folder.study_config()).attributes()

    done = folder.run("evaluate", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    slots = join(final_of(folder.study_config()))
    records = slots.records()
    assert [record.state for record in records] == ["complete"] * SEEDS * ARMS
    assert len({record.rerun for record in records}) == SEEDS * ARMS
    trials = slots.study.get_trials(deepcopy=False)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == SEEDS * ARMS
    assert len(found["finalists"]) == SEEDS * ARMS
    by_model = {
        f["model"]: {g["weights_sha256"] for g in found["finalists"] if g["model"] == f["model"]}
        for f in found["finalists"]
    }
    assert all(len(weights) == SEEDS for weights in by_model.values())  # fresh seeds
    assert len(join(folder.study_config()).records()) == 4
    assert found["openings"] == 1


def trained(folder: Folder) -> int:
    """Epochs that finalists have reported so far."""
    try:
        return sum(len(r.losses) for r in join(final_of(folder.study_config())).records())
    except NoStudy:
        return 0


def test_compare_says_what_the_logged_table_says_to_anybody(
    folder: Folder, tmp_path: Path
) -> None:
    found = folder.json("compare")
    (best,) = (row for row in found["rows"] if row["source"] == "best")
    assert best["seeds"] == SEEDS
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("finalists")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.role = 'study'")
    table = client.download_artifacts(parent.info.run_id, "test/predictions.csv.gz", str(tmp_path))
    alone = asdict(analyse(read_predictions(Path(table)), folder.study_config().baselines))
    assert json.loads(json.dumps(alone)) == found["analysis"]
    verdicts = [comparison["verdict"] for comparison in alone["comparisons"]]
    assert verdicts == ["too few seeds"] * 3
    shown = " ".join(folder.call("compare").stdout.split())
    assert "too few seeds to tell" in shown


def test_another_list_is_a_second_opening_that_every_result_shows(folder: Folder) -> None:
    again = folder.json("evaluate", "--no-corruptions")  # the search's own trainings
    assert again["openings"] == 2
    assert "opened for 2 different lists" in " ".join(folder.call("compare").stdout.split())


def test_finalists_are_trained_on_the_device_that_was_named(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a machine with a GPU, which without --device every worker would take
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = ("--seeds", str(SEEDS + 1), "--device", "cpu", "--no-corruptions")
    done = folder.call("evaluate", *options)
    assert done.returncode == 0, done.stderr
    assert " ".join(options) in done.stderr  # the command that continues
    assert len(join(final_of(folder.study_config())).records()) == (SEEDS + 1) * ARMS


def test_a_worker_of_finalists_without_their_study_says_so(folder: Folder) -> None:
    folder_of_none = Folder(folder.path, 0, *folder.overrides[5:], "name=other")
    done = folder_of_none.run("worker", "--final", "--device", "cpu")
    assert done.returncode == 2
    assert "no study 'other-final' with slots yet; begin it with" in done.stderr
