"""What keeps a study well: what is wrong with it, and what it no longer needs."""

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.options import DONE, MENDABLE, Config, Json, Set, load, pasteable, show, stderr

if TYPE_CHECKING:
    from study.maintenance import Finding


def doctor(
    config: Config,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="free the slots of dead workers, and correct the states in MLflow"
        ),
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check the machine, the data, the study and MLflow, and say how to mend what is wrong.

    The exit code is 2 if something is wrong.
    """
    loaded = load(config, set_, "examining")
    from study.cli.live import progress_bars
    from study.cli.tables import doctor_table
    from study.maintenance import examine

    with progress_bars(stderr()) as advance:
        found = examine(loaded, fix=fix, progress=advance)
    found = replace(found, findings=[_pasteable(finding) for finding in found.findings])
    show(asdict(found) | {"healthy": found.healthy}, doctor_table(found), as_json)
    raise typer.Exit(DONE if found.healthy else MENDABLE)


def _pasteable(finding: "Finding") -> "Finding":
    remedy = None if finding.remedy is None else pasteable(finding.remedy)
    return replace(finding, what=pasteable(finding.what), remedy=remedy)


def gc(
    config: Config,
    keep: Annotated[
        str, typer.Option(metavar="best:N", help="keep the weights of the N best trials")
    ] = "best:5",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would be removed")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Remove weights and checkpoints that are no longer needed.

    Those of baselines, finalists and the best trials stay.
    """
    from deepfake.errors import UserError

    if (best := re.fullmatch(r"best:(\d{1,9})", keep)) is None or int(best[1]) < 1:
        raise UserError(f"--keep {keep}: must be best:N, N at least 1; for example best:5")
    loaded = load(config, set_, "looking through")
    from study.cli.tables import gc_table
    from study.maintenance import collect

    found = collect(loaded, int(best[1]), dry_run=dry_run)
    show(asdict(found), gc_table(found), as_json)
    for line in found.failed:
        stderr().print(f"error: not removed: {line}")
    raise typer.Exit(MENDABLE if found.failed else DONE)
