"""What the search itself costs a trial, and how long its commands take."""

import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from benches.filled import filled_study
from benches.table import Row
from study.slots import create_or_join, join
from tests.support.runs import Folder

SLOTS, EPOCHS, EPOCH_S = 9, 10, 30.0
FINISHED = 1000


def bench() -> list[Row]:
    """Real commands on SQLite stores, MLflow's among them."""
    with tempfile.TemporaryDirectory() as name:
        nothing = _slot_that_trains_nothing(Path(name, "nothing"))
        own = _own_cost_of_the_cnn(Path(name, "cnn"))
        folder = _finished_study(Path(name, "many"))
        status = min(_seconds(folder, "status") for _ in range(3))
        repair, claim = _looks(Path(name, "waiting"))
    command = [sys.executable, "-m", "study", "--help"]
    shown = min(_timed(command, Path.cwd()) for _ in range(3))
    share = f"{EPOCHS} epochs of {EPOCH_S:g} s, each with its checkpoint"
    return [
        Row("a slot that trains next to nothing, s", nothing, high=1.5, note="median"),
        Row("own cost of a CNN trial at 128 px, %", own, high=1.0, note=share),
        Row("deepfake-study --help, s", shown, high=0.5),
        Row(f"status on {FINISHED:,} finished slots, s", status, high=3.0),
        Row(f"an idle worker's look at {FINISHED:,} waiting slots, s", repair),
        Row(f"a claim among {FINISHED:,} waiting slots, s", claim),
    ]


def _slot_that_trains_nothing(path: Path) -> float:
    """Median seconds between the ends of two slots of one epoch on 32 faces."""
    folder = Folder(path, 24, "train.max_epochs=1", f"study.n_trials={SLOTS}")
    assert folder.run("prepare").returncode == 0
    worker = folder.start("worker", "--device", "cpu")
    assert worker.stderr is not None
    ends = [
        time.monotonic()
        for line in worker.stderr
        if re.search(r"slot \d+ (complete|pruned)", line)
    ]
    assert worker.wait() == 0
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def _own_cost_of_the_cnn(path: Path) -> float:
    """What a slot takes beside its epochs, in % of epochs of EPOCH_S."""
    folder = Folder(
        path,
        120,  # an epoch takes longer than the checkpoint that is written beside it
        "train.image_size={cnn: 128, mobilenet_v2: 33}",
        f"train.max_epochs={EPOCHS}",
        f"train.stop_patience={EPOCHS}",
        "study.n_trials=3",
    )
    done = folder.run("run")
    assert done.returncode == 0, done.stderr
    record = join(folder.study_config()).records()[0]
    assert record.params is not None
    assert record.params.variant == "cnn"
    assert record.seconds is not None
    client = MlflowClient(tracking_uri=f"sqlite:///{path}/mlruns/mlflow.db")
    epochs = [entry.value for entry in client.get_metric_history(str(record.run_id), "seconds")]
    assert len(epochs) == EPOCHS
    return 100 * (record.seconds - sum(epochs)) / (EPOCHS * EPOCH_S)


def _finished_study(path: Path) -> Folder:
    """FINISHED slots that ran all their epochs."""
    folder = Folder(path, 0, f"study.n_trials={FINISHED}")
    filled_study(folder.study_config(), FINISHED)
    return folder


def _looks(path: Path) -> tuple[float, float]:
    """Seconds of a worker's round without and with a claim, all slots waiting."""
    slots = create_or_join(Folder(path, 0, f"study.n_trials={FINISHED}").study_config(), {})
    slots.repair()
    started = time.perf_counter()
    slots.repair()
    looked = time.perf_counter()
    assert slots.claim("bench") is not None
    return looked - started, time.perf_counter() - looked


def _seconds(folder: Folder, name: str) -> float:
    return _timed(folder.command(name, "--json"), folder.path)


def _timed(command: list[str], cwd: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    if "--json" in command:
        assert json.loads(done.stdout)["slots"]["complete"] == FINISHED
    return seconds
