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

    from deepfake.predict import Prediction
    from study.config import StudyConfig
    from study.evaluation import Evaluation, Evaluator, Price
    from study.launchers import Ended, Placement
    from study.slots import Slots


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

SAID_OF_MODEL = {"variant", "side_px", "temperature", "threshold", "weights_sha256"}
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
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time; write 25, 25s, 2m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


Grace = Annotated[
    float,
    typer.Option(
        parser=_seconds, metavar="TIME", help="from a stop signal to the end, come what may"
    ),
]

Timeout = Annotated[
    float | None,
    typer.Option(parser=_seconds, metavar="TIME", help="end cleanly then, as by Ctrl-C; 2h"),
]


Interval = Annotated[
    float, typer.Option(parser=_seconds, metavar="TIME", help="with --watch: between two looks")
]


@app.command()
def sample(
    out_dir: Annotated[Path, typer.Argument(help="receives Train_poly.json and Images/Train/")],
    photos: Annotated[int, typer.Option(min=10, help="how many to draw")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a small data set of faces and face swaps, laid out as OpenForensics."""
    from deepfake.errors import UserError
    from deepfake.parallel import available_cores
    from deepfake.sample import draw_sample
    from study.cli.live import progress_bars

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
            where = f"{error.filename or out_dir}: {error.strerror or error}"
            raise UserError(f"{where}; mend that, or name another folder") from None
    typer.echo(path)


@app.command()
def prepare(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Photos and JSON to faces.csv, crops and splits.csv; only what is missing."""
    from dataclasses import asdict

    from study.cli.tables import summary_table

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
def audit(
    config: Config,
    leak: Annotated[
        bool, typer.Option("--leak", help="train a baseline split by face and by photo: the price")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="with --leak; default: the file's first")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="with --leak: trainings of each split")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="with --leak: as of run")] = None,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Photos in two splits (exit code 2), and what predicts the label without the face."""
    from dataclasses import asdict

    from deepfake.audit import audit as audit_data
    from deepfake.data import prepare_data
    from study.cli.live import progress_bars
    from study.cli.tables import audit_table, leak_lines, price_table
    from study.evaluation import baseline_of

    if not leak and (baseline, workers, device) != (None, None, None):
        raise typer.BadParameter("--baseline, --workers and --device go with --leak")
    loaded = _load(config, set_)
    data = loaded.data
    if leak:
        baseline = baseline_of(loaded, baseline)  # before hours of reading
    with progress_bars(_stderr()) as advance:
        prepare_data(data, progress=advance)  # without its stores: the audit reads photos
        found = audit_data(data, progress=advance)
    document = asdict(found)
    if not (leak and as_json):  # one document for both
        _print(document, audit_table(found), as_json)
    for verdict in found.probes:
        if verdict.flagged:
            low, high = verdict.interval
            found_auc = f"AUC {verdict.auc:.2f} ({low:.2f} to {high:.2f}) on val"
            _warn(f"{verdict.probe} alone predicts the label: {found_auc}")
    if leak and baseline is not None:
        arguments = (str(config), *_shown(set_))
        price = _price_leak(loaded, arguments, baseline, seeds, workers, device)
        _print(document | {"leak": asdict(price)}, price_table(price), as_json)
    if found.leaks:
        for line in leak_lines(found, data.group_by):
            _stderr().print(f"error: {line}")
        raise typer.Exit(MENDABLE)


def _price_leak(
    config: "StudyConfig",
    arguments: tuple[str, ...],
    baseline: str,
    seeds: int,
    workers: int | None,
    device: str | None,
) -> "Price":
    """Train both arms of a leak and compare them; the command ends here if it is stopped."""
    from study.evaluation import ARMS, begin_arm, price
    from study.launchers import Launcher, Placement
    from study.worker import pick_device

    placement = Placement(Launcher.LOCAL, workers, device=device)
    placement.check(config, os.environ)
    options = ["--leak", "--baseline", baseline, "--seeds", str(seeds), *placement.arguments()]
    again = shlex.join(["deepfake-study", "audit", *arguments, *options])
    arms = {}
    for arm in ARMS:
        arms[arm] = begin_arm(config, arm, baseline, seeds, _prepare, _warn)
        _run_reruns(arms[arm], placement, ("worker", *arguments, "--leak", arm), again)
    return price(arms, baseline, seeds, pick_device(device))


@app.command()
def estimate(
    config: Config,
    launcher: Annotated[
        str, typer.Option(metavar="local|slurm|ray", help="local: workers share this machine")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="as of run")] = None,
    workers_per_gpu: Annotated[int | None, typer.Option(min=1, help="as of run")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """What the study will take here: time and disk, from some seconds of each variant."""
    from dataclasses import asdict

    from study.cli.tables import estimate_table
    from study.estimate import estimate as reckon
    from study.launchers import Launcher, Placement, named

    loaded = _load(config, set_)
    local = Placement(Launcher.LOCAL, workers, workers_per_gpu)
    if named(launcher) != Launcher.LOCAL:  # each on a machine or a GPU like this one
        local = Placement(Launcher.LOCAL, workers=1)
    gpus = local.local_gpus(os.environ)
    found = reckon(loaded, gpus, len(gpus) if named(launcher) == Launcher.LOCAL else workers or 1)
    _print(asdict(found), estimate_table(found), as_json)


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
    trials: Annotated[
        str | None, typer.Option(metavar="N|+N", help="slots in all, or more of them; for good")
    ] = None,
    timeout: Timeout = None,
    new: Annotated[bool, typer.Option("--new", help="a fresh study under a new name")] = False,
    sampler: Annotated[
        str | None, typer.Option(metavar="tpe|random", help="random: a control, NAME-random")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Create or join the study and run its workers; after Ctrl-C the same command continues."""
    from study.cli.live import StudyView
    from study.launchers import Placement, named, run_workers, slurm_dir, submitted
    from study.slots import check_trials, free_name, grow
    from study.worker import begin

    loaded = _load(config, set_)
    if sampler is not None:
        own_name = f"{loaded.name}-{sampler}" if sampler != "tpe" else loaded.name
        set_ = [*(set_ or []), f"study.sampler={sampler}", f"name={json.dumps(own_name)}"]
        loaded = _load(config, set_)
    local = (workers, workers_per_gpu)
    on_ray = (ray_address, gpus_per_worker)
    ends = (grace, timeout)
    placement = Placement(named(launcher), *local, tuple(slurm or ()), detach, *on_ray, *ends)
    placement.check(loaded, os.environ)
    if trials is not None:
        check_trials(trials, loaded)
    sets = _shown(set_)
    if new:
        name = free_name(loaded)
        sets += ["--set", f"name={json.dumps(name)}"]
        loaded = loaded.model_copy(update={"name": name})
    again = shlex.join(["deepfake-study", "run", str(config), *placement.arguments(), *sets])
    deliver = shlex.join(["deepfake-study", "sync", str(config), *sets])
    slots = begin(loaded, _prepare, _warn)
    for warning in placement.warnings(loaded, os.environ):
        _warn(warning)
    if trials is not None:
        _stderr().print(f"study '{loaded.name}' has {grow(slots, trials)} slots now")
    _say_what_is_left(slots, again)
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
    from study.launchers import slurm_dir, submitted

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
    timeout: Timeout = None,
    final: Annotated[
        bool, typer.Option("--final", help="the finalists that evaluate --seeds wants")
    ] = False,
    leak: Annotated[
        str | None,
        typer.Option(metavar="photo|face", help="the trainings that audit --leak wants"),
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    set_: Set = None,
) -> None:
    """One worker that joins the study, or creates it as the first: what a cluster starts."""
    from study.signals import Stopped, StopSignal, StudyStopped

    stop = StopSignal(second_exits=True)
    stop.listen()
    stop.end_within(grace)
    if timeout is not None:
        stop.end_after(timeout)
    if parent is not None:
        stop.follow_parent(parent)
    from study.config import final_of
    from study.storage import StorageError
    from study.worker import TooManyFailed, pick_device, work

    loaded = _load(config, set_)
    if final:
        loaded = final_of(loaded)
    if leak is not None:
        from study.evaluation import arm_named, leak_of

        loaded = leak_of(loaded, arm_named(leak))
    try:
        records = work(loaded, pick_device(device), stop)
    except StudyStopped as told:
        begun_by = "the command that began it" if final or leak else _again("run", config, set_)
        _stderr().print(f"{told}; go on with: {begun_by}")
        raise typer.Exit(DONE) from None
    except (Stopped, StorageError):
        if stop.number is None:
            raise
        if stop.timed_out:
            _stderr().print("stopped by --timeout; a worker started again goes on")
            raise typer.Exit(DONE) from None
        raise typer.Exit(128 + stop.number) from None
    except TooManyFailed as error:
        _stderr().print(str(error), style="red")
        raise typer.Exit(FAILED_SLOTS) from None
    raise typer.Exit(FAILED_SLOTS if any(r.state == "failed" for r in records) else DONE)


@app.command()
def enqueue(
    config: Config,
    params: Annotated[
        str, typer.Option(metavar="K=V,...", help="variant=cnn,lr=3e-4,...", show_default=False)
    ],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Add one trial with these parameters to the study; its budget grows by one."""
    from study.slots import enqueue as add, given_params, join

    loaded = _load(config, set_)
    given = given_params(params, loaded.space)
    slots = join(loaded)
    number = add(slots, given)
    n_trials = len(slots.records())
    document = {"name": loaded.name, "slot": number, "n_trials": n_trials}
    again = _again("run", config, set_)
    said = f"slot {number} of study '{loaded.name}', which has {n_trials} slots now; workers that "
    said += f"run take it behind those that wait; without any: {again}"
    _print(document | {"params": given.model_dump()}, said, as_json)


@app.command()
def stop(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """End the study's workers on all machines, behind the epochs that they are in."""
    from study.config import of_reruns
    from study.slots import NoStudy, join, stop_study

    loaded = _load(config, set_)
    final, *leaks = of_reruns(loaded)
    ways = {loaded.name: _again("run", config, set_)}
    ways[final.name] = _again("evaluate", config, set_) + " --seeds N"
    ways |= {leak.name: _again("audit", config, set_) + " --leak" for leak in leaks}
    running: dict[str, int] = {}
    missing = []
    for study in (loaded, final, *leaks):
        try:
            left = stop_study(join(study))
        except NoStudy as error:
            missing.append(error)
            continue
        if left is not None:
            running[study.name] = left
    if len(missing) == len(ways):
        raise missing[0]
    said = [
        f"study '{name}' is stopped: slots that end behind their epochs: {left}; go on with: "
        f"{ways[name]}"
        for name, left in running.items()
    ]
    finished = f"study '{loaded.name}' has finished: there is nothing to stop"
    document = {
        "name": loaded.name,
        "stopped": bool(running),
        "running": sum(running.values()),
        "studies": running,
    }
    _print(document, "\n".join(said) or finished, as_json)


@app.command()
def status(
    config: Config,
    watch: Annotated[bool, typer.Option("--watch", help="show it live until it is over")] = False,
    interval: Interval = "2s",  # type: ignore[assignment]  # parsed as the user's would be
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Budget, slots by state, the best so far and the baselines."""
    from study.cli.live import StudyView
    from study.cli.tables import status_table
    from study.launchers import follow
    from study.slots import is_stopped, join, summary

    loaded = _load(config, set_)
    slots = join(loaded)
    if watch:
        follow(slots, StudyView(_stderr(), loaded.train.max_epochs), interval)
    records = slots.records()
    if is_stopped(slots):
        _stderr().print(f"stopped by `stop`; go on with: {_again('run', config, set_)}")
    # a line a slot: with thousands of them, not for nothing
    table = "" if as_json else status_table(loaded.name, records, loaded.train.max_epochs)
    _print(summary(loaded.name, records), table, as_json)


@app.command()
def evaluate(
    config: Config,
    trial: Annotated[int | None, typer.Option(min=0, help="prove one slot instead")] = None,
    top: Annotated[int, typer.Option(min=1, help="the best so many trials, beside baselines")] = 1,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="train each so often again; without it as the search did"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="with --seeds: as of run")] = None,
    workers_per_gpu: Annotated[int | None, typer.Option(min=1, help="as of run")] = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    corruptions: Annotated[
        bool, typer.Option(help="test faces under JPEG, blur, noise ..., too: 17 more passes")
    ] = True,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prove the best trials and the baselines from logged weights, then open test for them."""
    from dataclasses import asdict

    from study.cli.live import progress_bars
    from study.cli.tables import evaluation_table
    from study.evaluation import Evaluator, contenders_of_final, contenders_of_search
    from study.launchers import Launcher, Placement
    from study.slots import join
    from study.worker import pick_device

    if trial is not None and (seeds, workers, workers_per_gpu) != (None, None, None):
        raise typer.BadParameter("--trial proves one slot as it is; leave out --seeds, --workers")
    slots = join(_load(config, set_))
    evaluator = Evaluator(slots, pick_device(device))
    final = None
    if trial is None and seeds is not None:
        local = (Launcher.LOCAL, workers, workers_per_gpu)
        placement = Placement(*local, grace_s=grace, device=device)
        options = ["--top", str(top), "--seeds", str(seeds), *placement.arguments()]
        options += [] if corruptions else ["--no-corruptions"]
        final = _train_finalists(
            slots, top, seeds, placement, (str(config), *_shown(set_)), options
        )
    with progress_bars(_stderr()) as evaluator.progress:
        if trial is not None:
            found = evaluator.evaluate_slot(trial)
        elif final is None or seeds is None:
            found = evaluator.evaluate(contenders_of_search(slots, top), corruptions=corruptions)
        else:
            contenders, left_out = contenders_of_final(final, top, seeds, slots)
            found = evaluator.evaluate(contenders, left_out, corruptions=corruptions)
        registered = {} if trial is not None else _register(evaluator, found)
    document = asdict(found) | {"registered": registered}
    _print(document, evaluation_table(document), as_json)


def _train_finalists(
    slots: "Slots",
    top: int,
    seeds: int,
    placement: "Placement",
    arguments: tuple[str, ...],
    options: list[str],
) -> "Slots":
    """Their study, all its slots finished. arguments, options: of the command that continues."""
    from study.evaluation import begin_final

    placement.check(slots.config, os.environ)
    final = begin_final(slots, top, seeds)
    again = shlex.join(["deepfake-study", "evaluate", *arguments, *options])
    _run_reruns(final, placement, ("worker", *arguments, "--final"), again)
    return final


def _register(evaluator: "Evaluator", found: "Evaluation") -> dict[str, str]:
    """The verdict's model and the best baseline; a registry that refuses costs a warning."""
    from study.config import TrackingError
    from study.evaluation import keep_best

    try:
        return keep_best(evaluator, found)
    except (TrackingError, OSError) as error:
        _warn(f"not registered: {error}")
        return {}


def _run_reruns(
    slots: "Slots", placement: "Placement", worker: tuple[str, ...], again: str
) -> None:
    """Run the slots that are left; the command ends here, saying again, if it is stopped."""
    from study.cli.live import StudyView
    from study.launchers import run_workers

    name, max_epochs = slots.config.name, slots.config.train.max_epochs
    _say_what_is_left(slots, again)
    storage = slots.config.study.storage.get_secret_value()
    environment = partial(_worker_environment, storage)
    ended = run_workers(slots, placement, worker, environment, StudyView(_stderr(), max_epochs))
    if ended.signal is not None or not ended.finished:
        code = _say_how_it_ended(name, ended, max_epochs, again, again, as_json=False)
        raise typer.Exit(code if ended.halted else code or OUR_FAULT)


@app.command()
def compare(
    config: Config,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="compute all from this table of per-face predictions"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="of --predictions; without it test")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Our test figures beside the report's published ones; with verdicts from --predictions."""
    if predictions is not None:
        from study.cli.tables import analysis_table
        from study.config import load_published
        from study.evaluation import analyse, read_predictions

        published = load_published(config, set_ or [])
        analysed = analyse(read_predictions(predictions), published, split or "test")
        _print(analysed, analysis_table(analysed), as_json)
        return
    if split is not None:
        raise typer.BadParameter("--split needs --predictions FILE")
    from study.cli.tables import comparison_table
    from study.report import compare as compare_with_report
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
def export(
    config: Config,
    out: Annotated[Path, typer.Option(help="the folder to make", show_default=False)],
    trial: Annotated[str, typer.Option(metavar="best|N", help="a slot")] = "best",
    onnx: Annotated[bool, typer.Option("--onnx", help="model.onnx as well (extra: onnx)")] = False,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prove a slot and keep its model: a folder that `predict` takes, and MLflow's registry."""
    from dataclasses import asdict

    from deepfake.errors import UserError
    from study.cli.live import progress_bars
    from study.evaluation import keep
    from study.slots import join
    from study.worker import pick_device

    if trial != "best" and not trial.isdecimal():
        raise UserError(f"--trial {trial}: must be best or the number of a slot")
    number = None if trial == "best" else int(trial)
    slots, where = join(_load(config, set_)), pick_device(device)
    with progress_bars(_stderr()) as advance:
        kept = keep(slots, number, out, where, onnx=onnx, progress=advance)
    said = f"{kept.folder}: slot {kept.slot}, {kept.variant}; temperature {kept.temperature:.3f}, "
    said += f"fake from {kept.threshold:.3f}; in MLflow {kept.registered}"
    _print(asdict(kept), said, as_json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="the folder of an export", show_default=False)],
    pictures: Annotated[list[Path], typer.Argument(help="photos or faces", show_default=False)],
    boxes: Annotated[
        Path | None,
        typer.Option(help="an OpenForensics JSON with the faces; without it each picture is one"),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """The probability that each face is fake, by an exported model alone."""
    from dataclasses import asdict

    from deepfake.export import load_exported
    from deepfake.predict import Prediction, Refused, predict as judge
    from study.worker import pick_device

    loaded = load_exported(model, pick_device(device))
    found = list(judge(loaded, pictures, boxes))
    faces = [one for one in found if isinstance(one, Prediction)]
    refused = [one for one in found if isinstance(one, Refused)]
    if faces or as_json:
        document = {
            "model": loaded.info.model_dump(include=SAID_OF_MODEL),
            "faces": [asdict(face) for face in faces],
            "refused": [asdict(one) for one in refused],
        }
        _print(document, _predictions_table(faces), as_json)
    for one in refused:
        sys.stderr.write(f"error: {one.picture}: {one.reason}\n")
    raise typer.Exit(MENDABLE if refused else DONE)


@app.command()
def sync(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Deliver to MLflow what workers kept while it was away, and set each run's true state."""
    from dataclasses import asdict

    from study.config import of_reruns
    from study.slots import NoStudy
    from study.tracking import SyncResult, sync as deliver_left_over

    loaded = _load(config, set_)
    found, missing = SyncResult(0, 0, 0), []
    studies = (loaded, *of_reruns(loaded))
    for study in studies:
        try:
            found += deliver_left_over(study)
        except NoStudy as error:
            missing.append(error)
    if len(missing) == len(studies):
        raise missing[0]
    said = f"entries delivered: {found.delivered}, still waiting: {found.waiting}; "
    said += f"runs set to their true state: {found.reconciled}"
    _print(asdict(found), said, as_json)


@app.command()
def doctor(
    config: Config,
    fix: Annotated[
        bool, typer.Option("--fix", help="take back dead workers' slots; set MLflow's states")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """What is wrong with machine, data, study and MLflow (exit code 2), and the way out."""
    from dataclasses import asdict

    from study.cli.live import progress_bars
    from study.cli.tables import doctor_table
    from study.maintenance import examine

    loaded = _load(config, set_)
    with progress_bars(_stderr()) as advance:
        found = examine(loaded, fix=fix, progress=advance)
    _print(asdict(found) | {"healthy": found.healthy}, doctor_table(found), as_json)
    raise typer.Exit(DONE if found.healthy else MENDABLE)


@app.command()
def gc(
    config: Config,
    keep: Annotated[str, typer.Option(metavar="best:N", help="whose weights stay")] = "best:5",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would remove")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Remove weights and checkpoints nobody needs; never of baselines, finalists, the best."""
    from dataclasses import asdict

    from deepfake.errors import UserError
    from study.cli.tables import gc_table
    from study.maintenance import collect

    if (best := re.fullmatch(r"best:(\d{1,9})", keep)) is None or int(best[1]) < 1:
        raise UserError(f"--keep {keep}: must be best:N, N at least 1; for example best:5")
    found = collect(_load(config, set_), int(best[1]), dry_run=dry_run)
    _print(asdict(found), gc_table(found), as_json)
    for line in found.failed:
        _stderr().print(f"error: not removed: {line}")
    raise typer.Exit(MENDABLE if found.failed else DONE)


@app.command()
def ui(
    config: Config,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 5000,
    set_: Set = None,
) -> None:
    """Start the MLflow UI on this study's store, on 127.0.0.1."""
    from study.tracking import serve_ui

    raise typer.Exit(serve_ui(_load(config, set_), port, typer.echo))


def main() -> None:
    """The console script: exit codes as the README has them, no traceback for what is mendable."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
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
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        if sys.argv[1:2] not in (["status"], ["ui"]):  # these are ended so
            sys.stderr.write("stopped; nothing is lost, the same command goes on\n")
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        if line:  # empty: typer has shown the help
            sys.stderr.write(f"error: {line}\n")
        code = MENDABLE
    sys.exit(code)


def _mendable(error: Exception) -> str | None:
    """The one line of what a user can mend; None for what only we can."""
    if isinstance(error, typer.TyperException):
        return _of_arguments(error)
    from deepfake.errors import UserError, of_machine

    return str(error) if isinstance(error, UserError) else of_machine(error)


def _of_arguments(error: typer.TyperException) -> str:
    """What typer says of an option, with the value that it leaves out."""
    from pydantic import ValidationError

    line = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        line += f", not {error.__cause__.errors()[0]['input']}"
    context = getattr(error, "ctx", None)
    return f"{line}; see: {context.command_path} --help" if line and context else line


def _load(path: Path, overrides: list[str] | None) -> "StudyConfig":
    from study.config import load_config

    storage = os.environ.get("DEEPFAKE_STUDY_STORAGE")
    return load_config(path, overrides or [], storage)


def _prepare(config: "StudyConfig", sides: tuple[int, ...] | None = None) -> Any:
    """With the stores of all sides that the study's trials read, or of these."""
    from deepfake.data import prepare_data
    from study.cli.live import progress_bars

    with progress_bars(_stderr()) as advance:
        sides_px = config.sides_px if sides is None else sides
        return prepare_data(config.data, sides_px, progress=advance)


def _shown(set_: list[str] | None) -> list[str]:
    """The --set options that commands and messages repeat.

    The storage may hold a password: workers get it from the environment, no message shows it.
    """
    overrides = [e for e in set_ or [] if e.partition("=")[0].strip() != "study.storage"]
    return [argument for override in overrides for argument in ("--set", override)]


def _again(command: str, config: Path, set_: list[str] | None) -> str:
    return shlex.join(["deepfake-study", command, str(config), *_shown(set_)])


def _say_what_is_left(slots: "Slots", again: str) -> None:
    """And let workers run, should the study be stopped."""
    from study.slots import lift_stop

    name, records = slots.config.name, slots.records()
    if lift_stop(slots):
        _stderr().print(f"study '{name}' was stopped by `stop`; it goes on")
    left = sum(not record.finished for record in records)
    _stderr().print(f"study '{name}': {left} of {len(records)} slots to run; {again}")


def _worker_environment(storage: str) -> dict[str, str]:
    """What a worker finds around it, on the machine where this is called."""
    return {**os.environ, "DEEPFAKE_STUDY_STORAGE": storage}


def _say_how_it_ended(
    name: str, ended: "Ended", max_epochs: int, again: str, deliver: str, as_json: bool
) -> int:
    """Print the result of `run`, and the commands for what is left; its exit code."""
    from study.cli.tables import status_table
    from study.slots import summary

    _print(summary(name, ended.records), status_table(name, ended.records, max_epochs), as_json)
    if ended.undelivered:
        _stderr().print(
            f"entries that wait for MLflow: {ended.undelivered}; once it is back: {deliver}"
        )
    if ended.halted is not None and not ended.finished:
        _stderr().print(f"{ended.halted}; continue with: {again}")
        return DONE
    if ended.signal is not None:
        _stderr().print(f"stopped; continue with: {again}")
        return 128 + ended.signal
    if ended.worst and not ended.finished:
        _stderr().print(f"a worker ended with exit code {ended.worst}: {ended.last_words}")
        return ended.worst
    if not ended.finished:  # enqueued behind the workers' last look
        _stderr().print(f"slots were added as the workers ended; continue with: {again}")
        return DONE
    return FAILED_SLOTS if any(record.state == "failed" for record in ended.records) else DONE


def _predictions_table(faces: "list[Prediction]") -> "RenderableType":
    from rich.table import Table

    table = Table()
    columns = ["picture", "box", "P(fake)", "verdict"]
    columns += ["note"] * any(face.note for face in faces)
    for column in columns:
        table.add_column(column, justify="right" if column == "P(fake)" else "left")
    for face in faces:
        box = "whole" if face.box is None else ", ".join(f"{value:g}" for value in face.box)
        style = "red" if face.verdict == "fake" else None
        cells = (face.picture, box, f"{face.probability:.3f}", face.verdict, face.note or "")
        table.add_row(*cells[: len(columns)], style=style)
    return table


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

    # a pipe has no width: never cut a table there
    width = None if sys.stdout.isatty() else 200
    console = Console(markup=False, highlight=False, width=width)
    console.print(table, soft_wrap=isinstance(table, str))  # commands are there to be copied


if __name__ == "__main__":
    main()
