"""deepfake-study: parse, load the YAML, call one function. Heavy imports only where used."""

import json
import logging
import os
import re
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from study.config import StudyConfig
    from study.run import Ended

# MLflow reads these when it is first imported; what the user has set stands
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 block one call for 246 s
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault(
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
)  # the UI in 2 processes, not 9
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

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


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([sm]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time; write 25, 25s or 2m")
    return float(found[1]) * (60 if found[2] == "m" else 1)


Grace = Annotated[
    float,
    typer.Option(
        parser=_seconds, metavar="TIME", help="from a stop signal to the end, come what may"
    ),
]


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
    launcher: Annotated[str, typer.Option(metavar="local|slurm|ray")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="default: all that the GPUs here take, or 1")
    ] = None,
    workers_per_gpu: Annotated[int | None, typer.Option(min=1, help="local; default 1")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="partition, time (minutes), mem_gb ...; repeatable"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="slurm: submit and return")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="join this Ray cluster; without it one starts here")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="ray: 0.5 packs two")
    ] = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    new: Annotated[bool, typer.Option("--new", help="a fresh study under a new name")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Create or join the study and run its workers; after Ctrl-C the same command continues."""
    from study.live import StudyView
    from study.place import Placement, named, slurm_dir
    from study.run import begin, run_workers
    from study.slots import free_name
    from study.slurm import submitted

    loaded = _load(config, set_)
    local = (workers, workers_per_gpu)
    on_ray = (ray_address, gpus_per_worker)
    placement = Placement(named(launcher), *local, tuple(slurm or ()), detach, *on_ray, grace)
    placement.check(loaded, os.environ)
    # the storage may hold a password: workers get it from the environment, no message shows it
    secret = "study.storage"
    overrides = [e for e in set_ or [] if e.partition("=")[0].strip() != secret]
    if new:
        name = free_name(loaded)
        overrides.append(f"name={json.dumps(name)}")
        loaded = loaded.model_copy(update={"name": name})
    sets = [argument for override in overrides for argument in ("--set", override)]
    again = shlex.join(["deepfake-study", "run", str(config), *placement.arguments(), *sets])
    deliver = shlex.join(["deepfake-study", "sync", str(config), *sets])
    slots = begin(loaded, _prepare, _warn)
    for warning in placement.warnings(loaded, os.environ):
        _warn(warning)
    records = slots.records()
    left = sum(not record.finished for record in records)
    _stderr().print(f"study '{loaded.name}': {left} of {len(records)} slots to run; {again}")
    storage = loaded.study.storage.get_secret_value()
    os.environ["DEEPFAKE_STUDY_STORAGE"] = storage  # sbatch hands it on to its jobs
    if placement.starts_ray:  # on 127.0.0.1 alone, not on every interface
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ended = run_workers(
        slots,
        placement,
        ("worker", str(config), *sets),
        partial(_worker_environment, storage),
        StudyView(_stderr(), loaded.train.max_epochs),
    )
    if detach and not ended.finished:
        typer.echo(submitted(slurm_dir(loaded)).job_ids[-1])
        see = shlex.join(["deepfake-study", "jobs", str(config), *sets])
        _stderr().print(f"submitted; their state: {see}")
        raise typer.Exit(DONE)
    raise typer.Exit(
        _say_how_it_ended(loaded.name, ended, loaded.train.max_epochs, again, deliver, as_json)
    )


@app.command()
def jobs(
    config: Config,
    cancel: Annotated[bool, typer.Option("--cancel", help="end them; slots are freed")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """The Slurm jobs that `run --launcher slurm` submitted for this study."""
    from study.place import slurm_dir
    from study.slurm import submitted

    found = submitted(slurm_dir(_load(config, set_)))
    if cancel:
        found.cancel()
    states = found.states()
    if as_json:
        typer.echo(
            json.dumps([{"job": j.job_id, "state": j.state, "node": j.node} for j in states])
        )
        return
    for job in states:
        typer.echo(f"{job.job_id:12} {job.state:12} {job.node}")
    if not states:
        _stderr().print("no jobs were submitted for this study")


@app.command()
def worker(
    config: Config,
    device: Device = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    set_: Set = None,
) -> None:
    """One worker that joins the study, or creates it as the first: what a cluster starts."""
    from study.stop import Stopped, StopSignal

    stop = StopSignal(second_exits=True)
    stop.listen()
    stop.end_within(grace)
    if parent is not None:
        stop.follow_parent(parent)
    from study.outage import StorageError
    from study.worker import TooManyFailed, pick_device, work

    try:
        records = work(_load(config, set_), pick_device(device), stop)
    except (Stopped, StorageError):
        if stop.number is None:
            raise
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
def sync(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Deliver to MLflow what workers kept while it was away, and set each run's true state."""
    from dataclasses import asdict

    from study.delivery import sync as deliver_left_over

    found = deliver_left_over(_load(config, set_))
    said = f"entries delivered: {found.delivered}, still waiting: {found.waiting}; "
    said += f"runs set to their true state: {found.reconciled}"
    _print(asdict(found), said, as_json)


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


def _worker_environment(storage: str) -> dict[str, str]:
    """What a worker finds around it, on the machine where this is called."""
    return {**os.environ, "DEEPFAKE_STUDY_STORAGE": storage}


def _say_how_it_ended(
    name: str, ended: "Ended", max_epochs: int, again: str, deliver: str, as_json: bool
) -> int:
    """Print the result of `run`, and the commands for what is left; its exit code."""
    from study.live import status_table
    from study.records import summary

    _print(summary(name, ended.records), status_table(name, ended.records, max_epochs), as_json)
    if ended.undelivered:
        _stderr().print(
            f"entries that wait for MLflow: {ended.undelivered}; once it is back: {deliver}"
        )
    if ended.signal is not None:
        _stderr().print(f"stopped; continue with: {again}")
        return 128 + ended.signal
    if ended.worst and not ended.finished:
        _stderr().print(f"a worker ended with exit code {ended.worst}: {ended.last_words}")
        return ended.worst
    return FAILED_SLOTS if any(record.state == "failed" for record in ended.records) else DONE


def _warn(message: str) -> None:
    _stderr().print(f"warning: {message}", style="yellow")


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
