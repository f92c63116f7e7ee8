"""Whatever dies: exactly the budget, nothing trained twice beyond one epoch a kill."""

import re
from pathlib import Path

import pytest

from tests.e2e.chaos import FREEZES, KILLS, SLOTS, Servers, chaos_folder, run_chaos
from tests.support.forked import Forked
from tests.support.mlflow_server import MlflowServer, store_image
from tests.support.postgres import Postgres
from tests.support.runs import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_study_of_killed_and_frozen_workers_ends_with_its_exact_budget(
    kind: str, tmp_path: Path, mlflow_server: MlflowServer, request: pytest.FixtureRequest
) -> None:
    server: Postgres | None = None
    storage = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgres":
        server = request.getfixturevalue("postgres")
        storage = server.new_database()
    folder = chaos_folder(tmp_path, f"chaos-{kind}", storage, mlflow_server.uri)
    counts = run_chaos(folder, Servers(mlflow_server, server), seed=0)

    wanted = {
        "kills": KILLS,
        "freezes": FREEZES,
        "mlflow_outages": 1,
        "postgres_crashes": 0 if server is None else 1,
        "slots": SLOTS,
        "finished": SLOTS,
        "finished_twice": 0,
        "baselines_complete": 3,
        "open_trials": 0,
        "epochs_beyond": 0,
        "runs": SLOTS,
        "runs_true": SLOTS,
        "parents_finished": 1,
        "open_runs": 0,
        "processes_left": 0,
        "files_left": [],
        "odd_exits": 0,
        "errors": [],
    }
    assert counts == counts | wanted
    assert counts["epochs_twice"] <= KILLS + FREEZES


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_sixteen_workers_begin_at_once_on_empty_stores(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    overrides = [f"name=sixteen-{kind}", "study.n_trials=16", "train.max_epochs=1"]
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    if kind == "postgres":
        uri = request.getfixturevalue("mlflow_server").uri
    folder = Folder(tmp_path, 24, *overrides, f"tracking.uri={uri}")
    if kind == "postgres":
        storage = request.getfixturevalue("postgres").new_database()
        folder.own_env["DEEPFAKE_STUDY_STORAGE"] = storage
    assert folder.call("prepare").returncode == 0
    workers = [Forked(folder, tmp_path / f"{n}.log", "worker") for n in range(16)]
    codes = [worker.wait() for worker in workers]
    logs = "".join(worker.said() for worker in workers)
    assert codes == [0] * 16, logs
    assert not re.search(r"ERROR|Traceback|error", logs), logs

    status = folder.json("status")
    assert status["slots"]["complete"] + status["slots"]["pruned"] == status["n_trials"] == 16
    finished = re.findall(r"slot (\d+) (?:complete|pruned)", logs)
    assert sorted(map(int, finished)) == list(range(16))  # each once, by one worker
    image = store_image(uri, f"sixteen-{kind}")
    assert [run["status"] for run in image["parent"]] == ["FINISHED"]
    assert list(image["slots"]) == list(range(16))
    assert {len(runs) for runs in image["slots"].values()} == {1}
