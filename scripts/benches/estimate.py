"""What `estimate` says of the sample study, and what that study then takes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benches.table import Row
from deepfake.parallel import available_cores
from deepfake.sample import draw_sample

ROOT = Path(__file__).parents[2]
PHOTOS, WORKERS = 120, 2


def bench() -> list[Row]:
    """The quickstart's study on fewer photos, from the command to the last slot."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_sample(folder / "data/sample", PHOTOS, 0, available_cores())
        started = time.monotonic()
        said = json.loads(_call(folder, "estimate", "--workers", str(WORKERS), "--json"))
        asked_s = time.monotonic() - started
        _call(folder, "prepare")
        started = time.monotonic()
        _call(folder, "run", "--workers", str(WORKERS))
        took_s = time.monotonic() - started
    note = f"usual: what it took; at most {said['at_most_s']:.0f} s; asking took {asked_s:.0f} s"
    figure = f"s of the sample study, {WORKERS} workers, as estimated before"
    said_s = said["search_s"]
    return [Row(figure, said_s, took_s, said_s / took_s, low=0.75, high=1.25, note=note)]


def _call(folder: Path, name: str, *options: str) -> str:
    settings = ["--set", f"baselines={ROOT}/configs/baselines.yaml"]
    command = [sys.executable, "-m", "study", name, str(ROOT / "configs/sample.yaml")]
    done = subprocess.run(
        [*command, *settings, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
