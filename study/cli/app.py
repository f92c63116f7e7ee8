"""deepfake-study: its commands, its exit codes, one line for what a user can mend."""

import atexit
import gc
import logging
import os
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from study.cli import data, maintenance, results, search
from study.cli.options import MENDABLE, PasteableFormatter, pasteable

# MLflow reads these when it is first imported; what the user has set stands
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 block one call for 246 s
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # UI: 2 processes, not 9
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Commands(TyperGroup):
    """The commands; one that Ctrl-C ends says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand not in ("status", "ui"):  # these are ended so
                sys.stderr.write("stopped; nothing is lost: the same command continues\n")
            raise typer.Exit(128 + signal.SIGINT) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Search hyperparameters of deepfake-face classifiers, beside a published report.",
)
COMMANDS = (  # as --help lists them
    data.sample,
    data.prepare,
    data.audit,
    data.estimate,
    search.run,
    search.jobs,
    search.worker,
    search.enqueue,
    search.stop,
    search.status,
    results.evaluate,
    results.compare,
    results.report,
    results.export,
    results.predict,
    search.sync,
    maintenance.doctor,
    maintenance.gc,
    results.ui,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """The console script: exit codes as the README has them, no traceback for what is mendable."""
    # or the interpreter's end looks once more through all that was imported: a second of a core
    atexit.register(gc.freeze)
    handler = logging.StreamHandler()
    handler.setFormatter(PasteableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in (
        "alembic",
        "mlflow",
        "matplotlib",
        "urllib3",
        "filelock",
        "onnxscript",
        "onnx_ir",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(standalone_mode=False)  # else typer draws a box around what it can't take
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        if line:  # empty: typer has shown the help
            sys.stderr.write(f"error: {pasteable(line)}\n")
        code = MENDABLE
    sys.exit(code)


def _mendable(error: Exception) -> str | None:
    """The one line of what a user can mend; None for what only we can."""
    if isinstance(error, typer.TyperException):
        return _of_arguments(error)
    from deepfake.errors import UserError, of_machine

    return str(error) if isinstance(error, UserError) else of_machine(error)


def _of_arguments(error: typer.TyperException) -> str:
    """What typer says of an option, with the value where it leaves it out."""
    from pydantic import ValidationError

    line = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        line = line.replace("Value error, ", "")
        value = error.__cause__.errors()[0]["input"]
        line += "" if repr(value) in line else f", not {value}"
    context = getattr(error, "ctx", None)
    return f"{line}; see: {context.command_path} --help" if line and context else line


if __name__ == "__main__":
    main()
