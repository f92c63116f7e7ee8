"""The search: begun, joined, watched, added to, ended."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from study.cli.options import (
    DONE,
    FAILED_SLOTS,
    Config,
    Device,
    Grace,
    Interval,
    Json,
    Set,
    Timeout,
    command_line,
    load,
    prepare_study,
    same_command,
    show,
    stderr,
    study_words,
    warn,
)
from study.cli.workers import (
    command_of,
    run_slots,
    say_how_it_ended,
    say_what_is_left,
    show_status,
    warmed_up,
)

if TYPE_CHECKING:
    from study.config import StudyConfig
    from study.launchers import Launcher
    from study.slots import Slots


def run(
    config: Config,
    launcher: Annotated[
        str, typer.Option(metavar="local|slurm|ray", help="where the workers run")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="how many workers; by default one a GPU, or one without a GPU"),
    ] = None,
    workers_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="local: how many workers share a GPU; 1 by default")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="slurm: an option of the jobs, such as time=240; may be given more than once",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="slurm: submit the jobs and return")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="ray: the cluster to join; by default one starts here")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="ray: 0.5 lets two workers share a GPU")
    ] = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    trials: Annotated[
        str | None,
        typer.Option(
            metavar="N|+N", help="set the number of slots, or add N to it; the study keeps it"
        ),
    ] = None,
    timeout: Timeout = None,
    new: Annotated[
        bool, typer.Option("--new", help="begin another study of this file under a new name")
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="tpe|random",
            help="random searches at random, as the study NAME-random, to compare with",
        ),
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Create or continue the study and run its workers."""
    sets = list(set_ or ())
    if sampler is not None:
        sets += _sampled(load(config, sets).name, sampler)
    loaded = load(config, sets, "preparing")
    from study.launchers import Placement, launcher_of

    local = (workers, workers_per_gpu)
    on_ray = (ray_address, gpus_per_worker)
    ends = (grace, timeout)
    where = launcher_of(Placement(launcher, *local, tuple(slurm or ()), detach, *on_ray, *ends))
    if trials is not None:
        from study.slots import check_trials

        check_trials(trials, loaded)
    again = same_command()
    if new:
        from study.slots import free_name

        name = free_name(loaded)
        sets.append(_as_name(name))
        again = same_command("--new", "--sampler", sets=sets[len(set_ or ()) :])
        loaded = loaded.model_copy(update={"name": name})
    words = study_words(config, sets)
    os.environ["DEEPFAKE_STUDY_STORAGE"] = loaded.study.storage.get_secret_value()  # for sbatch
    os.environ.update(where.variables())
    with warmed_up(loaded, where, words):
        slots = _begin(loaded, where, trials)
        say_what_is_left(slots, again)
        ended = run_slots(slots, where, words)
    if detach and not ended.finished:
        _say_submitted(loaded, words)
        raise typer.Exit(DONE)
    show_status(loaded, ended.records, as_json)
    raise typer.Exit(say_how_it_ended(ended, again, words))


def _begin(config: "StudyConfig", launcher: "Launcher", trials: str | None) -> "Slots":
    """The slots of the study, created or joined, as many as --trials says.

    Its imports take seconds: what was warmed up goes on beside them.
    """
    from study.slots import grow
    from study.worker import begin

    launcher.check(config, os.environ)
    slots = begin(config, prepare_study, warn)
    for warning in launcher.warnings(config, os.environ):
        warn(warning)
    if trials is not None:
        stderr().print(f"study '{config.name}' has {grow(slots, trials)} slots now")
    return slots


def _say_submitted(config: "StudyConfig", words: tuple[str, ...]) -> None:
    from study.launchers import slurm_dir, submitted

    typer.echo(submitted(slurm_dir(config)).job_ids[-1])
    stderr().print(
        f"the jobs are submitted; see their states with: {command_line('jobs', *words)}"
    )


def _sampled(name: str, sampler: str) -> list[str]:
    """The --set options of the study of that name with another sampler."""
    own_name = f"{name}-{sampler}" if sampler != "tpe" else name
    return [f"study.sampler={sampler}", _as_name(own_name)]


def _as_name(name: str) -> str:
    return f"name={json.dumps(name)}"  # a study may be called 2


def jobs(
    config: Config,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="end the jobs and free their slots")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """List the Slurm jobs of the study, or cancel them."""
    from study.launchers import slurm_dir, submitted

    found = submitted(slurm_dir(load(config, set_)))
    if cancel:
        found.cancel()
    states = found.states()
    if not states:
        stderr().print("no jobs were submitted for this study")
    rows = [{"job": job.job_id, "state": job.state, "node": job.node} for job in states]
    lines = [f"{job.job_id:12} {job.state:12} {job.node}" for job in states]
    if rows or as_json:
        show(rows, "\n".join(lines), as_json)


def worker(
    config: Config,
    device: Device = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    timeout: Timeout = None,
    final: Annotated[
        bool, typer.Option("--final", help="train the finalists of evaluate --seeds")
    ] = False,
    leak: Annotated[
        Literal["photo", "face"] | None,
        typer.Option(help="train one of the two splits of audit --leak"),
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    set_: Set = None,
) -> None:
    """Run one worker of the study; a cluster starts this command on each machine."""
    from study.signals import Stopped, StopSignal

    stop = StopSignal(second_exits=True)
    stop.listen()
    stop.end_within(grace)
    if timeout is not None:
        stop.end_after(timeout)
    if parent is not None:
        stop.follow_parent(parent)
    from deepfake.reproducibility import pick_device
    from study.config import final_of, leak_of
    from study.slots import NoStudy, StudyStopped, join
    from study.storage import StorageError
    from study.worker import TooManyFailed, work

    loaded = load(config, set_)
    if final:
        loaded = final_of(loaded)
    if leak is not None:
        loaded = leak_of(loaded)[leak]
    words = study_words(config, set_)
    try:
        records = work(loaded, pick_device(device), stop)
    except NoStudy as error:
        raise NoStudy(f"{error}; begin it with: {command_of(loaded, words)}") from None
    except StudyStopped as told:
        go_on = command_of(loaded, words, join(loaded).records())
        stderr().print(f"{told}; continue with: {go_on}")
        raise typer.Exit(DONE) from None
    except (Stopped, StorageError):
        if stop.number is None:
            raise
        if stop.timed_out:
            stderr().print("stopped by --timeout; a worker that is started again continues")
            raise typer.Exit(DONE) from None
        raise typer.Exit(128 + stop.number) from None
    except TooManyFailed as error:
        stderr().print(str(error), style="red")
        raise typer.Exit(FAILED_SLOTS) from None
    raise typer.Exit(FAILED_SLOTS if any(r.state == "failed" for r in records) else DONE)


def enqueue(
    config: Config,
    params: Annotated[
        str,
        typer.Option(
            metavar="K=V,...",
            help="the parameters of the trial, such as variant=cnn,lr=3e-4,...",
            show_default=False,
        ),
    ],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Add one trial with these parameters to the study."""
    from study.slots import enqueue as add, given_params, join

    loaded = load(config, set_)
    given = given_params(params, loaded.space)
    slots = join(loaded)
    number = add(slots, given)
    n_trials = len(slots.records())
    document = {"name": loaded.name, "slot": number, "n_trials": n_trials}
    again = command_line("run", *study_words(config, set_))
    said = f"study '{loaded.name}' has {n_trials} slots now, with the new slot {number}; workers "
    said += f"that run take it after the waiting slots; if none runs, start some with: {again}"
    show(document | {"params": given.model_dump()}, said, as_json)


def stop(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Stop the workers of the study on all machines; each finishes its current epoch."""
    from study.config import all_beside
    from study.slots import NoStudy, join, stop_study

    loaded = load(config, set_)
    words = study_words(config, set_)
    said: list[str] = []
    running: dict[str, int] = {}
    missing = []
    studies = (loaded, *all_beside(loaded))
    for study in studies:
        try:
            slots = join(study)
        except NoStudy as error:
            missing.append(error)
            continue
        if (left := stop_study(slots)) is not None:
            running[study.name] = left
            said.append(
                f"study '{study.name}' is stopped; its {left} running slots finish their epochs; "
                f"continue with: {command_of(study, words, slots.records())}"
            )
    if len(missing) == len(studies):
        raise missing[0]
    finished = f"study '{loaded.name}' has finished: there is nothing to stop"
    document = {
        "name": loaded.name,
        "stopped": bool(running),
        "running": sum(running.values()),
        "studies": running,
    }
    show(document, "\n".join(said) or finished, as_json)


def status(
    config: Config,
    watch: Annotated[
        bool, typer.Option("--watch", help="keep showing the study until it has finished")
    ] = False,
    interval: Interval = "2s",  # type: ignore[assignment]  # parsed as the user's would be
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show the slots of the study, the best so far and the baselines."""
    from study.cli.live import StudyView
    from study.launchers import follow
    from study.slots import is_stopped, join

    loaded = load(config, set_)
    slots = join(loaded)
    if watch:
        follow(slots, StudyView(stderr(), loaded.train.max_epochs), interval)
    records = slots.records()
    if is_stopped(slots):
        again = command_line("run", *study_words(config, set_))
        stderr().print(f"study '{loaded.name}' was stopped by `stop`; continue with: {again}")
    show_status(loaded, records, as_json)


def sync(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Deliver to MLflow what workers logged while it was away, and correct its runs' states."""
    from study.config import all_beside
    from study.slots import NoStudy
    from study.tracking import SyncResult, sync as deliver_left_over

    loaded = load(config, set_)
    found, missing = SyncResult(0, 0, 0), []
    studies = (loaded, *all_beside(loaded))
    for study in studies:
        try:
            found += deliver_left_over(study)
        except NoStudy as error:
            missing.append(error)
    if len(missing) == len(studies):
        raise missing[0]
    said = f"entries delivered: {found.delivered}, still waiting: {found.waiting}; "
    said += f"runs set to their true state: {found.reconciled}"
    show(asdict(found), said, as_json)
