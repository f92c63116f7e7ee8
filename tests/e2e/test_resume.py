"""A slot continues where it was: killed behind every epoch, or frozen past its lease."""

import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepfake.training.checkpoint import Checkpoints
from study.slots.records import SlotRecord
from study.slots.slots import Slots
from study.slots.study import join
from study.tracking.spool import SlotRun
from study.worker.setup import worker_name
from tests.e2e.chaos import EPOCH
from tests.support.forked import Forked, wait_until
from tests.support.mlflow_server import store_image
from tests.support.runs import Folder

pytestmark = pytest.mark.slow

EPOCHS = 4
PHOTOS = 100  # an epoch of the CNN takes a third of a second: a kill finds it in the middle
TIMED = ("seconds", "images_per_s")  # of an epoch's history: no two trainings share them


def prepared(path: Path, *overrides: str) -> Folder:
    folder = Folder(path, PHOTOS, f"train.max_epochs={EPOCHS}", *overrides)
    done = folder.call("prepare")
    assert done.returncode == 0, done.stderr
    return folder


def joined(folder: Folder) -> Slots:
    return join(folder.study_config())


def checkpoints_of(slots: Slots, number: int) -> Path:
    return slots.config.checkpoints_dir / slots.study_id / f"slot_{number:03d}"


def wait_for_epoch(folder: Folder, number: int, epoch: int) -> Path:
    """The checkpoint of a slot behind that epoch, as soon as it is there."""
    found: list[Path] = []

    def there() -> bool:
        checkpoints = folder.path / "mlruns/checkpoints"
        found[:] = checkpoints.glob(f"*/*/slot_{number:03d}/e{epoch:04d}.a*.pt")
        return bool(found)

    wait_until(there, f"slot {number} has the checkpoint of epoch {epoch}")
    return found[0]


def trained_epochs(worker: Forked, number: int) -> list[int]:
    return [
        int(epoch) for slot, _, epoch, _ in EPOCH.findall(worker.said()) if int(slot) == number
    ]


def state_of(kept: Path) -> dict[str, Any]:
    """What a kept checkpoint holds, without its times."""
    state = Checkpoints(kept).load()
    assert state is not None
    for stats in state["history"]:
        for name in TIMED:
            stats.pop(name)
    return state


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states are not the same, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        places = [f"{place}: keys"] if one.keys() != other.keys() else []
        return places + [
            found
            for k in one.keys() & other.keys()
            for found in differences(one[k], other[k], f"{place}/{k}")
        ]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            found
            for i, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{place}/{i}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [place]


def keep(checkpoint: Path, folder: Path) -> None:
    """A link: the worker removes its own name of the file."""
    folder.mkdir()
    os.link(checkpoint, folder / checkpoint.name)


def test_a_slot_killed_behind_every_epoch_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    undisturbed = prepared(tmp_path / "undisturbed", "study.n_trials=3")
    worker = Forked(undisturbed, tmp_path / "undisturbed.log", "worker")
    keep(wait_for_epoch(undisturbed, 0, EPOCHS - 1), tmp_path / "kept-undisturbed")
    assert worker.wait() == 0, worker.said()

    killed = prepared(tmp_path / "killed", "study.n_trials=3")
    for epoch in range(EPOCHS):
        worker = Forked(killed, tmp_path / f"killed-{epoch}.log", "worker")
        checkpoint = wait_for_epoch(killed, 0, epoch)
        worker.kill()
        assert checkpoint.name == f"e{epoch:04d}.a{epoch}.pt"  # one epoch, then the kill
        slots = joined(killed)
        slots.free_worker(worker_name(worker.pid))  # as a launcher does: no lease to wait for
        assert slots.records()[0].attempt == epoch + 1
    keep(checkpoint, tmp_path / "kept-killed")
    last = Forked(killed, tmp_path / "last.log", "worker")
    assert last.wait() == 0, last.said()
    assert trained_epochs(last, 0) == []  # nothing was left to train

    states = state_of(tmp_path / "kept-undisturbed"), state_of(tmp_path / "kept-killed")
    assert differences(*states) == []
    one, other = (joined(folder).records()[0] for folder in (undisturbed, killed))
    assert list(one.losses) == list(range(EPOCHS))
    assert one.losses == other.losses
    images = [
        store_image(f"sqlite:///{folder.path}/mlruns/mlflow.db", "sample")["slots"][0]
        for folder in (undisturbed, killed)
    ]
    assert [len(runs) for runs in images] == [1, 1]
    for part in ("status", "params", "metrics", "artifacts"):
        assert images[0][0][part] == images[1][0][part], part
    assert [step for step, _ in images[0][0]["metrics"]["val_loss"]] == list(range(EPOCHS))
    assert any(name.endswith(".safetensors") for name in images[0][0]["artifacts"])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_the_spool_hears_of_the_end() -> None:
    SlotRun.end = die


def die_before_the_checkpoints_are_removed() -> None:
    Checkpoints.remove = die


@pytest.mark.parametrize(
    "before", [die_before_the_spool_hears_of_the_end, die_before_the_checkpoints_are_removed]
)
def test_a_worker_killed_behind_its_result_leaves_nothing_to_do_again_and_no_file(
    before: Callable[[], None], tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "study", 24, "study.n_trials=3", "train.max_epochs=1")
    assert folder.call("prepare").returncode == 0
    first = Forked(folder, tmp_path / "first.log", "worker", before=before)
    assert first.wait() == -signal.SIGKILL, first.said()
    slots = joined(folder)
    assert [record.state for record in slots.records()] == ["complete", "waiting", "waiting"]
    last = Forked(folder, tmp_path / "last.log", "worker")
    assert last.wait() == 0, last.said()
    assert trained_epochs(last, 0) == []
    assert [record.attempt for record in slots.records()] == [0, 0, 0]
    image = store_image(f"sqlite:///{folder.path}/mlruns/mlflow.db", "sample")
    assert {n: [run["status"] for run in runs] for n, runs in image["slots"].items()} == {
        0: ["FINISHED"],
        1: ["FINISHED"],
        2: ["FINISHED"],
    }
    kept = [path for path in slots.config.checkpoints_dir.rglob("*") if path.is_file()]
    assert [path.name for path in kept if path.suffix != ".lock"] == []


def freeze(worker: Forked, database: Path) -> None:
    """Stop it, but not within a transaction: on SQLite that would stop all others as well."""

    def frozen() -> bool:
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: "\nState:\tT" in status.read_text(), "it is stopped")
        with sqlite3.connect(database, timeout=0.2, isolation_level=None) as other:
            try:
                other.execute("BEGIN IMMEDIATE").execute("ROLLBACK")
            except sqlite3.OperationalError:
                worker.send_signal(signal.SIGCONT)
                return False
        return True

    status = Path(f"/proc/{worker.pid}/status")
    wait_until(frozen, "it is stopped outside a transaction")


def test_a_worker_frozen_past_its_lease_leaves_the_second_result_and_goes_on(
    tmp_path: Path,
) -> None:
    leases = ("study.heartbeat_s=1", "study.lease_s=2", "study.n_trials=6")
    folder = prepared(tmp_path / "study", *leases)
    frozen = Forked(folder, tmp_path / "frozen.log", "worker")
    wait_for_epoch(folder, 0, 0)
    freeze(frozen, folder.path / "mlruns/study.db")
    slots = joined(folder)
    assert slots.records()[0].state == "running"
    other = Forked(folder, tmp_path / "other.log", "worker")

    def record() -> SlotRecord:
        return replace(slots.records()[0], run_id=None)  # MLflow may learn of it later

    wait_until(lambda: record().state == "complete", "slot 0 is finished by the other")
    other.send_signal(signal.SIGTERM)  # what it has begun is for the thawed one
    assert other.wait() == 128 + signal.SIGTERM, other.said()
    second = record()
    assert second.worker == worker_name(other.pid)
    assert [record.finished for record in slots.records()].count(False) > 0
    trained = trained_epochs(frozen, 0)
    checkpoints = checkpoints_of(slots, 0)
    assert not checkpoints.exists()

    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait() == 0, frozen.said()
    assert record() == second
    assert "slot 0: attempt 0 was given up; another worker has it" in frozen.said()
    assert trained_epochs(frozen, 0) == trained
    assert not checkpoints.exists()
    records = slots.records()
    assert [r.state for r in records if not r.finished] == []
    assert worker_name(frozen.pid) in {r.worker for r in records[1:]}  # it took the next
    tracked = store_image(f"sqlite:///{folder.path}/mlruns/mlflow.db", "sample")
    (run,) = tracked["slots"][0]
    assert (run["status"], run["tags"]["attempt"]) == ("FINISHED", "1")
    assert run["metrics"]["val_loss"] == sorted(second.losses.items())
