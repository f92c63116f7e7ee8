"""The experiment and the parent run of a study, and what is read from its runs."""

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from study.config.schema import StudyConfig
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.tracking.delivery import Replay
from study.tracking.spool import EPOCH_METRICS, Spool
from study.tracking.store import TrackingError
from study.tracking.tracker import Tracker
from tests.support.forked import Process
from tests.support.mlflow_server import MlflowServer, running, store_image
from tests.support.postgres import Postgres
from tests.support.recorded import WEIGHTS, start, train

MakeConfig = Callable[..., StudyConfig]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def slots(make_config: MakeConfig, empty_mlflow: Path, empty_study: Path, tmp_path: Path) -> Slots:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    shutil.copy(empty_study, tmp_path / "study.db")
    return create_or_join(make_config("study.n_trials=4"), {"study.seed": 0})


def client(slots: Slots) -> MlflowClient:
    return MlflowClient(tracking_uri=slots.config.tracking.uri)


def delivered(slots: Slots, slot: int, epochs: int) -> str:
    """The run of a slot that was trained and delivered."""
    spool = Spool.of(slots.config, slots.study_id)
    train(spool.run(slot, 0), epochs)
    Replay(slots.config, slots, spool).deliver_all()
    run_id = slots.records()[slot].run_id
    assert run_id is not None
    return run_id


def test_there_is_one_parent_run_however_many_trackers_open_the_study(slots: Slots) -> None:
    ids = {Tracker(slots.config, slots).parent_id for _ in range(3)}
    assert len(ids) == 1
    [parent] = store_image(slots.config.tracking.uri, slots.config.name)["parent"]
    assert (parent["name"], list(parent["artifacts"])) == ("sample", ["config.yaml"])


def test_what_a_run_has_is_read_back(slots: Slots) -> None:
    run_id = delivered(slots, 0, epochs=2)
    tracker = Tracker(slots.config, slots)
    history = tracker.history(run_id)
    assert set(history) == set(EPOCH_METRICS)
    assert history["val_loss"] == {0: 0.6, 1: 0.5}
    assert torch.equal(tracker.weights(run_id)["0.weight"], WEIGHTS["0.weight"])
    assert tracker.tags(run_id)["slot"] == "0"


def test_weights_that_are_gone_or_damaged_are_one_line(slots: Slots) -> None:
    run_id = delivered(slots, 0, epochs=1)
    tracker = Tracker(slots.config, slots)
    folder = Path(client(slots).get_run(run_id).info.artifact_uri.removeprefix("file://"))
    path = folder / "weights/best.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(TrackingError, match=f"run {run_id}: .* is damaged"):
        tracker.weights(run_id)
    path.unlink()
    with pytest.raises(TrackingError, match=f"run {run_id}: .* can't be read") as caught:
        tracker.weights(run_id)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match=r"tracking\.uri: .*not found"):
        tracker.tags("0" * 32)


def test_weights_that_are_a_pickle_are_never_loaded(slots: Slots, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    run_id = delivered(slots, 0, epochs=1)
    folder = Path(client(slots).get_run(run_id).info.artifact_uri.removeprefix("file://"))
    torch.save({"0.weight": Bomb()}, folder / "weights/best.safetensors")
    with pytest.raises(TrackingError, match="is damaged"):
        Tracker(slots.config, slots).weights(run_id)
    assert not (tmp_path / "exploded").exists()


def test_an_evaluation_said_twice_is_one_row(slots: Slots) -> None:
    run_id = delivered(slots, 0, epochs=1)
    tracker = Tracker(slots.config, slots)
    for _ in range(2):
        tracker.log_evaluation(run_id, "test", {"accuracy": 0.75}, {"figures.json": "{}"})
    rows = client(slots).get_metric_history(run_id, "test_accuracy")
    assert [(row.step, row.value) for row in rows] == [(0, 0.75)]
    [run] = store_image(slots.config.tracking.uri, slots.config.name)["slots"][0]
    assert "test/figures.json" in run["artifacts"]


def test_an_evaluation_that_mlflow_does_not_take_is_said(
    slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(slots.config, slots)
    tracker.log_evaluation("0" * 32, "test", {"accuracy": 0.75}, {})
    assert "not logged" in caplog.text


def test_a_store_that_cannot_be_opened_is_one_line(make_config: MakeConfig) -> None:
    config = make_config("tracking.uri=sqlite:////proc/nowhere/mlflow.db")
    slots = create_or_join(config, {})
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:////proc/nowhere") as caught:
        Tracker(config, slots)
    assert "\n" not in str(caught.value)


def say_parent(config: StudyConfig) -> None:
    print(Tracker(config, join(config)).parent_id)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_processes_that_open_an_empty_store_at_once_make_one_parent(
    store: str, make_config: MakeConfig, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    overrides = [
        f"name=many-{uuid.uuid4().hex[:8]}",
        f"baselines={REPOSITORY}/configs/baselines.yaml",
        f"study.storage=sqlite:///{tmp_path}/study.db",
        f"study.checkpoints_dir={tmp_path}/checkpoints",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"tracking.artifacts_dir={tmp_path}/artifacts",
    ]
    if store == "server":
        overrides.append(f"tracking.uri={request.getfixturevalue('mlflow_server').uri}")
    config = make_config(*overrides)
    create_or_join(config, {})
    processes = [Process(None, say_parent, config) for _ in range(4)]
    said = [process.communicate()[0].split()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(said)) == 1


@pytest.mark.slow
def test_a_server_on_postgresql_holds_what_one_on_sqlite_does(
    make_config: MakeConfig, mlflow_server: MlflowServer, postgres: Postgres, tmp_path: Path
) -> None:
    images = []
    with running(tmp_path, postgres.new_database()) as other:
        for number, server in enumerate((mlflow_server, other)):
            name = f"backend-{number}-{uuid.uuid4().hex[:8]}"
            config = make_config(f"name={name}", f"tracking.uri={server.uri}", "study.n_trials=4")
            delivered(create_or_join(config, {}), 0, epochs=3)
            images.append(store_image(server.uri, name))
    for image, number in zip(images, "01", strict=True):
        assert image["parent"][0].pop("name").startswith(f"backend-{number}")
    assert images[0] == images[1]


@pytest.mark.slow
def test_a_server_that_is_away_is_one_line_within_seconds(
    make_config: MakeConfig, mlflow_server: MlflowServer
) -> None:
    config = make_config(f"name=away-{uuid.uuid4().hex[:8]}", f"tracking.uri={mlflow_server.uri}")
    slots = create_or_join(config, {})
    replay = Replay(config, slots, Spool.of(config, slots.study_id))
    start(replay.spool.run(0, 0))
    mlflow_server.stop()
    began = time.monotonic()
    with pytest.raises(TrackingError, match=mlflow_server.uri) as caught:
        replay.deliver(0)
    assert time.monotonic() - began < 60  # not the minutes of MLflow's own retries
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match=mlflow_server.uri):
        Tracker(config, slots)
    mlflow_server.start()
    assert replay.deliver(0) == 2
