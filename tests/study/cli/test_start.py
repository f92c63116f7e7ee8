"""What a command loads before it can answer: seconds of a core that most have no use for."""

import subprocess
import sys

import pytest

from tests.support.runs import Folder

HEAVY = {"torch", "torchvision", "sklearn", "scipy", "mlflow", "matplotlib", "plotly", "ray"}
LOADED = """
import atexit, sys
atexit.register(lambda: print("LOADED", *({*%r} & sys.modules.keys()), file=sys.stderr))
from study.cli.app import main
main()
"""


@pytest.mark.slow  # its study is
@pytest.mark.parametrize("command", [["status"], ["doctor"], ["gc", "--dry-run"], ["compare"]])
def test_a_command_that_looks_loads_nothing_that_trains_or_draws(
    small_study: Folder, command: list[str]
) -> None:
    name, *options = command
    done = subprocess.run(
        [sys.executable, "-c", LOADED % HEAVY, *small_study.arguments(name, *options)],
        cwd=small_study.path,
        env=small_study.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED"
