"""What training loses when MLflow's server is away."""

import re
import tempfile
import time
from pathlib import Path

from benches.table import Row
from tests.support import mlflow_server
from tests.support.runs import Folder

STUDY_EPOCHS = 10  # of each baseline


def bench() -> list[Row]:
    """The server is dead from the start, or dies in the middle, beside one that lives."""
    alive = _train_study(stop_after=None)
    dead = _train_study(stop_after=0)
    dying = _train_study(stop_after=STUDY_EPOCHS)
    return [
        Row(f"seconds from the first of {3 * STUDY_EPOCHS} epochs to the last", alive),
        Row("seconds more with the server dead from the start", dead - alive, high=3.0),
        Row("seconds more with the server dying in the middle", dying - alive, high=3.0),
    ]


def _train_study(stop_after: int | None) -> float:
    """Seconds from the first epoch's end to the last's, of one worker on the three baselines.

    stop_after: epochs until the MLflow server is killed; None leaves it alone.
    """
    with tempfile.TemporaryDirectory() as name, mlflow_server.running(Path(name)) as server:
        epochs = f"train.max_epochs={STUDY_EPOCHS}"
        patient = f"train.stop_patience={STUDY_EPOCHS}"
        uri = f"tracking.uri={server.uri}"
        folder = Folder(Path(name), 60, epochs, patient, uri, "study.n_trials=3")
        prepared = folder.call("prepare")
        assert prepared.returncode == 0, prepared.stderr
        if stop_after == 0:
            server.stop()
        worker = folder.start("worker", "--device", "cpu")
        assert worker.stderr is not None
        ends = []
        for line in worker.stderr:
            if re.search(r"epoch \d+ val_loss", line):
                ends.append(time.monotonic())
                if len(ends) == stop_after:
                    server.stop()
        assert worker.wait() == 0
        assert len(ends) == 3 * STUDY_EPOCHS
        return ends[-1] - ends[0]
