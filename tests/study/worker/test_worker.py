"""What a signal, a failure and a lost slot mean to a worker."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from deepfake.data.prepare import prepare_data
from deepfake.errors import ConfigError, UserError
from deepfake.reproducibility import pick_device
from deepfake.training.checkpoint import CheckpointError
from study.config.schema import StudyConfig
from study.search.space import suggest
from study.signals import Stopped, StopSignal
from study.slots.lease import Lease, Slot, SlotLost
from study.slots.study import create_or_join, join
from study.storage.retry import StorageAway
from study.tracking.spool import SlotRun, Spool
from study.worker import worker
from study.worker.inputs import Inputs
from study.worker.objective import Attempt, Outcome, begin_run, run_trial
from study.worker.setup import checkpoints_of, set_up, study_fingerprint
from study.worker.worker import STALLED, TooManyFailed, work
from tests.support.forked import forks
from tests.support.photos import draw_set

MakeConfig = Callable[..., StudyConfig]
CPU = torch.device("cpu")


@pytest.fixture
def config(
    make_config: MakeConfig, empty_mlflow: Path, empty_study: Path, tmp_path: Path
) -> StudyConfig:
    draw_set(tmp_path / "photos", 12)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    shutil.copy(empty_study, tmp_path / "study.db")
    made = make_config(
        f"data.annotations=[{tmp_path}/photos/Train_poly.json]",
        f"data.photos_dir={tmp_path}/photos",
        f"data.work_dir={tmp_path}/faces",
        "train.image_size={cnn: 32, mobilenet_v2: 33}",
        "train.max_epochs=1",
        "study.n_trials=3",
        "study.max_failed=3",
    )
    prepare_data(made.data, made.sides_px)
    return made


def outcomes(monkeypatch: pytest.MonkeyPatch, give: Callable[[Slot], Outcome]) -> None:
    """Trials that end as told instead of training: the worker around them is real."""

    def run_trial(
        attempt: Attempt, inputs: Inputs, device: torch.device, _: Callable[[], None]
    ) -> Outcome:
        slot, config = attempt.slot, attempt.config
        train = config.train_config(suggest(slot.trial, config.space), fixed=slot.fixed)
        begin_run(attempt, train, inputs, device)
        return give(slot)

    monkeypatch.setattr(worker, "run_trial", run_trial)


def statuses(config: StudyConfig) -> dict[str, str]:
    """MLflow's status of each slot's run."""
    client = MlflowClient(tracking_uri=config.tracking.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'sample'")
    runs = client.search_runs([experiment.experiment_id], "tags.slot != ''")
    return {run.data.tags["slot"]: run.info.status for run in runs}


def test_a_slot_that_was_lost_before_it_drew_its_parameters_is_another_workers(
    config: StudyConfig,
) -> None:
    inputs = Inputs.load(config, prepare_data(config.data, config.sides_px))
    own = config.model_copy(update={"study": config.study.model_copy(update={"n_trials": 4})})
    slots = create_or_join(own, study_fingerprint(own, inputs))
    for _ in range(4):  # the baselines', then one that draws
        slot = slots.claim("host:1")
    assert slot is not None
    join(own).free_worker("host:1")  # it was frozen, and given up
    run = Spool.of(own, slots.study_id).run(slot.number, slot.attempt)
    lease = Lease(slots, slot, lambda: None)
    attempt = Attempt(slot, lease, checkpoints_of(slots, slot.number), slots, run)
    with pytest.raises(SlotLost, match="slot 3: attempt 0 was given up"):
        run_trial(attempt, inputs, CPU, lambda: None)


def test_a_spool_that_is_removed_while_a_slot_trains_leaves_it_to_be_trained_again(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_result = SlotRun.log_result

    def removed(run: SlotRun, *result: Any) -> None:
        shutil.rmtree(run.journal.folder)
        log_result(run, *result)

    monkeypatch.setattr(SlotRun, "log_result", removed)
    with pytest.raises(UserError, match="removed while the slot was trained"):
        work(config, CPU, StopSignal(second_exits=False))
    assert join(config).records()[0].state == "waiting"


def test_a_trial_that_raises_is_tried_again_and_the_study_goes_on(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(slot: Slot) -> Outcome:
        if slot.number == 1:
            raise RuntimeError("device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
        return Outcome("complete", 0.5)

    outcomes(monkeypatch, give)
    records = work(config, CPU, StopSignal(second_exits=False))
    assert [record.state for record in records] == ["complete", "failed", "complete"]
    assert records[1].attempt == 1  # max_attempts is 2
    assert records[1].reason == (
        "RuntimeError: device-side assert triggered Compile with TORCH_USE_CUDA_DSA"
    )
    assert statuses(config)["1"] == "FAILED"


def test_a_baseline_that_diverges_has_failed_and_is_not_retried(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the loss was not finite in epoch 0"
    outcomes(monkeypatch, lambda slot: Outcome("failed", None, reason))
    records = work(config, CPU, StopSignal(second_exits=False))
    assert [(r.state, r.attempt, r.reason) for r in records] == [("failed", 0, reason)] * 3


def test_too_many_failed_slots_end_the_study(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes(monkeypatch, lambda slot: Outcome("failed", None, "diverged"))
    strict = config.study.model_copy(update={"max_failed": 1})
    with pytest.raises(TooManyFailed, match=r"2 slots failed, more than study\.max_failed 1"):
        work(config.model_copy(update={"study": strict}), CPU, StopSignal(second_exits=False))


def test_a_stopped_worker_frees_its_slot_and_leaves_its_run_scheduled(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(slot: Slot) -> Outcome:
        raise Stopped

    outcomes(monkeypatch, give)
    with pytest.raises(Stopped):
        work(config, CPU, StopSignal(second_exits=False))
    assert [record.state for record in join(config).records()] == ["waiting"] * 3
    assert statuses(config) == {"0": "SCHEDULED"}


def test_a_full_disk_frees_the_slot_and_ends_the_worker(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(slot: Slot) -> Outcome:
        raise CheckpointError("e0000.a0.pt: the checkpoint can't be written: No space left")

    outcomes(monkeypatch, give)
    with pytest.raises(UserError, match="slot 0 is left to other workers: e0000"):
        work(config, CPU, StopSignal(second_exits=False))
    record = join(config).records()[0]
    assert (record.state, record.attempt) == ("waiting", 1)


def test_a_machine_that_lost_its_data_fails_no_slot(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(slot: Slot) -> Outcome:
        (config.data.work_dir / "gone").read_bytes()
        raise AssertionError

    outcomes(monkeypatch, give)
    for _ in range(3):  # more than max_attempts
        with pytest.raises(UserError, match="slot 0 is left to other workers"):
            work(config, CPU, StopSignal(second_exits=False))
    assert [record.state for record in join(config).records()] == ["waiting"] * 3


def test_a_database_away_for_too_long_ends_the_worker_and_charges_nothing(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(slot: Slot) -> Outcome:
        raise StorageAway("away for 300 s")

    outcomes(monkeypatch, give)
    with pytest.raises(StorageAway):
        work(config, CPU, StopSignal(second_exits=False))
    record = join(config).records()[0]
    assert (record.state, record.reason) == ("running", None)  # until its lease runs out


def hang(config: StudyConfig) -> None:
    """In a process of its own."""
    worker.run_trial = lambda *_: time.sleep(600)
    work(config, CPU, StopSignal(second_exits=True))


@pytest.mark.slow
def test_a_trial_that_hangs_ends_its_worker_and_costs_its_slot_an_attempt(
    config: StudyConfig,
) -> None:
    search = config.study.model_copy(update={"heartbeat_s": 1, "lease_s": 3, "stall_s": 2})
    config = config.model_copy(update={"study": search})
    for _ in range(2):  # max_attempts
        process = forks().Process(target=hang, args=(config,))
        process.start()
        process.join(120)
        assert process.exitcode == STALLED
    record = join(config).records()[0]
    assert (record.state, record.reason) == ("failed", "no progress for 2 s (study.stall_s)")


def test_a_worker_whose_slot_was_given_away_goes_on_with_the_next(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stolen = []

    def give(slot: Slot) -> Outcome:
        if not stolen:
            stolen.append(slot.number)
            thief = join(config)
            thief.free_worker(thief.records()[0].worker or "")
            claimed = thief.claim("other:1")
            assert claimed is not None
            suggest(claimed.trial, config.space)
            thief.complete(claimed, 0.25)
        return Outcome("complete", 0.5)

    outcomes(monkeypatch, give)
    records = work(config, CPU, StopSignal(second_exits=False))
    assert [record.state for record in records] == ["complete"] * 3
    assert records[0].worker == "other:1"
    assert "slot 0: attempt 0 was given up; another worker has it" in caplog.text


@pytest.mark.slow
def test_a_real_trial_leaves_no_checkpoint_behind(config: StudyConfig) -> None:
    records = work(config, CPU, StopSignal(second_exits=False))
    assert [record.state for record in records] == ["complete"] * 3
    assert set(statuses(config).values()) == {"FINISHED"}
    assert list(config.checkpoints_dir.rglob("slot_*")) == []


def test_bf16_without_cuda_is_said_before_anything_begins(config: StudyConfig) -> None:
    train = config.train.model_copy(update={"precision": "bf16"})
    with pytest.raises(ConfigError, match=r"train\.precision: bf16 needs CUDA"):
        set_up(config.model_copy(update={"train": train}), CPU)


def test_a_device_is_what_was_asked_for() -> None:
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device gpu7: must be cpu, cuda or cuda:N"):
        pick_device("gpu7")
    with pytest.raises(UserError, match="CUDA devices"):
        pick_device("cuda:63")


@pytest.mark.slow
def test_a_worker_loads_nothing_of_the_evaluation() -> None:
    # the figures it draws are tracking's: finalists and test figures are no part of a trial
    code = (
        "import sys, study.worker.worker, study.tracking.spool;"
        "print([name for name in sys.modules if name.startswith('study.evaluation')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
