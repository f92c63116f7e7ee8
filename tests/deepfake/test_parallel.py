"""What a process that work is spread over imports before it begins: many of them start at once."""

import subprocess
import sys

import pytest

from tests.support.runs import REPOSITORY

HEAVY = {"torch", "torchvision", "sklearn", "scipy"}


@pytest.mark.parametrize(
    "module",
    [
        "deepfake.data.crops",
        "deepfake.data.prepare",
        "deepfake.audit.photo_scan",
        "deepfake.sample.dataset",
    ],
)
def test_what_reads_or_draws_photos_loads_nothing_that_trains(module: str) -> None:
    code = f"import sys, {module}; print({HEAVY} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "set()"
