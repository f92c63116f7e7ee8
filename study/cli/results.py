"""What the search found: proven, compared, written down, exported, used."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.options import (
    DONE,
    MENDABLE,
    Config,
    Device,
    Grace,
    Json,
    Set,
    load,
    show,
    stderr,
    study_words,
    warn,
)
from study.cli.workers import run_reruns

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deepfake.predict import Prediction
    from study.evaluation import Evaluation, Evaluator
    from study.launchers import Local
    from study.slots import Slots

SAID_OF_MODEL = {"variant", "side_px", "temperature", "threshold", "weights_sha256"}


def evaluate(
    config: Config,
    trial: Annotated[int | None, typer.Option(min=0, help="check this one slot instead")] = None,
    top: Annotated[
        int,
        typer.Option(min=1, help="how many of the best trials to evaluate, beside the baselines"),
    ] = 1,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="first train each of them again with this many seeds"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="with --seeds: how many workers train")
    ] = None,
    workers_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="with --seeds: how many workers share a GPU")
    ] = None,
    grace: Grace = "25s",  # type: ignore[assignment]  # parsed as the user's would be
    corruptions: Annotated[
        bool, typer.Option(help="also measure on test faces under JPEG, blur, noise and others")
    ] = True,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check the best trials and the baselines, then measure them on the test split."""
    if trial is not None and (seeds, workers, workers_per_gpu) != (None, None, None):
        raise typer.BadParameter(
            "--trial checks one slot as it is; leave out --seeds and --workers"
        )
    if seeds is None and (workers, workers_per_gpu) != (None, None):
        raise typer.BadParameter(
            "--workers, --workers-per-gpu: without --seeds nothing is trained; add it"
        )
    loaded = load(config, set_, "evaluating")
    from deepfake.reproducibility import pick_device
    from study.cli.live import progress_bars
    from study.cli.tables import evaluation_table
    from study.evaluation import Evaluator, contenders_of_final, contenders_of_search
    from study.launchers import Local, Placement
    from study.slots import join

    slots = join(loaded)
    evaluator = Evaluator(slots, pick_device(device))
    final = None
    if trial is None and seeds is not None:
        shares = Placement("local", workers, workers_per_gpu, grace_s=grace, device=device)
        final = _train_finalists(slots, top, seeds, Local(shares), study_words(config, set_))
    with progress_bars(stderr()) as evaluator.progress:
        if trial is not None:
            found = evaluator.evaluate_slot(trial)
        elif final is None or seeds is None:
            found = evaluator.evaluate(contenders_of_search(slots, top), corruptions=corruptions)
        else:
            contenders, left_out = contenders_of_final(final, top, seeds, slots)
            found = evaluator.evaluate(contenders, left_out, corruptions=corruptions)
        registered = {} if trial is not None else _register(evaluator, found)
    document = asdict(found) | {"registered": registered}
    show(document, evaluation_table(found, registered), as_json)


def _train_finalists(
    slots: "Slots",
    top: int,
    seeds: int,
    local: "Local",
    words: tuple[str, ...],
) -> "Slots":
    """Their study, all its slots finished. words: that name the study to a worker."""
    from study.evaluation import begin_final

    local.check(slots.config, os.environ)
    final = begin_final(slots, top, seeds)
    run_reruns(final, local, words, "--final")
    return final


def _register(evaluator: "Evaluator", found: "Evaluation") -> dict[str, str]:
    """The verdict's model and the best baseline; a registry that refuses costs a warning."""
    from study.evaluation import register_best
    from study.tracking import TrackingError

    try:
        return register_best(evaluator, found)
    except (TrackingError, OSError) as error:
        warn(f"not registered: {error}")
        return {}


def compare(
    config: Config,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="compute everything from this table of predictions alone"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="with --predictions: the split to compare on; test by default"
        ),
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Compare the figures on the test split with the published report's."""
    if predictions is not None:
        from study.cli.tables import analysis_table
        from study.config import load_published
        from study.evaluation import analyse, read_predictions

        published = load_published(config, set_ or [])
        analysed = analyse(read_predictions(predictions), published, split or "test")
        show(asdict(analysed), analysis_table(analysed), as_json)
        return
    if split is not None:
        raise typer.BadParameter("--split needs --predictions FILE")
    from study.cli.tables import comparison_table
    from study.report import compare as compare_with_report
    from study.slots import join

    found = compare_with_report(join(load(config, set_)))
    show(asdict(found), comparison_table(found), as_json)


def report(
    config: Config,
    out: Annotated[
        Path | None, typer.Option(help="the HTML file to write; NAME.html by default")
    ] = None,
    set_: Set = None,
) -> None:
    """Write the study as one HTML file that needs no network."""
    loaded = load(config, set_, "writing the report of")
    from study.report import write_report
    from study.slots import join

    typer.echo(write_report(join(loaded), out or Path(f"{loaded.name}.html")))


def export(
    config: Config,
    out: Annotated[
        Path, typer.Option(help="the new folder that receives the model", show_default=False)
    ],
    trial: Annotated[str, typer.Option(metavar="best|N", help="the slot to export")] = "best",
    onnx: Annotated[
        bool, typer.Option("--onnx", help="also write model.onnx; needs scripts/install.sh onnx")
    ] = False,
    device: Device = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check a slot and export its model, as a folder for `predict` and into MLflow's registry."""
    from deepfake.errors import UserError

    if trial != "best" and not trial.isdecimal():
        raise UserError(f"--trial {trial}: must be best or the number of a slot")
    number = None if trial == "best" else int(trial)
    loaded = load(config, set_, "exporting a model of")
    from deepfake.reproducibility import pick_device
    from study.cli.live import progress_bars
    from study.evaluation import export_slot
    from study.slots import join

    slots, where = join(loaded), pick_device(device)
    with progress_bars(stderr()) as advance:
        model = export_slot(slots, number, out, where, onnx=onnx, progress=advance)
    said = (
        f"{model.folder} has the model of slot {model.slot}, {model.variant}: its temperature is "
    )
    said += (
        f"{model.temperature:.3f}, a face is fake from P(fake) {model.threshold:.3f}; MLflow's "
    )
    said += f"registry has it as {model.registered}"
    show(asdict(model), said, as_json)


def predict(
    model: Annotated[Path, typer.Argument(help="the folder that export made", show_default=False)],
    pictures: Annotated[
        list[Path],
        typer.Argument(help="pictures of faces, or photos with --boxes", show_default=False),
    ],
    boxes: Annotated[
        Path | None,
        typer.Option(help="an OpenForensics JSON with the boxes of the faces in the photos"),
    ] = None,
    box_format: Annotated[
        str | None, typer.Option(help="of the boxes in that JSON, as data.box; by default xywh")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Predict the probability that each face is fake, with an exported model."""
    from deepfake.config import BOX_FORMATS
    from deepfake.export import load_exported
    from deepfake.predict import Prediction, Refused, predict as judge
    from deepfake.reproducibility import pick_device

    if box_format is not None and box_format not in BOX_FORMATS:
        raise typer.BadParameter(f"--box-format {box_format}: is none of {', '.join(BOX_FORMATS)}")
    loaded = load_exported(model, pick_device(device))
    found = list(judge(loaded, pictures, boxes, box_format))
    faces = [one for one in found if isinstance(one, Prediction)]
    refused = [one for one in found if isinstance(one, Refused)]
    if faces or as_json:
        document = {
            "model": loaded.info.model_dump(include=SAID_OF_MODEL),
            "faces": [asdict(face) for face in faces],
            "refused": [asdict(one) for one in refused],
        }
        show(document, _predictions_table(faces), as_json)
    for one in refused:
        sys.stderr.write(f"error: {one.picture}: {one.reason}\n")
    raise typer.Exit(MENDABLE if refused else DONE)


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


def ui(
    config: Config,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="the port on 127.0.0.1; 0 takes a free one")
    ] = 5000,
    set_: Set = None,
) -> None:
    """Start the MLflow UI of the study on this machine."""
    from study.tracking import serve_ui

    raise typer.Exit(serve_ui(load(config, set_), port, typer.echo))
