"""What the HTML report shows of an evaluated study."""

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from deepfake.config import VariantName
from deepfake.metrics import METRICS, MIN_REALS
from study.config import TrackingError
from study.evaluation import MIN_SEEDS, headline, logged_exhibits
from study.report.test_plots import (
    curve_figures,
    differences_figure,
    incumbents_figure,
    standing_figure,
)
from study.tracking import Tracker

_MANY_FACES = 5000  # from here on a fourth decimal says something


def tested_content(
    evaluation: Mapping[str, Any] | None, tracker: Tracker | None
) -> tuple[dict[str, Any] | None, dict[str, go.Figure]]:
    """What the page says and draws of the test split; None before the study was evaluated."""
    if evaluation is None or (analysis := evaluation.get("analysis")) is None:
        return None, {}
    variants: dict[str, VariantName] = {
        f["model"]: f["variant"] for f in (*evaluation["finalists"], *evaluation["diagnostics"])
    }
    best, models = analysis["best"], analysis["models"]
    diagnostics = [model for model in models if model["role"] == "diagnostic"]
    logged, why_not = _logged(evaluation, tracker)
    figures = curve_figures(logged["curves"], variants) if logged else {}
    if (incumbents := incumbents_figure(diagnostics, variants)) is not None:
        figures["incumbents"] = incumbents
    shown = [model for model in models if model["role"] != "diagnostic"]
    shown.sort(key=lambda m: (m["model"] != best, m["role"] != "candidate", m["slot"]))
    figures["standing"] = standing_figure(shown, variants, analysis["published"]["cells"])
    if analysis["comparisons"]:
        figures["differences"] = differences_figure(analysis["comparisons"], variants)
    further = int(analysis["faces"] >= _MANY_FACES)
    return {
        **{key: analysis[key] for key in ("comparisons", "faces", "real", "fake", "photos")},
        "headline": headline(analysis["comparisons"]) if analysis["comparisons"] else None,
        "best": best,
        "models": shown,
        "variants": variants,
        "rows": {name: metric for name, metric in METRICS.items() if "page" in metric.places},
        "min_reals": MIN_REALS,
        "min_seeds": MIN_SEEDS,
        "too_few": any(c["verdict"] == "too few seeds" for c in analysis["comparisons"]),
        "further_decimals": further,
        "decimals": 3 + further,
        "cells": {(c["model"], c["figure"]): c for c in analysis["published"]["cells"]},
        "slices": _by_kind(analysis["slices"]),
        "galleries": logged["galleries"] if logged else [],
        "drawn": [model["model"] for model in logged["curves"]] if logged else [],
        "why_not": why_not,
    }, figures


def _by_kind(slices: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for part in slices:
        found.setdefault(part["by"], []).append(part)
    return found


def _logged(
    evaluation: Mapping[str, Any], tracker: Tracker | None
) -> tuple[dict[str, Any] | None, str | None]:
    """The exhibits, or why there are none."""
    if tracker is None:
        return None, "MLflow can't be reached or has no run of this study"
    try:
        return logged_exhibits(tracker, evaluation), None
    except TrackingError as error:
        return None, str(error)
