"""What an exact budget is: every slot finished once, in the study database and in MLflow."""

import time
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from study.slots.slots import Slots
from study.slots.study import NoStudy, join
from study.storage.retry import StorageError
from tests.support.runs import Folder


def assert_exact(folder: Folder, n_trials: int) -> dict[str, Any]:
    """The status of a study that is over: n_trials slots finished, one true run each."""
    synced = folder.call("sync")
    assert synced.returncode == 0, synced.stderr
    status = folder.json("status")
    slots = status["slots"]
    assert (slots["waiting"], slots["running"], slots["failed"]) == (0, 0, 0)
    assert slots["complete"] + slots["pruned"] == status["n_trials"] == n_trials
    assert {baseline["state"] for baseline in status["baselines"]} == {"complete"}

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    experiments = client.search_experiments(filter_string=f"name = '{status['name']}'")
    runs = client.search_runs([experiment.experiment_id for experiment in experiments])
    children = {run.data.tags["slot"]: run for run in runs if "slot" in run.data.tags}
    assert len(runs) == 1 + n_trials  # the parent's
    assert sorted(map(int, children)) == list(range(n_trials))
    true = {"complete": "FINISHED", "pruned": "KILLED"}
    for record in open_slots(folder).records():
        assert children[str(record.number)].info.status == true[record.state]
    return status


def open_slots(folder: Folder) -> Slots:
    return join(folder.study_config())


def holders(folder: Folder) -> dict[int, int]:
    """The process that has each running slot, by slot; none before the study begins."""
    try:
        records = open_slots(folder).records()
    except (NoStudy, StorageError):
        return {}
    return {
        record.number: int(record.worker.rpartition(":")[2])
        for record in records
        if record.state == "running" and record.worker
    }


def wait_for(condition: Callable[[], Any], timeout_s: float = 180) -> Any:
    """What condition returns, once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found
