"""The study database, MLflow and the disk go away in the middle: no epoch is lost."""

import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfake.training.checkpoint import Checkpoints
from study.slots.study import join
from tests.e2e.chaos import EPOCH
from tests.support.forked import Forked, wait_until
from tests.support.mlflow_server import MlflowServer, store_image
from tests.support.postgres import PASSWORD, Postgres
from tests.support.runs import Folder, without_frozen

pytestmark = pytest.mark.slow

AWAY_S = 20  # twice the lease, and it has run out


def prepared(path: Path, *overrides: str, n_photos: int = 24) -> Folder:
    folder = Folder(path, n_photos, *overrides)
    done = folder.call("prepare")
    assert done.returncode == 0, done.stderr
    return folder


def test_postgres_away_for_longer_than_a_lease_costs_four_running_trials_nothing(
    tmp_path: Path, postgres: Postgres
) -> None:
    folder = prepared(
        tmp_path,
        *without_frozen(tmp_path),
        "name=away",
        "study.n_trials=4",
        "train.max_epochs=6",
        "study.prune_patience=5",
        "study.heartbeat_s=5",
        "study.lease_s=10",
        n_photos=100,
    )
    folder.own_env["DEEPFAKE_STUDY_STORAGE"] = postgres.new_database()
    workers = [Forked(folder, tmp_path / f"{n}.log", "worker") for n in range(4)]
    wait_until(
        lambda: all(EPOCH.search(worker.said()) for worker in workers), "all four have trained"
    )
    slots = join(folder.study_config())
    assert [record.state for record in slots.records()] == ["running"] * 4
    try:
        postgres.stop()
        time.sleep(AWAY_S)
        assert [worker.returncode for worker in workers] == [None] * 4
    finally:
        postgres.start()
    assert [worker.wait() for worker in workers] == [0] * 4, workers[0].said()

    records = slots.records()
    assert [record.state for record in records] == ["complete"] * 4
    assert [record.attempt for record in records] == [0] * 4
    said = "".join(worker.said() for worker in workers)
    trained = Counter((int(slot), int(epoch)) for slot, _, epoch, _ in EPOCH.findall(said))
    assert trained == {(slot, epoch): 1 for slot in range(4) for epoch in range(6)}
    for worker in workers:
        assert "the study database is away" in worker.said()
        assert "the study database is back" in worker.said()
    assert PASSWORD not in said


def image_without_name(uri: str, study: str) -> dict[str, Any]:
    """What MLflow holds of a study, equal for equal studies of different names."""
    image = store_image(uri, study)
    assert [run.pop("name") for run in image["parent"]] == [study]
    return image


TRACKED = ("study.n_trials=4", "train.max_epochs=3", "study.prune_patience=2")


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, session_mlflow_server: MlflowServer
) -> dict[str, Any]:
    """What MLflow holds of a study whose server was always there."""
    session_mlflow_server.start()
    path, uri = tmp_path_factory.mktemp("undisturbed"), session_mlflow_server.uri
    folder = prepared(path, "name=undisturbed", f"tracking.uri={uri}", *TRACKED)
    worker = Forked(folder, path / "worker.log", "worker")
    assert worker.wait() == 0, worker.said()
    return image_without_name(uri, "undisturbed")


@pytest.mark.parametrize("dies", ["before it begins", "in the middle"])
def test_a_study_without_its_mlflow_server_goes_on_and_sync_brings_all_of_it(
    dies: str, tmp_path: Path, mlflow_server: MlflowServer, undisturbed: dict[str, Any]
) -> None:
    name = f"mlflow-dies-{dies.replace(' ', '-')}"
    folder = prepared(tmp_path, f"name={name}", f"tracking.uri={mlflow_server.uri}", *TRACKED)
    if dies == "before it begins":
        mlflow_server.stop()
    worker = Forked(folder, tmp_path / "worker.log", "worker")
    if dies == "in the middle":
        wait_until(lambda: "slot 1 attempt 0 epoch 0" in worker.said(), "slot 1 has an epoch")
        mlflow_server.stop()
    assert worker.wait() == 0, worker.said()
    assert folder.json("status")["slots"]["complete"] == 4
    assert "MLflow away" in worker.said()
    assert f"{folder.study_config().checkpoints_dir}" in worker.said()  # where the runs wait

    away = folder.call("sync")
    assert away.returncode == 2, away.stderr
    mlflow_server.start()
    back = folder.run_afresh("sync")
    assert back.returncode == 0, back.stderr
    assert image_without_name(mlflow_server.uri, name) == undisturbed


def assert_disk_full_costs_no_epoch(folder: Folder, full: Forked) -> None:
    """full: a worker in whose disk the checkpoint of slot 0's epoch 1 finds no place."""
    assert full.wait() == 2, full.said()
    plain = [line for line in full.said().splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    (line,) = plain  # all others are the log's
    assert re.search(r"slot_000/e0001\.a\d\.pt: the checkpoint can't be written: ", line)
    assert "; make room, or name another folder in study.checkpoints_dir" in line
    slots = join(folder.study_config())
    assert [record.state for record in slots.records()] == ["waiting"] * 3
    checkpoints = slots.config.checkpoints_dir / slots.study_id / "slot_000"
    assert [path.name for path in checkpoints.iterdir()] == ["e0000.a0.pt"]
    state = Checkpoints(checkpoints).load()
    assert state is not None
    assert [stats["epoch"] for stats in state["history"]] == [0]


def assert_it_goes_on(folder: Folder, log: Path) -> None:
    worker = Forked(folder, log, "worker")
    assert worker.wait() == 0, worker.said()
    said = EPOCH.findall(worker.said())
    assert [int(epoch) for slot, _, epoch, _ in said if slot == "0"] == [1, 2]
    assert folder.json("status")["slots"]["complete"] == 3


DISK = ("study.n_trials=3", "train.max_epochs=3", "study.heartbeat_s=1", "study.lease_s=2")
CHECKPOINT_BYTES = 25_000_000  # of the CNN at 32 px, at least; all else is smaller


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHECKPOINT_BYTES, CHECKPOINT_BYTES))


def test_a_file_that_may_not_grow_frees_the_slot_and_keeps_the_checkpoint_before(
    tmp_path: Path,
) -> None:
    folder = prepared(tmp_path / "study", *DISK, n_photos=100)
    first = Forked(folder, tmp_path / "first.log", "worker")
    wait_until(lambda: "slot 0 attempt 0 epoch 0" in first.said(), "slot 0 has an epoch")
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM, first.said()
    full = Forked(folder, tmp_path / "full.log", "worker", before=limit_files)
    assert_disk_full_costs_no_epoch(folder, full)
    assert_it_goes_on(folder, tmp_path / "last.log")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """With room for one checkpoint of the CNN."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_frees_the_slot_and_with_more_room_it_goes_on(
    tmp_path: Path, small_disk: Path
) -> None:
    checkpoints = f"study.checkpoints_dir={small_disk}"
    folder = prepared(tmp_path / "study", *DISK, checkpoints, n_photos=100)
    assert_disk_full_costs_no_epoch(folder, Forked(folder, tmp_path / "full.log", "worker"))
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    assert_it_goes_on(folder, tmp_path / "last.log")
