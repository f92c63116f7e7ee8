"""One MLflow run a slot, in a real SQLite store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from deepfake.fit import EpochStats, FitResult
from study.config import StudyConfig, TrackingError
from study.objective import Outcome
from study.slots import Slot, Slots, create_or_join
from study.space import suggest
from study.tracking import EPOCH_METRICS, Tracker

MakeConfig = Callable[..., StudyConfig]
LABELS = torch.tensor([0, 1, 1, 0])
# the first and the last face are right: one real as real, one real as fake, and so on
LOGITS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])


@pytest.fixture
def slots(make_config: MakeConfig, empty_mlflow: Path, tmp_path: Path) -> Slots:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return create_or_join(make_config("study.n_trials=4"), {"study.seed": 0})


def stats(epoch: int, val_loss: float) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        train_loss=0.9,
        train_accuracy=0.5,
        val_loss=val_loss,
        val_accuracy=0.5,
        lr=1e-3,
        seconds=2.0,
        images_per_s=10.0,
        best_epoch=0,
        best_val_loss=val_loss,
    )


def result(*losses: float) -> FitResult:
    history = [stats(epoch, loss) for epoch, loss in enumerate(losses)]
    state = {"0.weight": torch.arange(6.0).reshape(2, 3)}
    return FitResult(history, history[0], state, LOGITS, "max_epochs")


def begin(slots: Slots, tracker: Tracker):
    slot = slots.claim("host:1")
    assert slot is not None
    return slot, reopen(slots, tracker, slot)


def reopen(slots: Slots, tracker: Tracker, slot: Slot):
    train = slots.config.train_config(suggest(slot.trial, slots.config.space), fixed=slot.fixed)
    return tracker.open_run(slot, train, {"splits_sha256": "s" * 64})


def client(slots: Slots) -> MlflowClient:
    return MlflowClient(tracking_uri=slots.config.tracking.uri)


def test_a_slot_leaves_params_metrics_weights_matrix_and_curves(slots: Slots) -> None:
    tracker = Tracker(slots.config, slots)
    _, run = begin(slots, tracker)
    for epoch in (0, 1):
        run.log_epoch(stats(epoch, 0.6 - epoch / 10))
    run.log_result(result(0.6, 0.5), LABELS)
    run.end("complete", None)

    found = client(slots).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "baseline cnn"
    assert found.data.params["lr"] == "0.001"
    assert found.data.params["image_size"] == "64"
    assert {k: found.data.tags[k] for k in ("slot", "variant", "baseline", "state")} == {
        "slot": "0",
        "variant": "cnn",
        "baseline": "cnn",
        "state": "complete",
    }
    assert found.data.tags["mlflow.parentRunId"] == tracker.parent_id
    assert found.data.metrics["best_val_loss"] == 0.6
    assert found.data.metrics["best_val_accuracy"] == 0.5
    history = tracker.history(run.run_id)
    assert set(history) == set(EPOCH_METRICS)
    assert history["val_loss"] == {0: 0.6, 1: 0.5}
    assert torch.equal(tracker.weights(run.run_id)["0.weight"], torch.arange(6.0).reshape(2, 3))
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    assert json.loads((folder / "val/confusion_matrix.json").read_text()) == [[1, 1], [1, 1]]
    for picture in ("val/confusion_matrix.png", "learning_curves.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert "n_trials: 4" in (folder / "config.yaml").read_text()


def test_an_attempt_after_a_crash_continues_the_run_without_a_doubled_epoch(slots: Slots) -> None:
    slot, first = begin(slots, Tracker(slots.config, slots))
    first.log_epoch(stats(0, 0.6))  # and then the process is gone

    slots.free(slot)
    again = slots.claim("host:2")
    assert again is not None
    tracker = Tracker(slots.config, slots)
    second = reopen(slots, tracker, again)
    assert second.run_id == first.run_id
    for epoch in (0, 1):  # the history is replayed
        second.log_epoch(stats(epoch, 0.6 - epoch / 10))
    rows = client(slots).get_metric_history(second.run_id, "val_loss")
    assert [(row.step, row.value) for row in rows] == [(0, 0.6), (1, 0.5)]
    assert client(slots).get_run(second.run_id).data.tags["attempt"] == "1"


def test_a_slot_trained_on_two_machines_names_both_so_that_no_equal_bits_are_expected(
    slots: Slots,
) -> None:
    tracker = Tracker(slots.config, slots)
    run_id = ""
    for machine, shown in (("a", "a"), ("b", "a + b"), ("a", "a + b")):
        slot = slots.claim("host:1")
        assert slot is not None
        train = slots.config.train_config(
            suggest(slot.trial, slots.config.space), fixed=slot.fixed
        )
        run_id = tracker.open_run(slot, train, {"hardware": machine}).run_id
        assert tracker.tags(run_id)["hardware"] == shown
        slots.free(slot)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome("complete", 0.5), "FINISHED"),
        (Outcome("pruned", 0.5, "behind its peers"), "KILLED"),
        (Outcome("failed", None, "the loss was not finite"), "FAILED"),
    ],
)
def test_a_run_ends_in_the_state_that_is_true(outcome: Outcome, status: str, slots: Slots) -> None:
    _, run = begin(slots, Tracker(slots.config, slots))
    run.end(outcome.state, outcome.reason)
    found = client(slots).get_run(run.run_id)
    assert found.info.status == status
    assert found.data.tags["state"] == outcome.state
    assert found.data.tags.get("reason") == outcome.reason


def test_a_raised_exception_is_in_its_run(slots: Slots) -> None:
    tracker = Tracker(slots.config, slots)
    slot, run = begin(slots, tracker)
    tracker.fail_run(slot.number, "ValueError: no", "Traceback ...\nValueError: no\n")
    found = client(slots).get_run(run.run_id)
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "ValueError: no")
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    assert "ValueError: no" in (folder / "exception.txt").read_text()


def test_there_is_one_parent_run_however_many_trackers_open_the_study(slots: Slots) -> None:
    ids = {Tracker(slots.config, slots).parent_id for _ in range(3)}
    assert len(ids) == 1
    runs = client(slots).search_runs([Tracker(slots.config, slots).experiment_id])
    assert [run.info.run_name for run in runs] == ["sample"]


def test_a_training_whose_first_epoch_diverged_has_no_weights_to_log(slots: Slots) -> None:
    tracker = Tracker(slots.config, slots)
    _, run = begin(slots, tracker)
    run.log_result(FitResult([], None, None, None, "diverged"), LABELS)
    assert run.whole
    with pytest.raises(TrackingError, match="can't be read"):
        tracker.weights(run.run_id)


def test_what_mlflow_refuses_is_said_and_training_goes_on(
    slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(slots.config, slots)
    _, run = begin(slots, tracker)
    client(slots).delete_run(run.run_id)  # a store that takes nothing more for this run
    run.log_epoch(stats(0, 0.6))
    assert not run.whole
    assert "metrics not logged" in caplog.text


def test_a_store_that_cannot_be_opened_is_one_line(make_config: MakeConfig) -> None:
    config = make_config("tracking.uri=sqlite:////proc/nowhere/mlflow.db")
    slots = create_or_join(config, {})
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:////proc/nowhere") as caught:
        Tracker(config, slots)
    assert "\n" not in str(caught.value)
