"""What the HTML report shows of an evaluated study."""

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from deepfake.metrics import METRICS, MIN_REALS
from study.evaluation import (
    MIN_SEEDS,
    Evaluation,
    SliceRates,
    headline,
    logged_curves_and_galleries,
)
from study.report.test_plots import (
    curve_figures,
    differences_figure,
    incumbents_figure,
    standing_figure,
)
from study.tracking import Tracker, TrackingError

_MANY_FACES = 5000  # from here on a fourth decimal says something


def tested_content(
    evaluation: Evaluation | None, tracker: Tracker | None
) -> tuple[dict[str, Any] | None, dict[str, go.Figure]]:
    """What the page says and draws of the test split; None before the study was evaluated."""
    if evaluation is None or (analysis := evaluation.analysis) is None:
        return None, {}
    variants = {
        found.model: found.variant for found in (*evaluation.finalists, *evaluation.diagnostics)
    }
    best, models, comparisons = analysis.best, analysis.models, analysis.comparisons
    diagnostics = [model for model in models if model.role == "diagnostic"]
    logged, why_not = _logged(evaluation, tracker)
    figures = curve_figures(logged["curves"], variants) if logged else {}
    if (incumbents := incumbents_figure(diagnostics, variants)) is not None:
        figures["incumbents"] = incumbents
    shown = [model for model in models if model.role != "diagnostic"]
    shown.sort(key=lambda m: (m.model != best, m.role != "candidate", m.slot))
    figures["standing"] = standing_figure(shown, variants, analysis.published.cells)
    if comparisons:
        figures["differences"] = differences_figure(comparisons, variants)
    return {
        "comparisons": comparisons,
        "faces": analysis.faces,
        "real": analysis.real,
        "fake": analysis.fake,
        "photos": analysis.photos,
        "headline": headline(comparisons) if comparisons else None,
        "best": best,
        "models": shown,
        "variants": variants,
        "rows": {name: metric for name, metric in METRICS.items() if "page" in metric.places},
        "min_reals": MIN_REALS,
        "min_seeds": MIN_SEEDS,
        "too_few": any(found.verdict == "too few seeds" for found in comparisons),
        "decimals": 4 if analysis.faces >= _MANY_FACES else 3,
        "cells": {(cell.model, cell.figure): cell for cell in analysis.published.cells},
        "slices": _by_kind(analysis.slices),
        "galleries": logged["galleries"] if logged else [],
        "drawn": [model["model"] for model in logged["curves"]] if logged else [],
        "why_not": why_not,
    }, figures


def _by_kind(slices: Iterable[SliceRates]) -> dict[str, list[SliceRates]]:
    found: dict[str, list[SliceRates]] = {}
    for part in slices:
        found.setdefault(part.by, []).append(part)
    return found


def _logged(
    evaluation: Evaluation, tracker: Tracker | None
) -> tuple[dict[str, Any] | None, str | None]:
    """Curves and galleries, or why there are none."""
    if tracker is None:
        return None, "MLflow can't be reached or has no run of this study"
    try:
        return logged_curves_and_galleries(tracker, evaluation.predictions_sha256), None
    except TrackingError as error:
        return None, str(error)
