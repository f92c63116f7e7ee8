"""What an evaluation leaves in MLflow beside its table: curves and the faces it failed on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.config import TrackingError
from study.curves import curves
from study.figures import curve_figures, gallery_figure
from study.gallery import as_json, galleries, picture_of
from study.predictions import finalists_of, of_split
from study.tracking import Tracker

CURVES, ERRORS = "curves.json", "errors.json"


def exhibits(
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


def logged_exhibits(
    tracker: Tracker, evaluation: Mapping[str, Any], split: str = "test"
) -> dict[str, Any]:
    """ "curves" and "galleries" of an evaluation, as exhibits left them.

    Raises TrackingError if MLflow does not have them, or has those of another evaluation.
    """
    found = {}
    for name, key in ((CURVES, "models"), (ERRORS, "galleries")):
        try:
            logged = json.loads(tracker.study_text(f"{split}/{name}"))
        except json.JSONDecodeError:  # a kill left a part of it
            logged = {"predictions_sha256": None}
        if logged["predictions_sha256"] != evaluation["predictions_sha256"]:
            raise TrackingError(
                f"run {tracker.parent_id}: {split}/{name} is of another evaluation, or a part "
                "of it"
            )
        found["curves" if name == CURVES else "galleries"] = logged[key]
    return found
