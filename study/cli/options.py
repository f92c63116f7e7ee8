"""What the commands share: their options, the study's YAML loaded, what is printed."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from study.config import StudyConfig


DONE, OUR_FAULT, MENDABLE, FAILED_SLOTS = 0, 1, 2, 3

Config = Annotated[Path, typer.Argument(help="the study's YAML", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key of the YAML; repeatable"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N; without it the first GPU if any")]


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time; write 25, 25s, 2m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


Grace = Annotated[
    float,
    typer.Option(
        parser=seconds, metavar="TIME", help="from a stop signal to the end, come what may"
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="end cleanly then, as by Ctrl-C; 2h"),
]
Interval = Annotated[
    float, typer.Option(parser=seconds, metavar="TIME", help="with --watch: between two looks")
]


def load(path: Path, overrides: list[str] | None) -> "StudyConfig":
    from study.config import load_config

    storage = os.environ.get("DEEPFAKE_STUDY_STORAGE")
    return load_config(path, overrides or [], storage)


def prepare_study(config: "StudyConfig", sides: tuple[int, ...] | None = None) -> Any:
    """With the stores of all sides that the study's trials read, or of these."""
    from deepfake.data import prepare_data
    from study.cli.live import progress_bars

    with progress_bars(stderr()) as advance:
        sides_px = config.sides_px if sides is None else sides
        return prepare_data(config.data, sides_px, progress=advance)


def shown(set_: list[str] | None) -> list[str]:
    """The --set options that commands and messages repeat.

    The storage may hold a password: workers get it from the environment, no message shows it.
    """
    overrides = [e for e in set_ or [] if e.partition("=")[0].strip() != "study.storage"]
    return [argument for override in overrides for argument in ("--set", override)]


def again_line(command: str, config: Path, set_: list[str] | None) -> str:
    return shlex.join(["deepfake-study", command, str(config), *shown(set_)])


def warn(message: str) -> None:
    stderr().print(f"warning: {message}", style="yellow")


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def show(document: dict[str, Any], table: "RenderableType", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    from rich.console import Console

    # a pipe has no width: never cut a table there
    width = None if sys.stdout.isatty() else 200
    console = Console(markup=False, highlight=False, width=width)
    console.print(table, soft_wrap=isinstance(table, str))  # commands are there to be copied
