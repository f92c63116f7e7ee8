"""Figures of the HTML report. Colours and backgrounds of the scheme are the page's to set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState

from deepfake.config import Variant
from study.config import OBJECTIVES, Range, Space
from study.records import SlotRecord
from study.robustness import kinds, steps

Curves = Mapping[str, Mapping[int, float]]  # metric -> epoch -> value

# From Okabe and Ito's palette: told apart by the colour-blind, 3:1 on white and on near-black.
COLOURS: dict[Variant, str] = dict(
    zip(get_args(Variant), ("#0072B2", "#D55E00", "#009E73"), strict=True)
)
NEUTRAL = "#8a9099"  # legible in both schemes
SYMBOLS = {
    "waiting": "circle-open",
    "running": "circle-open",
    "complete": "circle",
    "pruned": "x",
    "failed": "triangle-down",
}
MIN_FOR_IMPORTANCES = 10  # of the complete trials; its best tenth is then one trial


def history_figure(records: Sequence[SlotRecord]) -> go.Figure | None:
    """Best objective by slot, and the lowest so far; None before there is a loss."""
    measured = _measured(records)
    if not measured:
        return None
    figure = go.Figure(layout=figure_layout("slot", _best(measured), height=380))
    lowest, best = [], math.inf
    for record in measured:
        if record.state == "complete":
            best = min(best, _loss(record))
        lowest.append(best if best < math.inf else None)
    figure.add_scatter(
        x=[record.number for record in measured],
        y=lowest,
        mode="lines",
        line={"shape": "hv", "color": NEUTRAL, "width": 1.5},
        hoverinfo="skip",
        name="lowest so far",
    )
    _add_slots(figure, measured, lambda record: record.number)
    figure.update_xaxes(tickformat="d")
    _scale_y(figure, map(_loss, measured))
    return figure


def slice_figures(records: Sequence[SlotRecord], space: Space) -> dict[str, go.Figure]:
    """Best objective by each hyperparameter that this space draws."""
    measured = _measured(records)
    if not measured:
        return {}
    figures = {}
    for name, drawn in space.drawn().items():
        if isinstance(drawn, Range):
            figure = go.Figure(layout=figure_layout(name, _best(measured), height=300))
            _add_slots(figure, measured, lambda record, name=name: getattr(record.params, name))
            if drawn.log:
                figure.update_xaxes(type="log", exponentformat="power", dtick=1)
            figures[name] = figure
    if len(space.variant) > 1:
        figure = go.Figure(layout=figure_layout("variant", _best(measured), height=300))
        _add_slots(figure, measured, lambda record: record.params and record.params.variant)
        short = [variant.replace("mobilenet_v2_", "mobilenet_v2<br>") for variant in space.variant]
        figure.update_xaxes(
            type="category",
            categoryarray=space.variant,
            range=[-0.5, len(short) - 0.5],
            tickvals=space.variant,
            ticktext=short,
        )
        figures["variant"] = figure
    for figure in figures.values():
        _scale_y(figure, map(_loss, measured))
    return figures


def importances(study: optuna.Study, space: Space) -> dict[str, float] | None:
    """Shares of the hyperparameters, by Optuna's PED-ANOVA; None where they would mean nothing.

    With fewer than MIN_FOR_IMPORTANCES complete trials Optuna answers too, but with noise; where
    it can't tell, it gives every hyperparameter the same share.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_FOR_IMPORTANCES:
        return None
    drawn = [name for name, values in space.drawn().items() if isinstance(values, Range)]
    if len(space.variant) > 1:
        drawn.append("variant")
    shares = optuna.importance.get_param_importances(study, params=drawn)
    return shares if len(set(shares.values())) > 1 else None


def importances_figure(shares: Mapping[str, float]) -> go.Figure:
    """Bars, the largest on top."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = go.Figure(layout=figure_layout("share", "", height=300))
    figure.add_bar(
        x=[shares[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": NEUTRAL},
        text=[f"{shares[name]:.0%}" for name in names],
        textposition="auto",
        hoverinfo="skip",
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_layout(margin={"l": 100})
    return figure


def curves_figure(
    records: Sequence[SlotRecord], curves: Mapping[int, Curves], quantity: str, shown: set[int]
) -> go.Figure:
    """Training (dotted) and validation curves of every slot; quantity: loss or accuracy.

    curves: by slot. Each trace's meta is its slot: the page's boxes toggle by it.
    """
    figure = go.Figure(layout=figure_layout("epoch", quantity, height=360))
    values: list[float] = []
    for record in records:
        if record.params is None:
            continue
        for split, dash in (("train", "dot"), ("val", "solid"), ("robust_val", "dash")):
            curve = curves.get(record.number, {}).get(f"{split}_{quantity}", {})
            if not curve and split == "robust_val":
                continue
            epochs = sorted(curve)
            values += curve.values()
            figure.add_scatter(
                x=epochs,
                y=[curve[epoch] for epoch in epochs],
                mode="lines+markers",
                line={"color": COLOURS[record.params.variant], "dash": dash, "width": 2},
                marker={"size": 4 if split == "train" else 7, "symbol": _symbol(record)},
                visible=record.number in shown,
                meta={"slot": record.number},
                hovertemplate=f"slot {record.number}, {record.params.variant}<br>"
                f"epoch %{{x}}: {split} {quantity} %{{y:.4g}}<extra></extra>",
            )
    figure.update_xaxes(tickformat="d", dtick=1 if _epochs(curves) <= 12 else None)
    if quantity == "loss":
        _scale_y(figure, values)
    return figure


def corruption_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, go.Figure]:
    """Accuracy by level, a line a model, for each kind of corruption; rows: of study.robustness.

    All have one scale.
    """
    lowest = min((row["accuracy"] for row in rows), default=0.0)
    figures = {}
    for kind in kinds(rows):
        figure = go.Figure(layout=figure_layout(kind, "test accuracy", height=280))
        for model in dict.fromkeys(row["model"] for row in rows):
            of_level = steps(rows, model, kind)
            first = next(iter(of_level.values()))
            is_baseline = first["role"] == "baseline"
            figure.add_scatter(
                x=list(of_level),
                y=[row["accuracy"] for row in of_level.values()],
                mode="lines+markers",
                line={
                    "color": COLOURS[first["variant"]],
                    "dash": "dot" if is_baseline else "solid",
                    "width": 2,
                },
                marker={"size": 8, "symbol": "diamond" if is_baseline else "circle"},
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


def validated(quantity: str) -> set[str]:
    """The metrics of validation that curves_figure draws of a quantity."""
    return {f"val_{quantity}", f"robust_val_{quantity}"}


def _add_slots(figure: go.Figure, records: Sequence[SlotRecord], x: Any) -> None:
    """A point a slot, coloured by variant; x: record -> its place."""
    for variant, colour in COLOURS.items():
        mine = [r for r in records if r.params is not None and r.params.variant == variant]
        if not mine:
            continue
        figure.add_scatter(
            x=[x(record) for record in mine],
            y=[record.best_loss for record in mine],
            mode="markers",
            marker={
                "color": colour,
                "size": [11 if record.baseline else 9 for record in mine],
                "symbol": [_symbol(record) for record in mine],
                "opacity": 0.9,
                "line": {"width": 0},
            },
            text=[_hover(record) for record in mine],
            hovertemplate="%{text}<extra></extra>",
            name=variant,
        )


def _hover(record: SlotRecord) -> str:
    p = record.params
    assert p is not None
    what = f"baseline, {record.state}" if record.baseline else record.state
    return (
        f"<b>slot {record.number}</b> {p.variant} ({what})"
        f"<br>{OBJECTIVES[record.objective]} {_loss(record):.4g}"
        f"<br>lr {p.lr:.2e}, weight_decay {p.weight_decay:.2e}, dropout {p.dropout:.2f}"
    )


def _symbol(record: SlotRecord) -> str:
    return "diamond" if record.baseline and record.state == "complete" else SYMBOLS[record.state]


def _measured(records: Sequence[SlotRecord]) -> list[SlotRecord]:
    return [r for r in records if r.params is not None and r.best_loss is not None]


def _best(records: Sequence[SlotRecord]) -> str:
    return f"best {OBJECTIVES[records[0].objective]}"


def _loss(record: SlotRecord) -> float:
    assert record.best_loss is not None
    return record.best_loss


def _epochs(curves: Mapping[int, Curves]) -> int:
    return max((len(curve) for slot in curves.values() for curve in slot.values()), default=0)


def _scale_y(figure: go.Figure, values: Iterable[float]) -> None:
    """A log axis where one diverged slot would flatten the others."""
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) > 10 * min(positive):
        figure.update_yaxes(type="log", tickformat=".3~g")


def figure_layout(x: str, y: str, height: int) -> dict[str, Any]:
    """Of every figure; x, y: titles of the axes."""
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 60, "r": 12, "t": 12, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False},
    }
