"""Figures of the HTML report that show the finalists on the test split."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from deepfake.config import VariantName
from deepfake.variants import VARIANTS
from study.evaluation import (
    Cell,
    Comparison,
    Figure,
    ModelFigures,
    Welch,
    kinds,
    level_name,
    steps,
)
from study.report.search_plots import NEUTRAL, figure_layout

CORNER = 0.1  # where every model is good, the figure shows what lies within this of the best

CANDIDATES = {"circle": "●", "square": "■", "triangle-up": "▲", "pentagon": "⬟"}  # in turn

AXIS_CHARACTERS = 16
Model = Mapping[str, Any]


def curve_figures(
    models: Sequence[Model], variants: Mapping[str, VariantName]
) -> dict[str, go.Figure]:
    """Of models as study/evaluation has them, by the figure's id; a candidate is solid.

    variants: by model.
    """
    found = {
        "roc": go.Figure(layout=figure_layout("false alarms", "fakes found", height=380)),
        "precision-recall": go.Figure(layout=figure_layout("fakes found", "precision", 380)),
    }
    for model in models:
        colour = VARIANTS[variants[model["model"]]].colour
        half = model["at_half"]
        _add_steps(found["roc"], model, "roc", colour, "hv")
        _add_half(found["roc"], model, colour, half["false_alarms"], half["recall"])
        _add_steps(found["precision-recall"], model, "precision_recall", colour, "vh")
        _add_half(found["precision-recall"], model, colour, half["recall"], half["precision"])
    in_corner = all(
        _y_at(model["roc"], CORNER) > 1 - CORNER
        and _y_at(model["precision_recall"], 1 - CORNER) > 1 - CORNER
        for model in models
    )
    near_0, near_1 = ((-0.02, 1.02),) * 2
    if in_corner:
        near_0, near_1 = (-0.002, CORNER), (1 - CORNER, 1.002)
    found["roc"].update_xaxes(range=near_0)
    found["precision-recall"].update_xaxes(range=near_1)
    for figure in found.values():
        figure.update_yaxes(range=near_1)
    for when in ("before", "after"):
        found[f"reliability-{when}"] = _reliability_figure(models, variants, when)
    return found


def standing_figure(
    models: Sequence[ModelFigures], variants: Mapping[str, VariantName], cells: Sequence[Cell]
) -> go.Figure:
    """Test accuracy of each model with its interval, the first on top; what the report printed."""
    figure = go.Figure(layout=figure_layout("test accuracy", "", height=72 + 34 * len(models)))
    for model in models:
        found = _figure(model, "accuracy")
        _add_interval(figure, model.model, VARIANTS[variants[model.model]].colour, found)
    printed = {cell.model: cell.printed for cell in cells if cell.figure == "accuracy"}
    figure.add_scatter(
        x=list(printed.values()),
        y=list(printed),
        mode="markers",
        marker={"symbol": "diamond-open", "size": 12, "color": NEUTRAL, "line": {"width": 2}},
        hovertemplate="%{y}: the report printed %{x:.2f}<extra></extra>",
    )
    _stack(figure, [model.model for model in models])
    return figure


def _figure(model: ModelFigures, name: str) -> Figure:
    found = model.figures[name]
    assert found is not None
    return found


def differences_figure(
    comparisons: Sequence[Comparison], variants: Mapping[str, VariantName]
) -> go.Figure:
    """The best's test loss minus each baseline's: left of 0 it is better.

    Without enough seeds there is no interval.
    """
    height = 72 + 34 * len(comparisons)
    figure = go.Figure(layout=figure_layout("difference in test loss", "", height=height))
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1})
    for comparison in comparisons:
        name = comparison.baseline
        _add_interval(figure, name, VARIANTS[variants[name]].colour, comparison.nll.difference)
    _stack(figure, [comparison.baseline for comparison in comparisons])
    return figure


def _add_interval(figure: go.Figure, name: str, colour: str, found: Figure | Welch) -> None:
    value, low, high = found.value, found.low, found.high
    said = "no interval" if low is None or high is None else f"95 %: {low:.4f} to {high:.4f}"
    figure.add_scatter(
        x=[value],
        y=[name],
        mode="markers",
        error_x={
            "symmetric": False,
            "array": [0 if high is None else high - value],
            "arrayminus": [0 if low is None else value - low],
            "thickness": 2,
            "width": 5,
        },
        marker={"color": colour, "size": 10},
        hovertemplate=f"{name}: {value:.4f}<br>{said}<extra></extra>",
    )


def _stack(figure: go.Figure, names: Sequence[str]) -> None:
    short = [_in_two_lines(name) for name in names]
    figure.update_yaxes(
        type="category",
        categoryarray=names,
        range=[len(names) - 0.5, -0.5],  # the first on top
        tickvals=names,
        ticktext=short,
    )


def _in_two_lines(name: str) -> str:
    """Broken behind its last underscore where it is too long for an axis."""
    first, underscore, second = name.rpartition("_")
    return f"{first}{underscore}<br>{second}" if len(name) > AXIS_CHARACTERS else name


def incumbents_figure(
    diagnostics: Sequence[ModelFigures], variants: Mapping[str, VariantName]
) -> go.Figure | None:
    """Validation (dotted) against test loss of the search's incumbents; None of fewer than two."""
    if len(diagnostics) < 2:
        return None
    found = sorted(diagnostics, key=lambda model: model.slot)
    figure = go.Figure(layout=figure_layout("slot", "loss", height=360))
    slots = [model.slot for model in found]
    colours = [VARIANTS[variants[model.model]].colour for model in found]
    test = [_figure(model, "nll") for model in found]
    common = {"x": slots, "mode": "lines+markers"}
    figure.add_scatter(
        **common,
        y=[model.val_nll for model in found],
        line={"color": NEUTRAL, "dash": "dot", "width": 2},
        marker={"color": colours, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
        hovertemplate="slot %{x}: validation loss %{y:.4g}<extra></extra>",
    )
    figure.add_scatter(
        **common,
        y=[nll.value for nll in test],
        error_y={
            "array": [nll.high - nll.value for nll in test],
            "arrayminus": [nll.value - nll.low for nll in test],
            "symmetric": False,
            "color": NEUTRAL,
            "thickness": 1,
        },
        line={"color": NEUTRAL, "width": 2},
        marker={"color": colours, "size": 9},
        hovertemplate="slot %{x}: test loss %{y:.4g}<extra></extra>",
    )
    figure.update_xaxes(tickformat="d", dtick=1 if max(slots) <= 12 else None)
    return figure


def corruption_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, go.Figure]:
    """Accuracy by level, a line a model, for each kind of corruption; rows: of study/evaluation.

    All have one scale.
    """
    lowest = min((row["accuracy"] for row in rows), default=0.0)
    symbols = candidate_symbols(rows)
    figures = {}
    for kind in kinds(rows):
        figure = go.Figure(layout=figure_layout(level_name(kind), "test accuracy", height=280))
        for model in dict.fromkeys(row["model"] for row in rows):
            of_level = steps(rows, model, kind)
            first = next(iter(of_level.values()))
            is_baseline = first["role"] == "baseline"
            figure.add_scatter(
                x=list(of_level),
                y=[row["accuracy"] for row in of_level.values()],
                mode="lines+markers",
                line={
                    "color": VARIANTS[first["variant"]].colour,
                    "dash": "dot" if is_baseline else "solid",
                    "width": 2,
                },
                marker={"size": 8, "symbol": symbols.get(model, "diamond")},
                customdata=[
                    (row["accuracy_low"], row["accuracy_high"]) for row in of_level.values()
                ],
                hovertemplate=f"{model}<br>{kind} %{{x}}: %{{y:.3f}}"
                " (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
            )
        figure.update_xaxes(type="category")
        figure.update_yaxes(range=[max(lowest - 0.05, 0), 1.02])
        figures[kind] = figure
    return figures


def candidate_symbols(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By model; rows as corruption_figures has them."""
    candidates = dict.fromkeys(row["model"] for row in rows if row["role"] != "baseline")
    return dict(zip(candidates, itertools.cycle(CANDIDATES), strict=False))


def _reliability_figure(
    models: Sequence[Model], variants: Mapping[str, VariantName], when: str
) -> go.Figure:
    figure = go.Figure(layout=figure_layout("mean P(fake) of a bin", "share of fakes", 360))
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": NEUTRAL, "width": 1}, hoverinfo="skip"
    )
    for model in models:
        line = _line(model, VARIANTS[variants[model["model"]]].colour)
        figure.add_scatter(
            **model["reliability"][when],
            mode="lines+markers",
            line=line,
            marker={"size": 6},
            hovertemplate=f"{model['model']}<br>said %{{x:.3f}}, were %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(range=(-0.02, 1.02))
    figure.update_yaxes(range=(-0.02, 1.02))
    return figure


def _add_steps(figure: go.Figure, model: Model, name: str, colour: str, shape: str) -> None:
    figure.add_scatter(
        **model[name],
        mode="lines",
        line={**_line(model, colour), "shape": shape},
        hovertemplate=f"{model['model']}<br>%{{x:.4f}}, %{{y:.4f}}<extra></extra>",
    )


def _add_half(figure: go.Figure, model: Model, colour: str, x: float, y: float) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"color": colour, "size": 10, "symbol": "diamond" if _fixed(model) else "circle"},
        hovertemplate=f"{model['model']} at threshold 0.5<br>%{{x:.4f}}, %{{y:.4f}}"
        "<extra></extra>",
    )


def _line(model: Model, colour: str) -> dict[str, Any]:
    dash, width = ("dot", 2) if _fixed(model) else ("solid", 3)
    return {"color": colour, "dash": dash, "width": width}


def _fixed(model: Model) -> bool:
    return bool(model["role"] == "baseline")


def _y_at(curve: Mapping[str, list[float]], x: float) -> float:
    """At the last point up to x."""
    return next(y for of_x, y in zip(curve["x"][::-1], curve["y"][::-1], strict=True) if of_x <= x)
