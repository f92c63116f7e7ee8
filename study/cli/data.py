"""The data: drawn, prepared, audited, and what a study of it will cost."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.options import (
    MENDABLE,
    Config,
    Device,
    Json,
    Set,
    complete_work_dir,
    load,
    prepare_study,
    show,
    stderr,
    study_words,
    warn,
    warn_of,
)
from study.cli.workers import run_reruns

if TYPE_CHECKING:
    from deepfake.data import Prepared
    from study.config import StudyConfig
    from study.evaluation import Price


def sample(
    out_dir: Annotated[
        Path, typer.Argument(help="the folder that receives Train_poly.json and Images/Train/")
    ],
    photos: Annotated[int, typer.Option(min=10, help="how many photos to draw")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same photos")] = 0,
) -> None:
    """Draw a small data set of faces and face swaps in the OpenForensics layout."""
    from deepfake.errors import UserError, one_line
    from deepfake.parallel import available_cores
    from deepfake.sample import draw_sample
    from study.cli.live import progress_bars

    if (out_dir / "Train_poly.json").exists():
        raise UserError(f"{out_dir}/Train_poly.json is there already; name another folder")
    with progress_bars(stderr()) as advance:
        try:
            path = draw_sample(
                out_dir,
                photos,
                seed,
                available_cores(),
                lambda done, all_: advance("draw", done, all_),
            )
        except OSError as error:
            where = f"{error.filename or out_dir}: {one_line(error, path=False)}"
            raise UserError(f"{where}; mend that, or name another folder") from None
    typer.echo(path)


def prepare(config: Config, set_: Set = None, as_json: Json = False) -> None:
    """Cut the faces out of the photos and split them; only what is missing is made."""
    loaded = load(config, set_, "preparing the data of")
    from study.cli.tables import summary_table

    if loaded.train.weights not in ("imagenet", "none"):
        from deepfake.models import load_pretrained

        # a bad file is said before data is touched
        load_pretrained(loaded.train.weights, loaded.space.variant)
    prepared = complete_work_dir(loaded)
    if not prepared.filled:
        prepared = _with_photos_that_came(loaded, prepared)
    warn_of(prepared.summary)
    sheet = _contact_sheet(loaded)
    document = {
        "work_dir": str(prepared.work_dir),
        "contact_sheet": sheet and str(sheet),
        "splits_sha256": prepared.splits_sha256,
        "crops_sha256": prepared.crops_sha256,
        **asdict(prepared.summary),
    }
    show(document, summary_table(prepared.summary), as_json)
    if sheet and not as_json:
        typer.echo(f"look at what was cut: {sheet}")


def _contact_sheet(config: "StudyConfig") -> Path | None:
    """A warning in its place if it was not drawn and the photos are not there any more."""
    from deepfake.data import CROPS, ensure_contact_sheet
    from deepfake.errors import DataError

    try:
        return ensure_contact_sheet(config.data, config.data.work_dir / CROPS)
    except DataError as error:
        warn(f"no contact sheet: {error}")
        return None


def _with_photos_that_came(config: "StudyConfig", prepared: "Prepared") -> "Prepared":
    """Prepared again for photos that were missing then, unless a study was begun without them."""
    from deepfake.data import photos_that_came

    came = photos_that_came(config.data)
    if not came:
        return prepared
    are_there = f"{len(came)} photos are there now that were absent or unreadable: {came[0]}"
    if len(came) > 1:
        are_there += " and others"
    if _is_begun(config):
        warn(
            f"{are_there}; study '{config.name}' was begun without their faces: to take them in,"
            " set data.work_dir to another folder, and name to that of another study"
        )
        return prepared
    stderr().print(f"{are_there}; their faces are cut, and all faces split anew")
    return complete_work_dir(config, again=True)


def _is_begun(config: "StudyConfig") -> bool:
    """Taken for granted where the database can't be asked."""
    from study.slots import NoStudy, join
    from study.storage import NoDatabase, StorageError

    try:
        join(config)
    except (NoDatabase, NoStudy):
        return False
    except StorageError as error:
        warn(str(error))
    return True


def audit(
    config: Config,
    leak: Annotated[
        bool,
        typer.Option(
            "--leak",
            help="also train a baseline on both kinds of split, to measure what a leak is worth",
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="with --leak: which baseline to train; by default the first"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="with --leak: how many trainings each split gets")
    ] = 3,
    workers: Annotated[
        int | None, typer.Option(min=1, help="with --leak: how many workers train")
    ] = None,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Find photos that are in two splits, and hints to the label outside the face.

    The exit code is 2 if a photo is in two splits.
    """
    if not leak and (baseline, workers, device) != (None, None, None):
        raise typer.BadParameter("--baseline, --workers and --device go with --leak")
    loaded = load(config, set_, "auditing the data of")
    from deepfake.audit import audit as audit_data
    from study.cli.live import progress_bars
    from study.cli.tables import audit_table, leak_lines, price_table

    data = loaded.data
    if leak:
        from study.evaluation import baseline_of

        baseline = baseline_of(loaded, baseline)  # before hours of reading
    prepare_study(loaded, ())  # without its stores: the audit reads photos
    with progress_bars(stderr()) as advance:
        found = audit_data(data, progress=advance)
    document = asdict(found)
    if not (leak and as_json):  # one document for both
        show(document, audit_table(found), as_json)
    for verdict in found.probes:
        if verdict.flagged:
            low, high = verdict.interval
            found_auc = f"AUC {verdict.auc:.2f} ({low:.2f} to {high:.2f}) on val"
            warn(f"{verdict.probe} alone predicts the label: {found_auc}")
    if leak and baseline is not None:
        words = study_words(config, set_)
        price = _price_leak(loaded, words, baseline, seeds, workers, device)
        show(document | {"leak": asdict(price)}, price_table(price), as_json)
    if found.leaks:
        for line in leak_lines(found, data.group_by):
            stderr().print(f"error: {line}")
        raise typer.Exit(MENDABLE)


def _price_leak(
    config: "StudyConfig",
    words: tuple[str, ...],
    baseline: str,
    seeds: int,
    workers: int | None,
    device: str | None,
) -> "Price":
    """Train both arms of a leak and compare them; the command ends here if it is stopped.

    words: that name the study to a worker.
    """
    from deepfake.reproducibility import pick_device
    from study.evaluation import begin_leak, price
    from study.launchers import Local, Placement

    local = Local(Placement(workers=workers, device=device))
    local.check(config, os.environ)
    arms = begin_leak(config, baseline, seeds, prepare_study, warn)
    for arm, slots in arms.items():
        run_reruns(slots, local, words, "--leak", arm)
    return price(arms, baseline, seeds, pick_device(device))


def estimate(
    config: Config,
    launcher: Annotated[
        str,
        typer.Option(metavar="local|slurm|ray", help="with local the workers share this machine"),
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="how many workers train")] = None,
    workers_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="how many workers share a GPU")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Estimate the time and disk that the study needs, from a short run of each variant."""
    loaded = load(config, set_, "timing some seconds of")
    from study.cli.tables import estimate_table
    from study.estimate import estimate as reckon
    from study.launchers import Local, Placement, launcher_named

    here = launcher_named(launcher) is Local  # else each on a machine or a GPU like this one
    sharing = Placement(workers=workers, workers_per_gpu=workers_per_gpu)
    gpus = Local(sharing if here else Placement(workers=1)).gpus(os.environ)
    found = reckon(loaded, gpus, len(gpus) if here else workers or 1)
    show(asdict(found), estimate_table(found), as_json)
