"""What gc removes of a study, and all that it must leave."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from deepfake.errors import UserError
from deepfake.training.checkpoint import Checkpoints
from study.config.schema import StudyConfig
from study.evaluation.evaluator import Evaluator
from study.evaluation.finalists import contenders_of_search
from study.maintenance.gc import collect
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.tracking.delivery import Replay
from study.tracking.spool import Spool
from study.tracking.store import StudyRuns, TrackingError
from study.tracking.tracker import Tracker
from study.worker.setup import checkpoints_of
from tests.support.copies import copy_study
from tests.support.forked import Process, wait_until
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres import Postgres
from tests.support.recorded import train
from tests.support.runs import Folder

MakeConfig = Callable[..., StudyConfig]
N = 9  # three baselines, then drawn slots
# by slot: 5 is the best; 3, then 4, then 5 were the best when their number came; 8 is not finished
LOSSES = {0: 0.9, 1: 0.8, 2: 0.85, 3: 0.5, 4: 0.4, 5: 0.3, 6: 0.7, 7: 0.6}


def finished(config: StudyConfig, losses: dict[int, float] = LOSSES) -> Slots:
    """A study whose slots 0 to 7 are complete, with weights in MLflow and a checkpoint each."""
    slots = create_or_join(config, {})
    spool = Spool.of(slots.config, slots.study_id)
    for number, loss in losses.items():
        slot = slots.claim("host:1")
        assert slot is not None
        train(spool.run(number, 0), epochs=1)
        slots.report(slot, 0, loss)
        slots.complete(slot, loss)
    for number in (*LOSSES, 8):
        checkpoints_of(slots, number).save(0, {"a": torch.zeros(100)})
    assert slots.claim("host:1") is not None
    replay = Replay(slots.config, slots, spool)
    replay.deliver_all()
    replay.reconcile()
    return slots


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> StudyConfig:
    return make_config(f"study.n_trials={N}", f"data.work_dir={tmp_path}/faces")


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """Where a finished study is, once there is one."""
    return []


@pytest.fixture
def slots(
    config: StudyConfig,
    empty_mlflow: Path,
    empty_study: Path,
    tmp_path: Path,
    made: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Slots:
    """Of a finished study, this test's own."""
    if made:
        copy_study(made[0], tmp_path)
        return join(config)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    shutil.copy(empty_study, tmp_path / "study.db")
    slots = finished(config)
    made.append(tmp_path_factory.mktemp("finished"))
    copy_study(tmp_path, made[0])
    return slots


def with_weights(slots: Slots) -> set[int]:
    logged = StudyRuns.of(slots.config, slots.study_id)
    assert logged is not None
    return {int(r.tags["slot"]) for r in logged.runs() if logged.weights_bytes(r.run_id)}


def with_checkpoints(slots: Slots) -> set[int]:
    return {n for n in range(N) if checkpoints_of(slots, n).load() is not None}


def test_a_dry_run_says_what_it_would_free_and_removes_nothing(slots: Slots) -> None:
    found = collect(slots.config, 1, dry_run=True)
    assert [removal.what for removal in found.removals] == [
        "weights of slot 6, complete",
        "checkpoints of slot 6, complete",
        "weights of slot 7, complete",
        "checkpoints of slot 7, complete",
    ]
    weights = next((slots.config.tracking.artifacts_dir).rglob("best.safetensors"))
    assert found.removals[0].n_bytes == weights.stat().st_size
    assert found.n_bytes == sum(removal.n_bytes for removal in found.removals)
    assert with_weights(slots) == set(LOSSES)
    assert with_checkpoints(slots) == {*LOSSES, 8}


def test_baselines_incumbents_the_best_and_what_runs_keep_all(slots: Slots) -> None:
    would = collect(slots.config, 1, dry_run=True)
    found = collect(slots.config, 1, dry_run=False)
    assert (found.removals, found.n_bytes) == (would.removals, would.n_bytes)
    baselines = dict.fromkeys((0, 1, 2), "baseline")
    assert found.kept == {**baselines, 3: "incumbent", 4: "incumbent", 5: "among the best 1"}
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5}
    assert with_checkpoints(slots) == {0, 1, 2, 3, 4, 5, 8}
    client = MlflowClient(tracking_uri=slots.config.tracking.uri)
    run_id = slots.records()[7].run_id
    assert run_id is not None
    assert client.get_run(run_id).data.tags["weights"] == "removed by gc"
    left = {file.path for file in client.list_artifacts(run_id)}
    assert left >= {"config.yaml", "learning_curves.png", "val"}  # small files stay
    assert collect(slots.config, 1, dry_run=False).removals == []


def test_the_best_so_many_stay(slots: Slots) -> None:
    found = collect(slots.config, 4, dry_run=False)
    assert found.kept[7] == "among the best 4"
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5, 7}


def test_whatever_an_opened_list_or_the_registry_names_stays(slots: Slots) -> None:
    slots.set_attribute("openings", [{"sha256": "", "finalists": ["slot 6 weights ab"]}])
    client = MlflowClient(tracking_uri=slots.config.tracking.uri)
    client.create_registered_model("mine")
    run_id = slots.records()[7].run_id
    assert run_id is not None
    source = f"{client.get_run(run_id).info.artifact_uri}/weights"
    client.create_model_version("mine", source, run_id)
    found = collect(slots.config, 1, dry_run=False)
    assert (found.kept[6], found.kept[7]) == ("finalist", "its model is registered")
    assert found.removals == []
    assert with_weights(slots) == set(LOSSES)


def test_a_slot_that_mlflow_has_still_to_be_told_of_keeps_all(slots: Slots) -> None:
    Spool.of(slots.config, slots.study_id).run(6, 9).set_tags({"a": "1"})
    assert 6 in collect(slots.config, 1, dry_run=False).kept
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5, 6}


def test_weights_that_were_removed_are_missed_in_a_line(slots: Slots) -> None:
    collect(slots.config, 1, dry_run=False)
    run_id = slots.records()[6].run_id
    assert run_id is not None
    with pytest.raises(
        TrackingError, match=r"^slot 6: its weights were removed by deepfake-study"
    ):
        Tracker(slots.config, slots).weights(run_id)


def test_what_killed_writers_left_goes_and_what_a_live_one_writes_stays(
    slots: Slots, tmp_path: Path
) -> None:
    (tmp_path / "faces/store").mkdir(parents=True)
    (tmp_path / "faces/crops").mkdir()
    dead = [tmp_path / "faces" / name for name in (".splits.csv.tmp", "crops/.a.jpg.7.tmp")]
    live = tmp_path / "faces/store/.faces_32.npy.tmp"
    whole = tmp_path / "faces/crops/a.png"
    for path in (*dead, live, whole):
        path.write_bytes(b"1234")
    with FileLock(tmp_path / "faces/store/faces_32.lock"):
        assert (
            sum(
                str(p) == r.place
                for r in collect(slots.config, 9, dry_run=True).removals
                for p in dead
            )
            == 2
        )
        found = collect(slots.config, 9, dry_run=False)
    assert (found.n_bytes, [path.exists() for path in (*dead, live, whole)]) == (
        8,
        [False, False, True, True],
    )


def test_checkpoints_of_a_study_in_another_database_are_left_and_named(slots: Slots) -> None:
    folder = slots.config.checkpoints_dir / ("a" * 32)
    Checkpoints(folder / "slot_006").save(0, {"a": torch.zeros(1)})
    found = collect(slots.config, 1, dry_run=False)
    assert [note for note in found.notes if note.startswith(f"{folder}: ")]
    assert Checkpoints(folder / "slot_006").load() is not None


def test_what_cannot_be_removed_is_said_and_the_rest_goes(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = slots.records()[6].run_id
    assert run_id is not None
    folder = next(slots.config.tracking.artifacts_dir.rglob(run_id)) / "artifacts/weights"
    removing = LocalArtifactRepository.delete_artifacts

    def refuse(self: LocalArtifactRepository, artifact_path: str) -> None:
        if run_id in self.artifact_dir:  # as a read-only disk would; root may write anywhere
            raise PermissionError(13, "Permission denied", str(folder))
        removing(self, artifact_path)

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    found = collect(slots.config, 1, dry_run=False)
    (failed,) = found.failed
    assert failed.startswith("weights of slot 6, complete: tracking.uri: ")
    assert "Permission denied" in failed
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5, 6}
    assert "weights of slot 7, complete" in [removal.what for removal in found.removals]


@pytest.mark.slow
def test_the_best_are_counted_among_drawn_trials_as_evaluate_chooses_them(
    make_config: MakeConfig, empty_mlflow: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    overrides = [f"study.n_trials={N}", f"data.work_dir={tmp_path}/faces"]
    slots = finished(make_config(*overrides), LOSSES | {0: 0.01, 1: 0.02, 2: 0.03})
    collect(slots.config, 2, dry_run=False)
    # the baselines are the best three; of the drawn ones 5 and 4 are
    assert with_weights(slots) == {0, 1, 2, 4, 5}


def read_weights(config: StudyConfig) -> None:
    with join(config).reading_weights():
        print("reading", flush=True)
        time.sleep(600)


@contextlib.contextmanager
def reading(config: StudyConfig) -> Iterator[Process]:
    """Another process that reads the study's weights, as evaluate does."""
    process = Process(None, read_weights, config)
    try:
        wait_until(lambda: process.said() == "reading\n", "it reads")
        yield process
    finally:
        process.kill()


@pytest.mark.slow
def test_while_another_process_reads_weights_nothing_is_removed(slots: Slots) -> None:
    with reading(slots.config) as process:
        with slots.reading_weights():  # which any number may at once
            assert len(collect(slots.config, 1, dry_run=True).removals) == 4
        with pytest.raises(UserError, match="an evaluate or export is reading its weights"):
            collect(slots.config, 1, dry_run=False)
        assert with_weights(slots) == set(LOSSES)
        process.kill()  # which frees what it held
        assert len(collect(slots.config, 1, dry_run=False).removals) == 4
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5}


@pytest.mark.slow
def test_on_postgresql_weights_that_are_read_are_not_removed(
    make_config: MakeConfig, postgres: Postgres
) -> None:
    url = postgres.new_database()
    slots = create_or_join(make_config("study.n_trials=3", storage=url), {})
    other = create_or_join(make_config("study.n_trials=3", "name=other", storage=url), {})
    with reading(slots.config) as process:
        with other.removing_weights(), slots.reading_weights():
            pass
        with (
            pytest.raises(UserError, match="reading its weights"),
            slots.removing_weights(),
        ):
            pass
        process.kill()
        deadline = time.monotonic() + 60
        while not is_free(slots):  # the server has to see that its client is gone
            assert time.monotonic() < deadline
            time.sleep(0.2)


def is_free(slots: Slots) -> bool:
    try:
        with slots.removing_weights():
            return True
    except UserError:
        return False


@pytest.mark.slow
def test_a_server_deletes_them_too(make_config: MakeConfig, mlflow_server: MlflowServer) -> None:
    overrides = (f"study.n_trials={N}", "name=gc-on-a-server")
    slots = finished(make_config(f"tracking.uri={mlflow_server.uri}", *overrides))
    assert len(collect(slots.config, 1, dry_run=False).removals) == 4
    assert with_weights(slots) == {0, 1, 2, 3, 4, 5}


@pytest.mark.slow
def test_behind_gc_evaluate_works_and_says_what_is_gone(
    small_copy: Folder,
) -> None:
    study = small_copy
    records = study.json("gc", "--keep", "best:1", "--dry-run")
    assert records["dry_run"] is True
    removed = study.json("gc", "--keep", "best:1")["removals"]
    assert removed == records["removals"]
    done = study.call("evaluate", "--no-corruptions")
    assert done.returncode == 0, done.stderr
    for removal in removed:
        number = removal["what"].removeprefix("weights of slot ").partition(",")[0]
        done = study.call("evaluate", "--trial", number)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: slot {number}: its weights were removed by" in done.stderr
    done = study.call("gc", "--keep", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--keep 5: must be best:N" in done.stderr


@pytest.mark.slow
def test_gc_beside_an_evaluate_removes_nothing_that_it_reads(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_study.path)
    slots = join(small_study.study_config())
    said: dict[str, subprocess.CompletedProcess[str]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in said:  # in the middle of it
            said[stage] = small_study.run("gc", "--keep", "best:1")

    evaluator = Evaluator(slots, torch.device("cpu"), progress)
    evaluator.evaluate(contenders_of_search(slots, top=1), corruptions=True)  # as it was
    assert sorted(said) == ["prove", "test"]
    evaluator.evaluate_slot(0)
    for done in said.values():
        assert (done.returncode, done.stdout) == (2, "")
        assert "an evaluate or export is reading its weights" in done.stderr
