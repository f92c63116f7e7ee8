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


LONG = {
    "prepare": "preparing the data of study 'sample'",
    "audit": "auditing the data of study 'sample'",
    "estimate": "timing some seconds of study 'sample'",
    "run": "preparing study 'sample'",
    "run --sampler random": "preparing study 'sample-random'",
    "evaluate": "evaluating study 'sample'",
    "report": "writing the report of study 'sample'",
    "export --out model": "exporting a model of study 'sample'",
    "doctor": "examining study 'sample'",
    "gc": "looking through study 'sample'",
}


def test_a_command_says_what_it_does_before_imports_that_take_seconds() -> None:
    code = f"""
import logging, sys
from study.cli.app import main
class Ends(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), [m for m in {HEAVY} if m in sys.modules])
        sys.exit(0)
logging.basicConfig(level=logging.INFO, handlers=[Ends()])
for typed in {[*LONG]}:
    name, *options = typed.split()
    sys.argv = ["deepfake-study", name, "configs/sample.yaml", *options]
    try: main()
    except SystemExit: pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.splitlines() == [f"{said} []" for said in LONG.values()]
