"""deepfake-study: parse, load the YAML, call one function. Heavy imports only where used."""

import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from study.config import StudyConfig

# MLflow reads these when it is first imported; what the user has set stands
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 block one call for 246 s
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault(
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
)  # the UI in 2 processes, not 9

DONE, OUR_FAULT, MENDABLE, FAILED_SLOTS = 0, 1, 2, 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Search hyperparameters of deepfake-face classifiers, beside a published report.",
)

Config = Annotated[Path, typer.Argument(help="the study's YAML", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key of the YAML; repeatable"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N; without it the first GPU if any")]


@app.command()
def sample(
    out_dir: Annotated[Path, typer.Argument(help="receives Train_poly.json and Images/Train/")],
    photos: Annotated[int, typer.Option(min=10, help="how many to draw")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a small data set of faces and face swaps, laid out as OpenForensics."""
    from deepfake.config import UserError
    from deepfake.parallel import available_cores
    from deepfake.sample import draw_sample
    from study.live import progress_bars

    if (out_dir / "Train_poly.json").exists():
        raise UserError(f"{out_dir}/Train_poly.json is there already; name another folder")
    with progress_bars(_stderr()) as advance:
        try:
            path = draw_sample(
                out_dir,
                photos,
                seed,
                available_cores(),
                lambda done, all_: advance("draw", done, all_),
            )
        except OSError as error:
            raise UserError(f"{error.filename or out_dir}: {error.strerror or error}") from None
    typer.echo(path)


@app.command()
def prepare(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Photos and JSON to faces.csv, crops and splits.csv; only what is missing."""
    from dataclasses import asdict

    from study.live import summary_table

    loaded = _load(config, set_)
    if loaded.train.weights not in ("imagenet", "none"):
        from deepfake.models import load_weights

        load_weights(loaded.train.weights)  # a bad file is said before data is touched
    prepared = _prepare(loaded)
    document = {
        "work_dir": str(prepared.work_dir),
        "splits_sha256": prepared.splits_sha256,
        "crops_sha256": prepared.crops_sha256,
        **asdict(prepared.summary),
    }
    _print(document, summary_table(prepared.summary), as_json)


@app.command()
def run(
    config: Config,
    workers: Annotated[int, typer.Option(min=1, help="local worker processes")] = 1,
    new: Annotated[bool, typer.Option("--new", help="a fresh study under a new name")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Create or join the study and run local workers; after Ctrl-C the same command continues."""
    from deepfake.models import load_weights
    from study.launch import LocalWorkers
    from study.live import StudyView, status_table
    from study.objective import Inputs
    from study.records import summary
    from study.slots import create_or_join, free_name
    from study.worker import StopSignal, check_precision, pick_device, study_fingerprint

    loaded = _load(config, set_)
    device = pick_device(None)
    check_precision(loaded, device)
    # the storage may hold a password: workers get it from the environment, no message shows it
    secret = "study.storage"
    overrides = [e for e in set_ or [] if e.partition("=")[0].strip() != secret]
    if new:
        name = free_name(loaded)
        overrides.append(f"name={json.dumps(name)}")
        loaded = loaded.model_copy(update={"name": name})
    sets = [argument for override in overrides for argument in ("--set", override)]
    again = shlex.join(["deepfake-study", "run", str(config), "--workers", str(workers), *sets])
    weights = load_weights(loaded.train.weights)  # a bad file is said before data is touched
    inputs = Inputs.load(loaded, _prepare(loaded), weights)
    slots = create_or_join(loaded, study_fingerprint(loaded, inputs))
    _warn_about_threads(loaded, workers)

    command = ["worker", str(config), *sets]
    env = {**os.environ, "DEEPFAKE_STUDY_STORAGE": loaded.study.storage.get_secret_value()}
    local = LocalWorkers(command, env, loaded.checkpoints_dir / "logs")
    view = StudyView(_stderr(), loaded.train.max_epochs)
    stop = StopSignal(second_exits=False)
    stop.listen()
    records = slots.records()
    left = sum(not record.finished for record in records)
    _stderr().print(f"study '{loaded.name}': {left} of {len(records)} slots to run; {again}")
    with view(records):
        if not all(record.finished for record in records):
            local.start(workers)
        worst = local.watch(stop, lambda: view.update(slots.records()), slots.free_worker)
    records = slots.records()
    table = status_table(loaded.name, records, loaded.train.max_epochs)
    _print(summary(loaded.name, records), table, as_json)
    if stop.number is not None:
        _stderr().print(f"stopped; continue with: {again}")
        raise typer.Exit(128 + stop.number)
    if worst and not all(record.finished for record in records):
        _stderr().print(f"a worker ended with exit code {worst}: {local.last_words()}")
        raise typer.Exit(worst)
    raise typer.Exit(FAILED_SLOTS if any(r.state == "failed" for r in records) else DONE)


@app.command()
def worker(
    config: Config,
    device: Device = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    set_: Set = None,
) -> None:
    """One worker that joins the study, or creates it as the first: what a cluster starts."""
    from study.worker import Stopped, StopSignal, TooManyFailed, pick_device, work

    stop = StopSignal(second_exits=True)
    stop.listen()
    if parent is not None:
        stop.follow_parent(parent)
    try:
        records = work(_load(config, set_), pick_device(device), stop)
    except Stopped:
        assert stop.number is not None
        raise typer.Exit(128 + stop.number) from None
    except TooManyFailed as error:
        _stderr().print(str(error), style="red")
        raise typer.Exit(FAILED_SLOTS) from None
    raise typer.Exit(FAILED_SLOTS if any(r.state == "failed" for r in records) else DONE)


@app.command()
def status(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Budget, slots by state, the best so far and the baselines."""
    from study.live import status_table
    from study.records import summary
    from study.slots import join

    loaded = _load(config, set_)
    records = join(loaded).records()
    table = status_table(loaded.name, records, loaded.train.max_epochs)
    _print(summary(loaded.name, records), table, as_json)


@app.command()
def evaluate(
    config: Config,
    trial: Annotated[int | None, typer.Option(min=0, help="one slot instead")] = None,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prove the best trial and the baselines from their logged weights, then open test."""
    from dataclasses import asdict

    from study.final import Evaluator
    from study.live import evaluation_table
    from study.slots import join
    from study.worker import pick_device

    evaluator = Evaluator(join(_load(config, set_)), pick_device(device))
    found = evaluator.evaluate() if trial is None else evaluator.evaluate_slot(trial)
    document = asdict(found)
    _print(document, evaluation_table(document), as_json)


@app.command()
def compare(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Our test figures beside the report's published ones."""
    from study.compare import compare as compare_with_report
    from study.live import comparison_table
    from study.slots import join

    found = compare_with_report(join(_load(config, set_)))
    _print(found, comparison_table(found), as_json)


@app.command()
def report(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="the file; without it NAME.html")] = None,
    set_: Set = None,
) -> None:
    """One self-contained HTML file: history, slices, trials, curves, the comparison."""
    from study.report import write_report
    from study.slots import join

    loaded = _load(config, set_)
    typer.echo(write_report(join(loaded), out or Path(f"{loaded.name}.html")))


@app.command()
def ui(
    config: Config,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 5000,
    set_: Set = None,
) -> None:
    """Start the MLflow UI on this study's store, on 127.0.0.1."""
    from study.ui import serve_ui

    raise typer.Exit(serve_ui(_load(config, set_), port, typer.echo))


def main() -> None:
    """The console script: exit codes as the README has them, no traceback for what is mendable."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("alembic", "mlflow", "matplotlib", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # deepfake.config takes pydantic, a tenth of a second: --help and a bad option do without
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from deepfake.config import UserError

        if not isinstance(error, UserError):
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(MENDABLE)


def _load(path: Path, overrides: list[str] | None) -> "StudyConfig":
    from study.load import load_config

    storage = os.environ.get("DEEPFAKE_STUDY_STORAGE")
    return load_config(path, overrides or [], storage)


def _prepare(config: "StudyConfig") -> Any:
    from deepfake.prepare import prepare as prepare_data
    from study.live import progress_bars

    with progress_bars(_stderr()) as advance:
        return prepare_data(config.data, config.sides_px, progress=advance)


def _warn_about_threads(config: "StudyConfig", workers: int) -> None:
    from deepfake.parallel import available_cores

    cores, threads = available_cores(), config.train.threads
    if workers * threads != cores:
        _stderr().print(
            f"warning: {workers} workers x {threads} threads (train.threads) on {cores} cores",
            style="yellow",
        )


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def _print(document: dict[str, Any], table: "RenderableType", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    # a pipe has no width: never cut a table there
    (console if console.is_terminal else Console(width=200)).print(table)


if __name__ == "__main__":
    main()
