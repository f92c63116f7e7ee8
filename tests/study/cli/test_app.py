"""The command line; what a user gets wrong there is tests/study/cli/test_errors.py's."""

import subprocess
import sys

from tests.support.runs import REPOSITORY

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
