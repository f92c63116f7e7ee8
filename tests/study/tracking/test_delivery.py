"""The thread that carries the spool to MLflow, and `sync`: real stores, real outages."""

import logging
import shlex
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from study.config.load import load_config
from study.config.schema import StudyConfig
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.tracking.delivery import Delivery, sync
from study.tracking.spool import Spool
from study.tracking.store import TrackingError, check_tracking
from tests.support.mlflow_server import MlflowServer, store_image
from tests.support.recorded import LABELS, result, start, stats, train
from tests.support.runs import Folder

MakeConfig = Callable[..., StudyConfig]
WAIT_S = 120  # the machine may be shared
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.fixture
def slots(make_config: MakeConfig, empty_mlflow: Path, empty_study: Path, tmp_path: Path) -> Slots:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    shutil.copy(empty_study, tmp_path / "study.db")
    config = make_config("study.n_trials=4", "study.heartbeat_s=1", "study.lease_s=2")
    return create_or_join(config, {})


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def spool_of(slots: Slots) -> Spool:
    return Spool.of(slots.config, slots.study_id)


def image(slots: Slots) -> dict[str, Any]:
    """What the store holds, without the name, which each study has of its own."""
    found = store_image(slots.config.tracking.uri, slots.config.name)
    for parent in found["parent"]:
        parent.pop("name")
    return found


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def finish(slots: Slots) -> None:
    """Tell the study that every slot is complete."""
    while (slot := slots.claim("host:1")) is not None:
        slots.report(slot, 0, 0.6)
        slots.complete(slot, 0.6)


def test_what_a_slot_says_arrives_while_training_goes_on(slots: Slots) -> None:
    with Delivery(slots.config, slots, spool_of(slots)) as delivery:
        run = delivery.spool.run(0, 0)
        start(run)
        run.log_epoch(stats(0, 0.6))
        eventually(lambda: slots.records()[0].run_id is not None)
        eventually(lambda: delivery.spool.pending() == 0)
        run_id = slots.records()[0].run_id
        client = MlflowClient(tracking_uri=slots.config.tracking.uri)
        assert client.get_run(run_id).info.status == "RUNNING"
        run.end("complete", None)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert delivery.spool.journals() == []


@pytest.mark.slow
def test_what_a_dead_worker_left_is_delivered_once_it_was_silent_for_a_lease(
    slots: Slots,
) -> None:
    train(spool_of(slots).run(0, 0), epochs=2)
    with Delivery(slots.config, slots, spool_of(slots)) as delivery:
        eventually(lambda: delivery.spool.journals() == [])
    assert len(image(slots)["slots"][0]) == 1


@pytest.mark.slow
def test_a_live_workers_journal_is_left_to_it_until_the_study_ends(
    make_config: MakeConfig, empty_mlflow: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    slots = create_or_join(make_config("study.n_trials=3", "study.lease_s=600"), {})
    train(spool_of(slots).run(0, 0), epochs=1)
    with Delivery(slots.config, slots, spool_of(slots)) as delivery:
        train(delivery.spool.run(1, 0), epochs=1)
        eventually(lambda: delivery.spool.pending(1) == 0)
    assert delivery.spool.pending(0) > 0
    finish(slots)
    with Delivery(slots.config, slots, spool_of(slots)) as delivery:
        delivery.study_ended()
    assert not delivery.spool.folder.exists()
    found = image(slots)
    assert sorted(found["slots"]) == [0, 1]
    assert [parent["status"] for parent in found["parent"]] == ["FINISHED"]


def test_at_the_studys_end_the_run_of_a_killed_worker_gets_its_true_state(slots: Slots) -> None:
    start(spool_of(slots).run(0, 0))  # killed behind its last word to the study
    finish(slots)
    with Delivery(slots.config, slots, spool_of(slots)) as delivery:
        delivery.study_ended()
    [run] = image(slots)["slots"][0]
    assert (run["status"], run["tags"]["state"]) == ("FINISHED", "complete")


@pytest.mark.slow
def test_a_store_that_can_never_be_opened_is_a_warning_and_the_rest_waits(
    make_config: MakeConfig, said: pytest.LogCaptureFixture
) -> None:
    config = make_config("tracking.uri=sqlite:////proc/nowhere/mlflow.db")
    slots = create_or_join(config, {})
    with Delivery(config, slots, spool_of(slots), drain_s=1) as delivery:
        train(delivery.spool.run(0, 0), epochs=2)
        eventually(lambda: "MLflow away" in said.text)
    assert said.text.count("MLflow away") == 1
    folder = delivery.spool.folder
    assert f"the study goes on, runs wait in {folder}" in said.text
    assert f"11 entries wait for MLflow in {folder}; deliver them with: deepfake-study sync" in (
        said.text
    )


def test_an_error_in_the_thread_does_not_reach_training(
    slots: Slots, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("study.tracking.delivery.Replay", broken)
    with Delivery(slots.config, slots, spool_of(slots), drain_s=1) as delivery:
        start(delivery.spool.run(0, 0))
        eventually(lambda: "runs are not delivered" in said.text)
    assert "2 entries wait for MLflow" in said.text


@pytest.mark.slow
def test_an_error_of_training_passes_through_and_is_not_held_up(
    make_config: MakeConfig, said: pytest.LogCaptureFixture
) -> None:
    config = make_config(f"tracking.uri={NOWHERE}")
    slots = create_or_join(config, {})

    def train_and_fail() -> None:
        with Delivery(config, slots, spool_of(slots), drain_s=600) as delivery:
            start(delivery.spool.run(0, 0))
            raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        train_and_fail()
    assert time.monotonic() - began < 60
    assert "2 entries wait for MLflow" in said.text
    assert "Retrying" not in said.text  # urllib3's own line a try


# outages of a real server


def served(make_config: MakeConfig, server: MlflowServer) -> Slots:
    overrides = [f"name=delivery-{uuid.uuid4().hex[:8]}", "study.n_trials=3"]
    overrides += ["study.heartbeat_s=1", "study.lease_s=2", f"tracking.uri={server.uri}"]
    return create_or_join(make_config(*overrides), {})


def study(slots: Slots, between: Callable[[int, int], None] = lambda slot, epoch: None) -> None:
    """A study of three slots of three epochs; between is called behind each epoch."""
    with Delivery(slots.config, slots, spool_of(slots), drain_s=3) as delivery:
        while (slot := slots.claim("host:1")) is not None:
            run = delivery.spool.run(slot.number, slot.attempt)
            start(run)
            for epoch in range(3):
                run.log_epoch(stats(epoch, 0.6 - epoch / 10))
                slots.report(slot, epoch, 0.6 - epoch / 10)
                between(slot.number, epoch)
            run.log_result(result(0.6, 0.5, 0.6 - 2 / 10), LABELS)
            slots.complete(slot, 0.6)
            run.end("complete", None)
        delivery.study_ended()


@pytest.fixture
def undisturbed(make_config: MakeConfig, mlflow_server: MlflowServer) -> dict[str, Any]:
    slots = served(make_config, mlflow_server)
    study(slots)
    found = image(slots)
    assert [len(runs) for runs in found["slots"].values()] == [1, 1, 1]
    return found


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_and_comes_back_is_told_all(
    make_config: MakeConfig,
    mlflow_server: MlflowServer,
    undisturbed: dict[str, Any],
    said: pytest.LogCaptureFixture,
) -> None:
    slots = served(make_config, mlflow_server)

    def outage(slot: int, epoch: int) -> None:
        if (slot, epoch) == (0, 1):
            eventually(lambda: slots.records()[0].run_id is not None)
            mlflow_server.stop()
        if (slot, epoch) == (1, 1):
            eventually(lambda: "MLflow away" in said.text)
            mlflow_server.start()
        if (slot, epoch) == (2, 1):
            eventually(lambda: "MLflow is back" in said.text)

    study(slots, outage)
    sync(slots.config)
    assert said.text.count("MLflow away") == said.text.count("MLflow is back") == 1
    assert image(slots) == undisturbed


# before a study, and the command


def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(
    make_config: MakeConfig,
) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:////proc/nowhere") as caught:
        check_tracking(make_config("tracking.uri=sqlite:////proc/nowhere/mlflow.db"))
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match="/proc/nowhere"):
        check_tracking(make_config("tracking.artifacts_dir=/proc/nowhere/artifacts"))


def test_a_store_that_can_be_written_is_not_spoken_of(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    assert check_tracking(config) is None
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as another:
        another.execute("BEGIN IMMEDIATE")  # busy, not broken
        assert check_tracking(config) is None


def test_a_server_that_does_not_answer_is_a_warning(make_config: MakeConfig) -> None:
    warning = check_tracking(make_config(f"tracking.uri={NOWHERE}"))
    assert warning is not None
    assert warning.startswith(f"tracking.uri: {NOWHERE} does not answer")


@pytest.mark.slow
def test_a_server_that_answers_is_not_spoken_of(
    make_config: MakeConfig, mlflow_server: MlflowServer
) -> None:
    assert check_tracking(make_config(f"tracking.uri={mlflow_server.uri}")) is None


@pytest.mark.slow
def test_sync_says_what_it_did_and_what_hinders_it(tmp_path: Path, empty_mlflow: Path) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    folder = Folder(
        tmp_path, 0, "study.n_trials=3", f"study.storage=sqlite:///{tmp_path}/study.db"
    )
    folder.overrides.append(f"study.checkpoints_dir={tmp_path}/checkpoints")
    away = folder.call("sync", "--set", f"tracking.uri={NOWHERE}")
    assert (away.returncode, away.stdout) == (2, "")
    assert "no study was started here yet" in away.stderr
    slots = create_or_join(load_config(folder.config, folder.overrides), {})
    train(spool_of(slots).run(0, 0), epochs=2)
    away = folder.call("sync", "--set", f"tracking.uri={NOWHERE}")
    assert (away.returncode, away.stdout) == (2, "")
    assert "11 entries wait in" in away.stderr
    store = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    # the run says complete, the study that the slot waits: nobody told it so
    assert folder.json("sync", "--set", store) == {"delivered": 11, "waiting": 0, "reconciled": 1}
    done = folder.call("sync", "--set", store)
    assert done.stdout == (
        "entries delivered: 0, still waiting: 0; runs set to their true state: 0\n"
    )


@pytest.mark.slow
def test_evaluate_and_report_name_sync_while_entries_wait(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_study.path)
    spool = spool_of(join(load_config(small_study.config, small_study.overrides)))
    best = small_study.json("status")["best"]["slot"]
    spool.run(best, 9).set_tags({"a": "1"})
    try:
        done = small_study.call("evaluate")
        assert done.returncode == 2
        assert f"slot {best}: 1 entries wait for MLflow in {spool.folder}" in done.stderr
        sync = shlex.join(["deepfake-study", *small_study.arguments("sync")])
        assert f"deliver them with: {sync}" in done.stderr
        done = small_study.call("report", "--out", "waits.html")
        assert done.returncode == 0, done.stderr
        page = (small_study.path / "waits.html").read_text()
        assert "1 entries wait for MLflow: deepfake-study sync CONFIG" in page
    finally:
        shutil.rmtree(spool.folder)
