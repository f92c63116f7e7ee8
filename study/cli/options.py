"""What the commands share: their options, the study's YAML loaded, what is printed."""

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from deepfake.data import Prepared, Summary
    from study.config import StudyConfig

log = logging.getLogger(__name__)

DONE, OUR_FAULT, MENDABLE, FAILED_SLOTS = 0, 1, 2, 3

Config = Annotated[Path, typer.Argument(help="the YAML file of the study", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override one key of the YAML file; may be given more than once",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu or cuda:N; by default the first GPU, or the CPU without one"),
]


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time; write 25, 25s, 2m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


Grace = Annotated[
    float,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="how long a worker may take to end after a stop signal",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        parser=seconds, metavar="TIME", help="stop cleanly after this time, for example 2h"
    ),
]
Interval = Annotated[
    float,
    typer.Option(
        parser=seconds, metavar="TIME", help="with --watch: the time between two updates"
    ),
]


def load(path: Path, overrides: Sequence[str] | None, doing: str = "") -> "StudyConfig":
    """The study of a command line. doing: said at once, before imports that take seconds."""
    _study.set(study_words(path, overrides))
    from study.config import load_config

    storage = os.environ.get("DEEPFAKE_STUDY_STORAGE")
    config = load_config(path, overrides or [], storage)
    if doing:
        log.info("%s study '%s'", doing, config.name)
    return config


def prepare_study(config: "StudyConfig", sides: tuple[int, ...] | None = None) -> "Prepared":
    """As complete_work_dir; if anything was cut, what became of the faces is said on stderr."""
    from study.cli.tables import summary_table

    prepared = complete_work_dir(config, sides)
    if prepared.filled:
        stderr().print(summary_table(prepared.summary))
        warn_of(prepared.summary)
    return prepared


def complete_work_dir(
    config: "StudyConfig", sides: tuple[int, ...] | None = None, *, again: bool = False
) -> "Prepared":
    """With the stores of all sides that the study's trials read, or of these.

    again: as prepare_data.
    """
    from deepfake.data import prepare_data
    from study.cli.live import progress_bars

    with progress_bars(stderr()) as advance:
        sides_px = config.sides_px if sides is None else sides
        return prepare_data(config.data, sides_px, progress=advance, again=again)


def warn_of(summary: "Summary") -> None:
    for warning in summary.warnings:
        warn(pasteable(warning))


def study_words(config: Path, set_: Sequence[str] | None) -> tuple[str, ...]:
    """CONFIG and its --set options: what names a study to every command, a worker's too."""
    overrides = [override for override in set_ or () if not _is_storage(override)]
    return (str(config), *(word for override in overrides for word in ("--set", override)))


# the study that this process's command is about, as it was typed
_study: ContextVar[tuple[str, ...]] = ContextVar("study", default=("CONFIG",))


def pasteable(text: str) -> str:
    """With the YAML and the --set options that were typed where a command in it says CONFIG."""
    typed = shlex.join(_study.get())
    return re.sub(
        r"(?<=deepfake-study )([a-z]+) CONFIG\b", lambda found: f"{found[1]} {typed}", text
    )


class PasteableFormatter(logging.Formatter):
    """Of the log: its commands can be pasted, too."""

    def format(self, record: logging.LogRecord) -> str:
        return pasteable(super().format(record))


def command_line(name: str, *words: str) -> str:
    """A command to be pasted."""
    return shlex.join(["deepfake-study", name, *words])


def same_command(*but: str, sets: Sequence[str] = ()) -> str:
    """What was typed, to be typed again: it goes on where this one ends.

    but: options that this command has done, with their values, and sets the --set options in
    their place. --trials is always done: +N once more would add N more.
    """
    words, kept = iter(sys.argv[1:]), list[str]()
    for word in words:
        option, equals, value = word.partition("=")
        own = [word]
        if option in ("--set", "--trials", "--sampler") and not equals:
            value = next(words, "")
            own.append(value)
        done = option in ("--trials", *but) or (option == "--set" and _is_storage(value))
        kept += own * (not done)
    return command_line(*kept, *(word for override in sets for word in ("--set", override)))


def _is_storage(override: str) -> bool:
    """It may hold a password: no message shows it, workers get it from the environment."""
    return override.partition("=")[0].strip() == "study.storage"


def warn(message: str) -> None:
    stderr().print(f"warning: {message}", style="yellow")


def stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def show(document: Any, table: "RenderableType", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    from rich.console import Console

    # a pipe has no width: never cut a table there
    width = None if sys.stdout.isatty() else 200
    console = Console(markup=False, highlight=False, width=width)
    # commands are there to be copied: a line that has one is as long as it is
    console.print(table, soft_wrap=isinstance(table, str), crop=False)
