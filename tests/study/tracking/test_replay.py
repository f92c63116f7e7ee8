"""From the spool into real MLflow stores: in order, once, and in the end the true state."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from study.config.schema import StudyConfig
from study.slots.records import SlotRecord, State
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.tracking.client import ClientStore
from study.tracking.delivery import BATCH, Replay
from study.tracking.provenance import Dataset
from study.tracking.spool import Spool, SpoolError
from study.tracking.store import SqliteStore, StudyRuns, TrackingError, store_at
from study.tracking.system_metrics import Machine
from study.tracking.ui import runs_page
from tests.support.forked import forks
from tests.support.mlflow_server import store_image
from tests.support.recorded import LABELS, WEIGHTS, result, start, stats, train

MakeConfig = Callable[..., StudyConfig]


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def slots(
    request: pytest.FixtureRequest,
    make_config: MakeConfig,
    empty_mlflow: Path,
    empty_study: Path,
    tmp_path: Path,
) -> Slots:
    """A study of four slots, tracked in an empty store of each kind."""
    overrides = ["study.n_trials=4", f"name=replay-{uuid.uuid4().hex[:8]}"]
    if request.param == "server":
        overrides.append(f"tracking.uri={request.getfixturevalue('mlflow_server').uri}")
    else:
        shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
        shutil.copy(empty_study, tmp_path / "study.db")
    return create_or_join(make_config(*overrides), {"study.seed": 0})


@pytest.fixture
def spool(slots: Slots) -> Spool:
    return Spool.of(slots.config, slots.study_id)


@pytest.fixture
def replay(slots: Slots, spool: Spool) -> Replay:
    return Replay(slots.config, slots, spool)


def client(slots: Slots) -> MlflowClient:
    return MlflowClient(tracking_uri=slots.config.tracking.uri)


def image(slots: Slots) -> dict[str, Any]:
    return store_image(slots.config.tracking.uri, slots.config.name)


def the_run(slots: Slots, slot: int) -> Run:
    run_id = slots.records()[slot].run_id
    assert run_id is not None
    return client(slots).get_run(run_id)


def rows(slots: Slots, slot: int, metric: str = "val_loss") -> list[tuple[int, float]]:
    run = the_run(slots, slot)
    found = client(slots).get_metric_history(run.info.run_id, metric)
    return [(row.step, row.value) for row in found]


def test_a_slot_leaves_params_metrics_weights_matrix_and_curves(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    train(spool.run(0, 0), epochs=2, splits_sha256="s" * 64)
    entries = spool.journals()[0].entries()
    assert replay.deliver_all() == 11
    assert (spool.pending(), spool.journals()) == (0, [])

    run = the_run(slots, 0)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "000 cnn lr=1.0e-03")
    assert (run.info.start_time, run.info.end_time) == (entries[0].at_ms, entries[-1].at_ms)
    assert run.data.params == {"variant": "cnn", "lr": "0.001"}
    tags = {k: v for k, v in run.data.tags.items() if not k.startswith(("mlflow", "git_commit"))}
    weights_sha256 = tags.pop("weights_sha256")
    assert len(weights_sha256) == 64
    assert tags == {
        "study_id": slots.study_id,
        "slot": "0",
        "attempt": "0",
        "variant": "cnn",
        "splits_sha256": "s" * 64,
        "state": "complete",
    }
    assert run.data.tags["mlflow.parentRunId"] == replay.tracker.parent_id
    assert run.data.metrics["best_val_loss"] == 0.6
    assert rows(slots, 0) == [(0, 0.6), (1, 0.5)]
    history = client(slots).get_metric_history(run.info.run_id, "val_loss")
    assert [row.timestamp for row in history] == [entries[2].at_ms, entries[3].at_ms]
    assert replay.tracker.weights(run.info.run_id)["0.weight"].equal(WEIGHTS["0.weight"])
    [found] = image(slots)["slots"][0]
    assert list(found["artifacts"]) == [
        "config.yaml",
        "learning_curves.png",
        "val/confusion_matrix.json",
        "val/confusion_matrix.png",
        "weights/best.safetensors",
    ]


def test_a_run_and_its_study_have_the_faces_they_were_given_as_data_sets(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    train_faces = Dataset("Train_poly/train", "0a1b2c3d", "training", "/faces", real=30, fake=12)
    val_faces = Dataset("Train_poly/val", "0a1b2c3d", "validation", "/faces", real=5, fake=4)
    for attempt in (0, 1):
        run = spool.run(0, attempt)
        run.start("000 cnn", {}, {}, {}, [train_faces, val_faces])
        replay.deliver_all()
    for run_id in (the_run(slots, 0).info.run_id, replay.tracker.parent_id):
        inputs = client(slots).get_run(run_id).inputs.dataset_inputs
        assert {i.dataset.name: i.tags[0].value for i in inputs} == {
            "Train_poly/train": "training",
            "Train_poly/val": "validation",
        }
        assert len(inputs) == 2
    [first] = [i.dataset for i in inputs if i.dataset.name == "Train_poly/train"]
    assert json.loads(first.profile) == {"num_rows": 42, "real": 30, "fake": 12}
    assert (first.digest, json.loads(first.source)) == ("0a1b2c3d", {"uri": "/faces"})
    columns = {c["name"]: c["type"] for c in json.loads(first.schema)["mlflow_colspec"]}
    assert (columns["category_id"], columns["cutted_name"]) == ("long", "string")


def test_epochs_carry_the_system_metrics_of_their_machine(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    with Machine(every_s=3600) as machine:
        train(spool.run(0, 0, machine), epochs=2)
    replay.deliver_all()
    [(epoch, used)] = rows(slots, 0, "system/system_memory_usage_percentage")
    assert epoch == 0
    assert 0 < used < 100


def test_more_figures_than_mlflow_takes_at_once_all_arrive(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    start(spool.run(0, 0))
    replay.deliver_all()
    run_id = the_run(slots, 0).info.run_id
    many = {f"system/gpu_{i}_power_usage_watts": 1.0 for i in range(60)}
    epochs = [(epoch, 0, {"val_loss": 0.5, **many}) for epoch in range(BATCH)]
    replay.tracker.log_epochs(run_id, epochs)
    for name in ("val_loss", "system/gpu_59_power_usage_watts"):
        assert len(rows(slots, 0, name)) == BATCH


def test_a_journal_delivered_again_from_any_offset_doubles_nothing(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    train(run, epochs=3)
    copy = spool.folder.with_name("copy")
    shutil.copytree(spool.folder, copy)
    offsets = [0, *(entry.end for entry in run.journal.entries()[:-1])]
    replay.deliver_all()
    once = image(slots)
    for offset in offsets:  # killed between telling MLflow and noting that it was told
        shutil.copytree(copy, spool.folder, dirs_exist_ok=True)
        run.journal.note_delivered(offset)
        assert replay.deliver_all() > 0
        assert image(slots) == once


def test_more_than_a_batch_comes_in_order(slots: Slots, spool: Spool, replay: Replay) -> None:
    train(spool.run(0, 0), epochs=2 * BATCH)
    counts = []
    while count := replay.deliver(0):
        counts.append(count)
    assert counts == [BATCH, BATCH, 9]  # start, config; epochs; metrics, 4 files, tag, end
    assert [epoch for epoch, _ in rows(slots, 0)] == list(range(2 * BATCH))


def test_an_attempt_after_a_kill_continues_the_run_without_a_doubled_epoch(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    first = spool.run(0, 0)
    start(first)
    first.log_epoch(stats(0, 0.6))
    replay.deliver_all()
    first.log_epoch(stats(1, 0.5))  # said and not delivered; then the process is gone
    second = spool.run(0, 1)
    start(second)
    for epoch in range(3):  # from the checkpoint the history is said again
        second.log_epoch(stats(epoch, 0.6 - epoch / 10))
    replay.deliver_all()
    assert rows(slots, 0) == [(0, 0.6), (1, 0.5), (2, 0.6 - 2 / 10)]
    assert the_run(slots, 0).data.tags["attempt"] == "1"
    assert [journal.attempt for journal in spool.journals()] == [1]
    assert len(image(slots)["slots"][0]) == 1


def test_the_same_result_said_by_two_attempts_is_one_row(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    for attempt in (0, 1):  # the first was killed before it told the study
        run = spool.run(0, attempt)
        start(run)
        run.log_result(result(0.6), LABELS)
    replay.deliver_all()
    assert rows(slots, 0, "best_val_loss") == [(0, 0.6)]


def test_what_an_older_attempt_says_too_late_is_dropped(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    train(spool.run(0, 1), epochs=1)
    replay.deliver_all()
    before = image(slots)
    late = spool.run(0, 0)  # frozen, and its journal was not there to be seen
    start(late)
    late.log_epoch(stats(5, 0.1))
    late.end("waiting", None)
    replay.deliver_all()
    assert image(slots) == before
    assert spool.journals() == []


def test_a_torn_last_line_waits_for_its_rest(slots: Slots, spool: Spool, replay: Replay) -> None:
    run = spool.run(0, 0)
    start(run)
    run.log_epoch(stats(0, 0.6))
    whole = run.journal.path.read_bytes()
    run.journal.path.write_bytes(whole[:-5])
    replay.deliver_all()
    assert rows(slots, 0) == []
    run.journal.path.write_bytes(whole)
    replay.deliver_all()
    assert rows(slots, 0) == [(0, 0.6)]


def test_a_run_that_somebody_deleted_is_made_again_whole(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    start(run)
    run.log_epoch(stats(0, 0.6))
    replay.deliver_all()
    client(slots).delete_run(the_run(slots, 0).info.run_id)
    run.log_epoch(stats(1, 0.5))
    replay.deliver_all()
    assert rows(slots, 0) == [(0, 0.6), (1, 0.5)]
    assert the_run(slots, 0).info.run_name == "000 cnn lr=1.0e-03"


def test_a_run_that_was_created_twice_is_one_again(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    start(run)
    replay.deliver_all()
    kept = the_run(slots, 0)
    # as an HTTP client does that did not hear the answer to the first
    replay.tracker.create_run(0, kept.info.start_time, "double", {})
    run.log_epoch(stats(0, 0.6))
    replay.deliver_all()
    [found] = image(slots)["slots"][0]
    assert found["name"] == kept.info.run_name
    assert found["metrics"]["val_loss"] == [(0, 0.6)]


def test_what_mlflow_refuses_is_said_and_the_rest_goes_on(
    slots: Slots, spool: Spool, replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    start(spool.run(0, 0))
    run = spool.run(0, 1)
    run.start("again", {"lr": 0.5}, {}, {})  # a param can't be changed
    run.log_epoch(stats(0, 0.6))
    replay.deliver_all()
    assert "refused by MLflow" in caplog.text
    assert the_run(slots, 0).data.params["lr"] == "0.001"
    assert rows(slots, 0) == [(0, 0.6)]


def test_a_slot_trained_on_two_machines_names_both_so_that_no_equal_bits_are_expected(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    for attempt, (machine, shown) in enumerate((("a", "a"), ("b", "a + b"), ("a", "a + b"))):
        start(spool.run(0, attempt), hardware=machine)
        replay.deliver_all()
        assert the_run(slots, 0).data.tags["hardware"] == shown


def test_a_raised_exception_is_in_its_run_until_the_next_attempt_begins(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    start(run)
    run.fail("ValueError: no", "Traceback ...\nValueError: no\n")
    replay.deliver_all()
    found = the_run(slots, 0)
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "ValueError: no")
    assert "exception.txt" in image(slots)["slots"][0][0]["artifacts"]
    start(spool.run(0, 1))
    replay.deliver_all()
    found = the_run(slots, 0)
    assert (found.info.status, found.data.tags.get("reason")) == ("RUNNING", None)


def test_a_freed_slots_run_waits_and_has_no_end(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    start(run)
    run.end("waiting", None)
    replay.deliver_all()
    found = the_run(slots, 0)
    assert (found.info.status, found.info.end_time) == ("SCHEDULED", None)
    assert found.data.tags["state"] == "waiting"


def test_a_file_that_is_none_of_the_journals_is_not_delivered(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    run = spool.run(0, 0)
    start(run)
    replay.deliver_all()
    run._append("file", name="../../../mlflow.db")
    with pytest.raises(SpoolError, match="leaves its folder"):
        replay.deliver_all()


@pytest.mark.slow
def test_a_slot_that_a_frozen_process_delivers_holds_up_no_other(
    slots: Slots, spool: Spool, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in (0, 1):
        train(spool.run(slot, 0), epochs=1)
    with spool.lock("slot_000"):
        assert replay.deliver_all() == spool.journals()[0].pending
        as_records(slots, monkeypatch, "complete", "complete")
        assert replay.reconcile() == 0
        assert spool.pending(0) > 0
    assert replay.deliver(0) > 0


def deliver_all(config: StudyConfig, barrier: Any) -> None:
    """What each of several processes does at once."""
    slots = join(config)
    replay = Replay(config, slots, Spool.of(config, slots.study_id))
    barrier.wait()
    replay.deliver_all()


@pytest.mark.slow
def test_processes_that_deliver_at_once_leave_what_one_would(slots: Slots, spool: Spool) -> None:
    for slot in range(3):
        train(spool.run(slot, 0), epochs=20)
    barrier = forks().Barrier(2, timeout=300)
    workers = [forks().Process(target=deliver_all, args=(slots.config, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=400)
        assert worker.exitcode == 0
    replay = Replay(slots.config, slots, spool)
    replay.deliver_all()  # what was locked when each of them looked
    found = image(slots)
    assert len(found["parent"]) == 1
    assert {slot: len(runs) for slot, runs in found["slots"].items()} == {0: 1, 1: 1, 2: 1}
    for [run] in found["slots"].values():
        assert [step for step, _ in run["metrics"]["val_loss"]] == list(range(20))
        assert run["timed"]["seconds"] == list(range(20))


# the true state


TRUE = {
    "waiting": ("SCHEDULED", ""),
    "running": ("RUNNING", ""),
    "complete": ("FINISHED", ""),
    "pruned": ("KILLED", "behind its peers"),
    "failed": ("FAILED", "ValueError: no"),
}


def as_records(slots: Slots, monkeypatch: pytest.MonkeyPatch, *states: State) -> list[SlotRecord]:
    """The study database saying these states of its first slots, and of the others waiting."""
    records = [
        replace(record, state=state, reason=TRUE[state][1] or None)
        for record, state in zip(slots.records(), [*states, *["waiting"] * 4], strict=False)
    ]
    monkeypatch.setattr(slots, "records", lambda: records)
    return records


@pytest.mark.slow
def test_every_run_gets_the_state_that_the_study_says(
    make_config: MakeConfig, empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    pairs = [(said, true) for said in TRUE for true in TRUE]  # a slot each
    slots = create_or_join(make_config(f"study.n_trials={len(pairs)}"), {})
    spool = Spool.of(slots.config, slots.study_id)
    replay = Replay(slots.config, slots, spool)
    for slot, (said, _) in enumerate(pairs):
        run = spool.run(slot, 0)
        run.start(f"slot {slot}", {}, {}, {})
        if said != "running":
            run.end(said, TRUE[said][1] or None)
    replay.deliver_all()
    run_ids = [record.run_id for record in slots.records()]
    as_records(slots, monkeypatch, *(true for _, true in pairs))
    assert replay.reconcile() == len(TRUE) * (len(TRUE) - 1)
    for run_id, (_, true) in zip(run_ids, pairs, strict=True):
        found = client(slots).get_run(run_id)
        assert (found.info.status, found.data.tags.get("reason", "")) == TRUE[true]
        assert found.data.tags["state"] == true
    assert replay.reconcile() == 0


def test_a_slot_with_undelivered_entries_is_left_alone(
    slots: Slots, spool: Spool, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spool.run(0, 0)
    start(run)
    replay.deliver_all()
    run.log_epoch(stats(0, 0.6))
    run_id = the_run(slots, 0).info.run_id
    as_records(slots, monkeypatch, "complete")
    assert replay.reconcile() == 0
    assert client(slots).get_run(run_id).info.status == "RUNNING"


def test_the_parent_run_ends_with_the_study_and_begins_again_with_new_slots(
    slots: Slots, spool: Spool, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spool.run(0, 0)  # killed behind its last word to the study
    start(run)
    replay.deliver_all()

    def parent() -> str:
        return client(slots).get_run(replay.tracker.parent_id).info.status

    as_records(slots, monkeypatch, "running", "complete")
    replay.reconcile()
    assert (parent(), len(spool.journals())) == ("RUNNING", 1)
    all_states = ("complete", "pruned", "failed", "complete")
    as_records(slots, monkeypatch, *all_states)
    replay.reconcile()
    assert (parent(), spool.folder.exists()) == ("FINISHED", False)
    as_records(slots, monkeypatch, *all_states[:3], "waiting")
    replay.reconcile()
    assert parent() == "RUNNING"


def test_an_experiment_that_was_deleted_is_said(slots: Slots, spool: Spool) -> None:
    tracker = Replay(slots.config, slots, spool).tracker
    client(slots).delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it") as caught:
        Replay(slots.config, slots, spool)
    assert "\n" not in str(caught.value)
    for looks in (
        lambda: StudyRuns.of(slots.config, slots.study_id),
        lambda: runs_page(slots.config),
    ):
        with pytest.raises(TrackingError, match="was deleted; restore it"):
            looks()


def test_the_address_of_the_runs_lists_the_slots_and_the_best_first(
    slots: Slots, spool: Spool
) -> None:
    """MLflow's own search, asked for what the address asks the UI for."""
    tracker = Replay(slots.config, slots, spool).tracker
    for slot, loss in enumerate([0.3, 0.1, 0.2]):
        run = client(slots).create_run(tracker.experiment_id, tags={"slot": str(slot)})
        client(slots).log_metric(run.info.run_id, "best_val_loss", loss)
    page, _, query = runs_page(slots.config).partition("?")
    assert page == f"#/experiments/{tracker.experiment_id}/runs"
    said = dict(parse_qsl(query, strict_parsing=True))
    order = f"{said['orderByKey']} {'ASC' if said['orderByAsc'] == 'true' else 'DESC'}"
    listed = client(slots).search_runs(
        [tracker.experiment_id], said["searchFilter"], order_by=[order]
    )
    assert [run.data.tags["slot"] for run in listed] == ["1", "2", "0"]


@pytest.mark.slow
def test_the_command_that_is_told_brings_a_deleted_experiment_back(
    slots: Slots, spool: Spool, tmp_path: Path
) -> None:
    tracker = Replay(slots.config, slots, spool).tracker
    client(slots).delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError) as caught:
        Replay(slots.config, slots, spool)
    command = str(caught.value).partition("restore it with: ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, check=True, timeout=120)
    assert Replay(slots.config, slots, spool).tracker.experiment_id == tracker.experiment_id


def test_what_a_later_release_says_of_a_data_set_holds_up_nothing(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    given = Dataset("Train_poly/train", "0a1b2c3d", "training", "/faces", real=30, fake=12)
    run = spool.run(0, 0)
    run.start("000 cnn", {}, {}, {}, [given])
    line = json.loads(run.journal.path.read_text())
    line["datasets"][0]["colour"] = "red"
    run.journal.path.write_text(json.dumps(line) + "\n")
    assert replay.deliver_all() == 1
    assert len(the_run(slots, 0).inputs.dataset_inputs) == 1


def test_tables_that_are_read_say_what_mlflows_client_says(
    slots: Slots, spool: Spool, replay: Replay
) -> None:
    for number in range(3):
        train(spool.run(number, 0), epochs=1)
    replay.deliver_all()
    name, uri = slots.config.name, slots.config.tracking.uri
    client(slots).create_registered_model("mine")
    registered = the_run(slots, 1).info.run_id
    client(slots).create_model_version("mine", f"runs:/{registered}/weights", registered)
    client(slots).delete_run(the_run(slots, 2).info.run_id)
    read, asked = store_at(uri), ClientStore(uri)
    assert isinstance(read, SqliteStore if uri.startswith("sqlite") else ClientStore)
    experiment = read.experiment(name)
    assert experiment == asked.experiment(name)
    assert experiment is not None
    assert read.experiment("other") is asked.experiment("other") is None
    runs = read.slot_runs(experiment.experiment_id, slots.study_id)
    assert runs == asked.slot_runs(experiment.experiment_id, slots.study_id)
    assert sorted(run.tags["slot"] for run in runs) == ["0", "1"]
    for run in runs:
        assert read.weights_bytes(run.run_id) == asked.weights_bytes(run.run_id) > 0
        in_registry = run.tags["slot"] == "1"
        assert read.is_registered(run.run_id) is asked.is_registered(run.run_id) is in_registry
