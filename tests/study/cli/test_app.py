"""The command line; what a user gets wrong there is tests/study/cli/test_errors.py's."""

import subprocess
import sys
from pathlib import Path

import pytest

from study.slots.study import create_or_join
from tests.support.runs import REPOSITORY, Folder

HEAVY = ("torch", "mlflow", "optuna", "pandas", "sklearn", "matplotlib", "plotly")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from study.cli.app import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stderr.strip() == "[]"
    commands = ("sample", "prepare", "run", "worker", "status", "evaluate", "compare", "export")
    for command in (*commands, "predict"):
        assert f" {command} " in done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, 12)


def test_a_command_is_printed_as_it_must_be_typed(folder: Folder) -> None:
    create_or_join(folder.study_config(), {"study.seed": 0})
    done = folder.call("stop")  # into a pipe
    assert done.returncode == 0, done.stderr
    assert f"--set 'data.annotations=[{folder.path}/photos/Train_poly.json]'" in done.stdout
    assert "--set 'train.image_size={cnn: 32, mobilenet_v2: 33}'" in done.stdout


@pytest.mark.slow
def test_prepare_says_what_it_left_and_a_second_time_the_same(folder: Folder) -> None:
    first = folder.json("prepare")
    assert (first["photos"], first["faces"], first["real"], first["fake"]) == (12, 24, 12, 12)
    crops = {path: path.stat().st_mtime_ns for path in (folder.path / "faces/crops").iterdir()}
    assert folder.json("prepare") == first
    assert crops == {p: p.stat().st_mtime_ns for p in (folder.path / "faces/crops").iterdir()}
