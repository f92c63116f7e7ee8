"""What an evaluation leaves in MLflow beside its table: curves and the faces it failed on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from study.evaluation.error_analysis import Gallery, as_json, curves, galleries, picture_of
from study.evaluation.predictions import finalists_of, of_split
from study.evaluation.robustness import kinds, steps
from study.tracking import Tracker, TrackingError

_COLUMNS = 6  # of a gallery


def corruptions_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy and AUC by level, a line a model, a column a kind; rows: of robustness.py."""
    if not rows:
        return _saying("The last evaluation measured nothing under corruptions.")
    of_kind = kinds(rows)
    figure = Figure(figsize=(2.4 * len(of_kind), 5), layout="constrained")
    grid = figure.subplots(2, len(of_kind), sharex="col", sharey="row", squeeze=False)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for figure_name, line in zip(("accuracy", "auc"), grid, strict=True):
        for kind, axes in zip(of_kind, line, strict=True):
            for model in models:
                of_level = steps(rows, model, kind)
                role = next(iter(of_level.values()))["role"]
                values = [row[figure_name] for row in of_level.values()]
                style = ":" if role == "baseline" else "-"
                axes.plot(list(of_level), values, style, marker="o", label=model)
        line[0].set(ylabel=f"test {figure_name}")
    for kind, axes in zip(of_kind, grid[-1], strict=True):
        axes.set(xlabel=kind)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _saying(text: str) -> Figure:
    figure = Figure(figsize=(6, 1.5))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def curve_figures(models: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """By file name: ROC, precision-recall and reliability of models, of error_analysis.py."""
    names = ("roc.png", "precision_recall.png", "reliability.png")
    sizes = ((5.5, 5), (5.5, 5), (10, 5))
    figures = {
        name: Figure(figsize=size, layout="constrained")
        for name, size in zip(names, sizes, strict=True)
    }
    of_roc, of_recall = (figures[name].subplots() for name in names[:2])
    before, after = figures["reliability.png"].subplots(1, 2, sharey=True)
    for model in models:
        of_roc.step(*_points(model["roc"]), where="post", label=model["model"])
        of_recall.step(*_points(model["precision_recall"]), where="pre", label=model["model"])
        for axes, when in ((before, "before"), (after, "after")):
            x, y = _points(model["reliability"][when])
            axes.plot(x, y, marker="o", markersize=4, label=model["model"])
    _finish(of_roc, "false alarms (share of reals)", "fakes found", diagonal=True)
    _finish(of_recall, "fakes found (recall)", "precision")
    for axes, when in ((before, "before"), (after, "after")):
        _finish(axes, "mean P(fake) of a bin", "share of fakes", diagonal=True)
        axes.set_title(f"{when} temperature scaling")
    return figures


def gallery_figure(gallery: Gallery, pictures: Sequence[Image.Image | None]) -> Figure:
    """A contact sheet, in the order of the gallery's faces; None: a picture that is gone."""
    rows = max(1, -(-len(pictures) // _COLUMNS))
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.95 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{gallery.model}: {gallery.title}, {gallery.errors} faces")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, face, picture in zip(cells, gallery.faces, pictures, strict=False):
        cell.set_title(
            f"P(fake) {face.p_fake:.3f}, {face.face_px:.0f} px\n{face.cutted_name}", fontsize=6
        )
        if picture is not None:
            cell.imshow(picture)
    return figure


def _points(curve: Mapping[str, list[float]]) -> tuple[list[float], list[float]]:
    return curve["x"], curve["y"]


def _finish(axes: Axes, x: str, y: str, *, diagonal: bool = False) -> None:
    if diagonal:
        axes.plot((0, 1), (0, 1), color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


CURVES, ERRORS = "curves.json", "errors.json"


def curves_and_galleries(
    predictions: pd.DataFrame,
    best: str | None,
    sha256: str,
    crops_dir: Path,
    split: str = "test",
) -> dict[str, str | Figure]:
    """Files by name: curves and galleries of the best candidate and the baselines.

    best: its name in the table. sha256: of the table's file; it ties them to it. crops_dir: where
    cutted_name is.
    """
    val, test = of_split(predictions, "val"), of_split(predictions, split)
    shown = [f for f in finalists_of(predictions) if f.role == "baseline" or f.model == best]
    shown.sort(key=lambda finalist: finalist.model != best)
    drawn = curves(shown, val, test)
    files: dict[str, str | Figure] = {
        CURVES: json.dumps({"predictions_sha256": sha256, "models": drawn}),
        **curve_figures(drawn),
    }
    errors = []
    for finalist in shown:
        for gallery in galleries(test, finalist.model):
            pictures = [picture_of(crops_dir / face.cutted_name) for face in gallery.faces]
            errors.append(as_json(gallery, pictures))
            of = "" if finalist.model == best else f"_{finalist.model}"
            files[f"errors{of}_{gallery.kind}.png"] = gallery_figure(gallery, pictures)
    files[ERRORS] = json.dumps({"predictions_sha256": sha256, "galleries": errors})
    return {f"{split}/{name}": content for name, content in files.items()}


def logged_curves_and_galleries(
    tracker: Tracker, predictions_sha256: str | None, split: str = "test"
) -> dict[str, Any]:
    """ "curves" and "galleries" of an evaluation's table, as logged.

    Raises TrackingError if MLflow does not have them, or has those of another evaluation.
    """
    found = {}
    for name, key in ((CURVES, "models"), (ERRORS, "galleries")):
        try:
            logged = json.loads(tracker.study_text(f"{split}/{name}"))
        except json.JSONDecodeError:  # a kill left a part of it
            logged = {"predictions_sha256": None}
        if logged["predictions_sha256"] != predictions_sha256:
            raise TrackingError(
                f"run {tracker.parent_id}: {split}/{name} belongs to another evaluation or is "
                "incomplete; write it again with: deepfake-study evaluate CONFIG"
            )
        found["curves" if name == CURVES else "galleries"] = logged[key]
    return found
