"""Workers that a command starts and waits for, and how it says that they ended."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import typer

from study.cli.options import (
    DONE,
    FAILED_SLOTS,
    OUR_FAULT,
    command_line,
    same_command,
    show,
    stderr,
)

if TYPE_CHECKING:
    from study.config import StudyConfig
    from study.launchers import Ended, Environment, Launcher, WorkerCommand
    from study.slots import SlotRecord, Slots

USUAL_SEEDS = 3  # fewer give no interval


def run_reruns(slots: "Slots", launcher: "Launcher", words: tuple[str, ...], *kind: str) -> None:
    """Run the slots that are left; the command ends here, saying it again, if it is stopped.

    words: that name the search to every command; kind: options that name its reruns to a worker.
    """
    again = same_command()
    say_what_is_left(slots, again)
    with warmed_up(slots.config, launcher, (*words, *kind)):
        ended = run_slots(slots, launcher, (*words, *kind))
    if ended.signal is not None or not ended.finished:
        show_status(slots.config, ended.records, as_json=False)
        code = say_how_it_ended(ended, again, words)
        raise typer.Exit(code if ended.halted else code or OUR_FAULT)


def run_slots(slots: "Slots", launcher: "Launcher", words: tuple[str, ...]) -> "Ended":
    """Start workers and show the study until they have ended. words: of `worker`."""
    from study.cli.live import StudyView
    from study.launchers import run_workers

    command, environment = _worker(slots.config, launcher, words)
    view = StudyView(stderr(), slots.config.train.max_epochs)
    return run_workers(slots, launcher, command, environment, view)


def warmed_up(
    config: "StudyConfig", launcher: "Launcher", words: tuple[str, ...]
) -> AbstractContextManager[None]:
    """For run_slots in its block, which then takes less; the same words."""
    return launcher.warm_up(*_worker(config, launcher, words))


def _worker(
    config: "StudyConfig", launcher: "Launcher", words: tuple[str, ...]
) -> tuple["WorkerCommand", "Environment"]:
    environment = partial(_worker_environment, config.study.storage.get_secret_value())
    return launcher.command("worker", *words), environment


def _worker_environment(storage: str) -> dict[str, str]:
    """What a worker finds around it, on the machine where this is called."""
    return {**os.environ, "DEEPFAKE_STUDY_STORAGE": storage}


def say_what_is_left(slots: "Slots", again: str) -> None:
    """And let workers run, should the study be stopped."""
    from study.slots import lift_stop

    name, records = slots.config.name, slots.records()
    if lift_stop(slots):
        stderr().print(f"study '{name}' was stopped by `stop`; it goes on")
    left = sum(not record.finished for record in records)
    stderr().print(
        f"study '{name}' has {left} of {len(records)} slots to run; continue with: {again}"
    )


def command_of(
    study: "StudyConfig", words: Sequence[str], records: Sequence["SlotRecord"] = ()
) -> str:
    """What begins a study, or goes on with it where it has slots. words: as of study_words."""
    if study.kind == "search":
        return command_line("run", *words)
    trainings = [record.rerun for record in records if record.rerun is not None]
    seeds = max((training.seed + 1 for training in trainings), default=USUAL_SEEDS)
    options = ["--seeds", str(seeds)]
    if study.kind == "final":
        top = len({training.slot for training in trainings if training.role == "candidate"})
        options += ["--top", str(top)] if top > 1 else []
        return command_line("evaluate", *words, *options)
    if trainings:
        options += ["--baseline", trainings[-1].model]
    return command_line("audit", *words, "--leak", *options)


def show_status(config: "StudyConfig", records: "Sequence[SlotRecord]", as_json: bool) -> None:
    """Print where a study is."""
    from study.cli.tables import status_table
    from study.slots import summary

    # a line a slot: with thousands of them, not for nothing
    table = "" if as_json else status_table(config.name, records, config.train.max_epochs)
    show(summary(config.name, records), table, as_json)


def say_how_it_ended(ended: "Ended", again: str, words: tuple[str, ...]) -> int:
    """Print the commands for what is left; the exit code.

    again: the command that goes on. words: that name the search to `sync`.
    """
    if ended.undelivered:
        deliver = command_line("sync", *words)
        waiting = f"{ended.undelivered} entries wait for MLflow"
        stderr().print(f"{waiting}; once it is back, deliver them with: {deliver}")
    if ended.halted is not None and not ended.finished:
        stderr().print(f"{ended.halted}; continue with: {again}")
        return DONE
    if ended.signal is not None:
        stderr().print(f"stopped; continue with: {again}")
        return 128 + ended.signal
    if ended.worst and not ended.finished:
        stderr().print(f"a worker ended with exit code {ended.worst}: {ended.last_words}")
        return ended.worst
    if not ended.finished:  # enqueued behind the workers' last look
        stderr().print(f"slots were added as the workers ended; continue with: {again}")
        return DONE
    return FAILED_SLOTS if any(record.state == "failed" for record in ended.records) else DONE
