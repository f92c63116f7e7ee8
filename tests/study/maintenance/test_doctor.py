"""What doctor says of a study that is well, and of each thing that went wrong with one."""

import contextlib
import hashlib
import json
import shlex
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from mlflow import MlflowClient

from deepfake.data.prepare import prepare_data
from deepfake.data.store import store_path
from study.config.schema import StudyConfig
from study.maintenance.checks import driver_version, machine
from study.maintenance.doctor import Diagnosis, examine
from study.slots.budget import given_params
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.storage.connection import has_tables
from study.tracking.delivery import Replay
from study.tracking.spool import Spool
from tests.support.forked import Process, wait_until
from tests.support.photos import draw_set
from tests.support.postgres import Postgres
from tests.support.recorded import train
from tests.support.runs import Folder

MakeConfig = Callable[..., StudyConfig]
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.fixture
def slots(make_config: MakeConfig, empty_mlflow: Path, empty_study: Path, tmp_path: Path) -> Slots:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    shutil.copy(empty_study, tmp_path / "study.db")
    overrides = ["study.n_trials=4", "study.heartbeat_s=1", "study.lease_s=2"]
    config = make_config(*overrides, f"data.work_dir={tmp_path}/faces")
    return create_or_join(config, {"train.weights (sha256)": ""})


def tracked(slots: Slots) -> Replay:
    """Slot 0 complete, in the database and in MLflow."""
    slot = slots.claim("host:1")
    assert slot is not None
    spool = Spool.of(slots.config, slots.study_id)
    train(spool.run(0, 0), epochs=2)
    slots.report(slot, 0, 0.6)
    slots.complete(slot, 0.6)
    replay = Replay(slots.config, slots, spool)
    replay.deliver_all()
    replay.reconcile()
    return replay


def client(slots: Slots) -> MlflowClient:
    return MlflowClient(tracking_uri=slots.config.tracking.uri)


def wrong(found: Diagnosis, area: str) -> list[str]:
    return [f.what for f in found.findings if f.area == area and f.level == "wrong"]


def listing(folder: Path) -> dict[str, Any]:
    """Every file's bytes and time; a WAL's own files, which come and go with readers, left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(("-wal", "-shm")):
            continue
        name = str(path.relative_to(folder))
        found[name] = None if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        if not path.is_dir():
            found[name] += str(path.stat().st_mtime_ns)
    return found


def test_where_nothing_is_yet_nothing_is_wrong_and_nothing_is_made(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    found = examine(make_config(f"data.work_dir={tmp_path}/faces"))
    notes = [f.what for f in found.findings if f.level == "note"]
    assert f"{tmp_path}/faces: not prepared yet" in notes
    assert f"{tmp_path}/study.db: no study was started here yet" in notes
    assert f"{tmp_path}/mlflow.db: not there yet; the first run creates it" in notes
    assert wrong(found, "study") == wrong(found, "mlflow") == wrong(found, "data") == []
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_file_stays_empty(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("study.db", "mlflow.db"):
        (tmp_path / name).touch()
    examine(make_config(), fix=True)
    assert [(tmp_path / name).stat().st_size for name in ("study.db", "mlflow.db")] == [0, 0]


def test_a_slot_without_a_run_is_trained_again_by_the_command_that_is_said(
    slots: Slots,
) -> None:
    slot = slots.claim("host:1")
    assert slot is not None
    slots.complete(slot, 0.6)
    (finding,) = [f for f in examine(slots.config).findings if "has no run" in f.what]
    assert finding.level == "wrong"
    assert finding.remedy is not None
    *_, params = shlex.split(finding.remedy)
    assert given_params(params, slots.config.space) == slots.records()[0].params


def claim_and_hang(config: StudyConfig) -> None:
    claimed = join(config).claim("host:2")
    assert claimed is not None
    print(claimed.number, flush=True)
    time.sleep(600)


@pytest.mark.slow
def test_the_slot_of_a_killed_worker_is_found_and_freed(slots: Slots) -> None:
    worker = Process(None, claim_and_hang, slots.config)
    wait_until(lambda: worker.said() == "0\n", "it has a slot")
    worker.kill()
    deadline = time.monotonic() + 60
    while not slots.stale():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = examine(slots.config)
    (what,) = wrong(found, "study")[-1:]
    assert "slot 0 runs no more: its worker host:2 is silent for longer than" in what
    assert [f.fixable for f in found.findings if f.what == what] == [True]
    assert slots.records()[0].state == "running"  # only looked at
    found = examine(slots.config, fix=True)
    assert found.mended == ["study 'sample': slot 0 taken back: host:2"]
    assert (slots.records()[0].state, slots.records()[0].attempt) == ("waiting", 1)
    assert not [w for w in wrong(found, "study") if "slot 0" in w]


def test_a_slot_whose_worker_beats_is_left_alone(slots: Slots) -> None:
    assert slots.claim("host:1") is not None
    assert slots.stale() == []
    assert slots.free_stale() == []


def test_a_run_in_another_state_than_its_slot_is_found_and_set_right(slots: Slots) -> None:
    tracked(slots)
    run_id = slots.records()[0].run_id
    assert run_id is not None
    assert wrong(examine(slots.config), "mlflow") == []
    client(slots).set_terminated(run_id, "FAILED")
    found = examine(slots.config)
    assert wrong(found, "mlflow") == [f"run {run_id} of slot 0 is FAILED, the slot is complete"]
    assert client(slots).get_run(run_id).info.status == "FAILED"
    found = examine(slots.config, fix=True)
    assert found.mended == ["study 'sample': 1 runs set to their slots' states"]
    assert wrong(found, "mlflow") == []
    assert client(slots).get_run(run_id).info.status == "FINISHED"


def test_a_deleted_run_and_one_without_a_slot_are_named(slots: Slots) -> None:
    replay = tracked(slots)
    run_id = slots.records()[0].run_id
    assert run_id is not None
    client(slots).delete_run(run_id)
    replay.tracker.create_run(17, 0, "of nobody", {})
    found = examine(slots.config, fix=True)  # which fix leaves
    assert wrong(found, "mlflow") == [f"run {run_id} of slot 0 is not in MLflow any more"]
    uri = slots.config.tracking.uri
    restore = f"MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {run_id}"
    assert restore in [f.remedy for f in found.findings]
    notes = [f.what for f in found.findings if f.level == "note"]
    assert "MLflow has a run of slot 17, the study has 4 slots" in notes


def test_a_lost_mlflow_database_is_one_finding(slots: Slots, tmp_path: Path) -> None:
    spool = Spool.of(slots.config, slots.study_id)
    while (slot := slots.claim("host:1")) is not None:
        train(spool.run(slot.number, 0), epochs=1)
        slots.report(slot, 0, 0.6)
        slots.complete(slot, 0.6)
    Replay(slots.config, slots, spool).deliver_all()
    assert wrong(examine(slots.config), "mlflow") == []
    (tmp_path / "mlflow.db").unlink()
    found = examine(slots.config)
    said = ["runs of 4 slots are not in MLflow any more, the first that of slot 0"]
    assert wrong(found, "mlflow") == said
    (remedy,) = [f.remedy for f in found.findings if f.what == said[0]]
    assert remedy is not None
    assert remedy.startswith("put MLflow's database back, or set tracking.uri")


def test_the_disk_of_the_studies_beside_it_is_counted(slots: Slots, tmp_path: Path) -> None:
    for size, name in enumerate(("-final", "-leak-photo", "-leak-face"), start=1):
        folder = slots.config.checkpoints_dir.with_name(f"sample{name}") / "0f/spool"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(size))
    (tmp_path / "faces/leak/photo").mkdir(parents=True)
    (tmp_path / "faces/leak/photo/faces.csv").write_bytes(bytes(9))
    (tmp_path / "artifacts/sample-final").mkdir(parents=True)
    (tmp_path / "artifacts/sample-final/best").write_bytes(bytes(7))
    disk = {usage.what: usage.n_bytes for usage in examine(slots.config).disk}
    assert disk["checkpoints of sample-final"] == 1
    assert disk["of them, spool of sample-leak-photo"] == 2
    assert disk["checkpoints of sample-leak-face"] == 3
    assert disk["data of sample-leak-photo"] == 9
    assert disk["MLflow's artifacts of sample-final"] == 7


def test_where_the_crops_are_gone_the_way_out_is_said(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = draw_set(tmp_path / "photos", n_photos=12)
    work_dir = tmp_path / "faces"
    config = make_config(
        f"data.annotations=[{path}]",
        f"data.photos_dir={path.parent}",
        f"data.work_dir={work_dir}",
        "train.image_size={cnn: 32, mobilenet_v2: 33}",
    )
    prepare_data(config.data, config.sides_px, processes=1)
    shutil.rmtree(work_dir / "crops")
    found = examine(config)
    (what,) = wrong(found, "data")
    assert what.startswith(f"{work_dir}/crops: 24 of 24 crops are missing, the first ")
    (finding,) = [finding for finding in found.findings if finding.what == what]
    assert finding.remedy == "deepfake-study prepare CONFIG"
    prepare_data(config.data, config.sides_px, processes=1)  # as it said
    assert wrong(examine(config), "data") == []


def test_crops_that_are_not_their_photos_and_photos_that_came_are_named(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = draw_set(tmp_path / "photos", n_photos=12)
    config = make_config(
        f"data.annotations=[{path}]",
        f"data.photos_dir={path.parent}",
        f"data.work_dir={tmp_path}/faces",
        "train.image_size={cnn: 32, mobilenet_v2: 33}",
    )
    photos = path.parent / "Images/Train"
    late = (photos / "Train_poly4.jpg").rename(tmp_path / "late.jpg")
    prepare_data(config.data, config.sides_px, processes=1)
    proved = "22 crops, spread over all, are what is cut from their photos now"
    assert proved in [finding.what for finding in examine(config).findings]
    late.rename(photos / "Train_poly4.jpg")
    shutil.copyfile(photos / "Train_poly5.jpg", photos / "Train_poly6.jpg")
    found = examine(config)
    (what,) = wrong(found, "data")
    assert what.startswith("2 of 22 crops are not what is cut from their photos now, the first ")
    (note,) = [f for f in found.findings if (f.area, f.level) == ("data", "note")]
    assert note.what.endswith("are there now: Images/Train/Train_poly4.jpg")
    assert note.remedy == "deepfake-study prepare CONFIG"


def test_where_the_photos_went_crops_are_not_compared_with_them(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = draw_set(tmp_path / "photos", n_photos=12)
    annotations = (tmp_path / "Train_poly.json").resolve()
    path.rename(annotations)
    config = make_config(
        f"data.annotations=[{annotations}]",
        f"data.photos_dir={path.parent}",
        f"data.work_dir={tmp_path}/faces",
        "train.image_size={cnn: 32, mobilenet_v2: 33}",
    )
    prepare_data(config.data, config.sides_px, processes=1)
    shutil.rmtree(path.parent)
    found = examine(config)
    assert wrong(found, "data") == []
    (note,) = [f for f in found.findings if (f.area, f.level) == ("data", "note")]
    assert note.what.startswith(f"no crop is compared with its photo: {path.parent}: no such")


def test_entries_that_wait_in_the_spool_are_counted(slots: Slots) -> None:
    train(Spool.of(slots.config, slots.study_id).run(1, 0), epochs=2)
    (what,) = wrong(examine(slots.config), "mlflow")
    assert what.startswith("study 'sample': 11 entries wait for MLflow in ")


def test_what_cannot_be_reached_is_said_in_a_line(
    slots: Slots, make_config: MakeConfig, tmp_path: Path
) -> None:
    away = make_config(f"tracking.uri={NOWHERE}", f"study.checkpoints_dir={tmp_path}/c")
    (what,) = wrong(examine(away), "mlflow")
    assert what.startswith(f"tracking.uri: {NOWHERE} does not answer")
    url = "postgresql+psycopg://me:secret@127.0.0.1:9/nothing"
    (what,) = wrong(examine(make_config(storage=url)), "study")
    assert what.startswith("study.storage: postgresql+psycopg://")
    assert ("\n" in what, "secret" in what) == (False, False)


def test_a_broken_database_file_is_a_finding(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("study.db", "mlflow.db"):
        (tmp_path / name).write_bytes(b"no database " * 1000)
    found = examine(make_config())
    for area in ("study", "mlflow"):
        (what,) = wrong(found, area)
        assert ("not a database" in what, str(tmp_path) in what) == (True, True)


@pytest.mark.slow
def test_an_empty_postgresql_database_stays_empty(
    make_config: MakeConfig, postgres: Postgres
) -> None:
    url = postgres.new_database()
    found = examine(make_config(storage=url), fix=True)
    assert wrong(found, "study") == []
    assert not has_tables(url)


def test_memory_that_is_short_is_noted(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for available, level in ((1.5e9, "note"), (3e9, "ok")):
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        found = {finding.what: finding.level for finding in machine(make_config())}
        assert found[f"{available / 1e9:.1f} GB of memory available"] == level


def test_a_driver_is_one_that_has_a_gpu(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("pynvml.nvmlInit", lambda: None)
    monkeypatch.setattr("pynvml.nvmlShutdown", lambda: None)
    monkeypatch.setattr("pynvml.nvmlSystemGetDriverVersion", lambda: "580.65.06")
    for gpus, line in (
        (1, "driver 580.65.06 has a GPU, torch "),
        (0, "no NVIDIA GPU seen: trainings run"),
    ):
        monkeypatch.setattr("pynvml.nvmlDeviceGetCount", lambda gpus=gpus: gpus)
        assert any(finding.what.startswith(line) for finding in machine(make_config()))


@pytest.mark.parametrize("why", ["no driver", "no package"])
def test_without_a_driver_or_the_package_that_asks_it_there_is_no_gpu(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr("pynvml.nvmlInit", init)
    if why == "no package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_version() is None


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from study.maintenance import checks as checkup

    asked = ["optuna>=99", "nowhere-to-be-found", "torch>=1", 'ray>=99; extra == "ray"']
    monkeypatch.setattr(checkup, "requires", lambda name: asked)
    found = [(f.level, f.what.split(" is ")[0]) for f in checkup.packages()]
    assert found == [("wrong", "optuna"), ("wrong", "nowhere-to-be-found")]


# the command, on a whole study


@pytest.mark.slow
def test_a_study_that_is_well_is_left_as_it_is(small_study: Folder) -> None:
    for path in (small_study.path / "mlruns").glob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as database:  # this process left a WAL
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = listing(small_study.path)
    done = small_study.run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["healthy"] is True
    assert {f["level"] for f in document["findings"]} <= {"ok", "note"}
    assert {f["area"] for f in document["findings"]} == {
        "machine",
        "config",
        "data",
        "study",
        "mlflow",
    }
    places = {usage["what"]: usage["n_bytes"] for usage in document["disk"]}
    store = sum(path.stat().st_size for path in (small_study.path / "faces/store").iterdir())
    assert places["stores"] == store
    assert listing(small_study.path) == before
    assert "nothing is wrong" in small_study.call("doctor").stdout


@pytest.fixture(scope="module")
def broken(small_study: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared faces of a study, to be damaged."""
    path = tmp_path_factory.mktemp("broken") / "faces"
    shutil.copytree(small_study.path / "faces", path)
    return path


@pytest.mark.slow
def test_damaged_data_is_named(small_study: Folder, broken: Path) -> None:
    def said() -> tuple[int, list[str]]:
        done = small_study.call("doctor", "--json", "--set", f"data.work_dir={broken}")
        found = json.loads(done.stdout)["findings"]
        return done.returncode, [f["what"] for f in found if f["level"] == "wrong"]

    assert said() == (0, [])
    with kept(store_path(broken, 32)) as store:
        content = bytearray(store.read_bytes())
        content[-32 * 32 * 3 :] = bytes(32 * 32 * 3)  # the last face black
        store.write_bytes(content)
        code, (what,) = said()
        assert (code, what.startswith(f"{store}: damaged: row ")) == (2, True)
        store.write_bytes(content[:-1])
        code, (what,) = said()
        assert (code, what.startswith(f"{store}: damaged: ")) == (2, True)
    with kept(sorted((broken / "crops").iterdir())[0]) as crop:
        crop.write_bytes(crop.read_bytes() + b"x")
        assert said() == (2, [f"{broken}/crops: crops changed since they were prepared"])
        crop.unlink()
        code, (what,) = said()
        assert (code, f"crops are missing, the first {crop.name}" in what) == (2, True)
    with kept(broken / "splits.csv") as table:
        table.write_text(table.read_text() + "\n")
        code, whats = said()
        assert (code, f"{table}: changed since it was prepared" in whats[0]) == (2, True)
    assert said() == (0, [])


@contextlib.contextmanager
def kept(path: Path) -> Any:
    """The file, which is put back."""
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@pytest.mark.slow
def test_another_configuration_than_the_studys_is_named(small_study: Folder) -> None:
    done = small_study.call("doctor", "--json", "--set", "train.max_epochs=7")
    (what,) = [f["what"] for f in json.loads(done.stdout)["findings"] if f["level"] == "wrong"]
    assert (done.returncode, "max_epochs was 2, is 7" in what) == (2, True)
    assert join(small_study.study_config()).records()[0].state == "complete"
