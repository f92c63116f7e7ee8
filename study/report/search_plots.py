"""Figures of the HTML report. Colours and backgrounds of the scheme are the page's to set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState

from deepfake.variants import VARIANTS
from study.config import OBJECTIVES, Choice, Range, Space
from study.slots import SlotRecord, best_of, incumbents

Curves = Mapping[str, Mapping[int, float]]  # metric -> epoch -> value

NEUTRAL = "#8a9099"  # legible in both schemes
SYMBOLS = {
    "waiting": "circle-open",
    "running": "circle-open",
    "complete": "circle",
    "pruned": "x",
    "failed": "triangle-down",
}
MIN_FOR_IMPORTANCES = 30  # complete trials: what the best tenth is compared by is then three


def history_figure(records: Sequence[SlotRecord]) -> go.Figure | None:
    """Best objective by slot, the lowest so far, and a ring around each that lowered it.

    None before there is a loss.
    """
    measured = _measured(records)
    if not measured:
        return None
    figure = go.Figure(layout=figure_layout("slot", _best(measured), height=380))
    rings = incumbents(records)
    best_at = {record.number: _loss(record) for record in rings}
    lowest: list[float | None] = []
    for record in measured:
        lowest.append(best_at.get(record.number, lowest[-1] if lowest else None))
    figure.add_scatter(
        x=[record.number for record in measured],
        y=lowest,
        mode="lines",
        line={"shape": "hv", "color": NEUTRAL, "width": 1.5},
        hoverinfo="skip",
        name="lowest so far",
    )
    figure.add_scatter(
        x=[record.number for record in rings],
        y=[_loss(record) for record in rings],
        mode="markers",
        marker={"symbol": "circle-open", "size": 19, "color": NEUTRAL, "line": {"width": 1.5}},
        hoverinfo="skip",
        name="incumbents",
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
    for name, drawn in space.varied().items():
        figure = go.Figure(layout=figure_layout(name, _best(measured), height=300))
        _add_slots(figure, measured, lambda record, name=name: getattr(record.params, name))
        if isinstance(drawn, tuple):
            figure.update_xaxes(type="category", categoryarray=drawn)
        elif drawn.log:
            figure.update_xaxes(type="log", exponentformat="power", dtick=1)
        figures[name] = figure
    if len(space.variant) > 1:
        figure = go.Figure(layout=figure_layout("variant", _best(measured), height=300))
        _add_slots(figure, measured, lambda record: record.params and record.params.variant)
        figure.update_xaxes(
            type="category",
            categoryarray=space.variant,
            range=[-0.5, len(space.variant) - 0.5],
            tickangle=0,
            tickvals=space.variant,
            ticktext=[VARIANTS[variant].short for variant in space.variant],
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
    drawn = [*space.varied()]
    if len(space.variant) > 1:
        drawn.append("variant")
    shares = optuna.importance.get_param_importances(study, params=drawn)
    return shares if len(set(shares.values())) > 1 else None


def importances_figure(shares: Mapping[str, float]) -> go.Figure:
    """Bars, the largest on top."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = go.Figure(layout=figure_layout("share", "", height=90 + 34 * len(names)))
    figure.add_bar(
        x=[shares[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": NEUTRAL},
        text=[f"{shares[name]:.0%}" for name in names],
        textposition="outside",
        hoverinfo="skip",
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(ticksuffix="  ")
    figure.update_layout(margin={"l": 100})
    return figure


def curves_figure(curves: Mapping[int, Curves], quantity: str) -> go.Figure:
    """Axes for the training and validation curves of slots; quantity: loss or accuracy.

    The page draws those that are picked, of what drawable has.
    """
    figure = go.Figure(layout=figure_layout("epoch", quantity, height=360))
    figure.update_xaxes(tickformat="d", dtick=1 if _epochs(curves) <= 12 else None)
    if quantity == "loss":
        losses = (curve for slot in curves.values() for curve in slot.values())
        _scale_y(figure, (value for curve in losses for value in curve.values()))
    return figure


def drawable(
    records: Sequence[SlotRecord], curves: Mapping[int, Curves]
) -> dict[int, dict[str, Any]]:
    """By slot what the page draws a curve of, short: a study may have a thousand.

    curves: metric -> values by epoch from 0, null where one is missing.
    """
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        of_slot = curves.get(record.number, {})
        if record.params is None or not any(of_slot.values()):
            continue
        found[record.number] = {
            "colour": VARIANTS[record.params.variant].colour,
            "symbol": _symbol(record),
            "curves": {name: _in_row(curve) for name, curve in of_slot.items() if curve},
        }
    return found


def _in_row(curve: Mapping[int, float]) -> list[float | None]:
    return [
        float(f"{curve[epoch]:.6g}") if epoch in curve else None for epoch in range(max(curve) + 1)
    ]


def validated(quantity: str) -> set[str]:
    """The metrics of validation that curves_figure draws of a quantity."""
    return {f"val_{quantity}", f"robust_val_{quantity}"}


def _add_slots(figure: go.Figure, records: Sequence[SlotRecord], x: Any) -> None:
    """A point a slot, coloured by variant; x: record -> its place."""
    for variant, entry in VARIANTS.items():
        mine = [r for r in records if r.params is not None and r.params.variant == variant]
        if not mine:
            continue
        figure.add_scatter(
            x=[x(record) for record in mine],
            y=[record.best_loss for record in mine],
            mode="markers",
            marker={
                "color": entry.colour,
                "size": [11 if record.baseline else 9 for record in mine],
                "symbol": [_symbol(record) for record in mine],
                "opacity": 0.9,
                "line": {"width": 0},
            },
            **of_slots([record.number for record in mine]),
            name=variant,
        )


def of_slots(numbers: Sequence[int | None]) -> dict[str, Any]:
    """What ties a trace's points to slots: the page gives each its text of hovers."""
    return {
        "customdata": numbers,
        "meta": "slots",
        "hovertemplate": "%{text}<extra></extra>",
    }


def hovers(records: Sequence[SlotRecord], max_epochs: int) -> dict[int, str]:
    """What the page says of a slot's point in any figure, by slot."""
    found = {}
    for record in records:
        if (p := record.params) is None:
            continue
        state = f"baseline, {record.state}" if record.baseline else record.state
        loss = "" if record.best_loss is None else f"{record.best_loss:.4g}"
        found[record.number] = (
            f"<b>slot {record.number}</b> {p.variant}"
            f"<br>{state} after {len(record.losses)} of {max_epochs} epochs"
            f"<br>{OBJECTIVES[record.objective]} {loss or '-'}"
            f"<br>{', '.join(f'{name} {value}' for name, value in p.printed().items())}"
        )
    return found


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
        near = max(positive) < 1000 * min(positive)  # ticks at 1, 2, 5 of each decade, or at 1
        figure.update_yaxes(type="log", tickformat=".3~g", dtick="D2" if near else 1)


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


LINES = 150  # of parallel coordinates


@dataclass(frozen=True)
class Spared:
    """What pruning did to a study."""

    slots: int  # pruned
    trained: int  # epochs, by them
    spared: int  # epochs that max_epochs would have let them have
    all_trained: int  # epochs, by every slot


@dataclass(frozen=True)
class Stop:
    """A slot that the pruner stopped."""

    record: SlotRecord
    after_s: float | None  # since the first slot's start, if the clocks of the machines agree


def spared(records: Sequence[SlotRecord], max_epochs: int) -> Spared:
    """An upper bound: the early stop would have ended some of the pruned ones, too."""
    pruned = [record for record in records if _stopped(record)]
    trained = sum(len(record.losses) for record in pruned)
    everything = sum(len(record.losses) for record in records)
    return Spared(len(pruned), trained, len(pruned) * max_epochs - trained, everything)


def pruning_figure(records: Sequence[SlotRecord], max_epochs: int) -> go.Figure | None:
    """A bar a slot: epochs trained, and pale those that a pruned one was spared.

    None if nothing was pruned.
    """
    trained = [record for record in records if record.losses and record.params is not None]
    if not any(map(_stopped, trained)):
        return None
    layout = figure_layout("slot", "epochs", height=300)
    figure = go.Figure(layout={**layout, "barmode": "stack", "bargap": 0.25})
    for variant, entry in VARIANTS.items():
        mine = [r for r in trained if r.params is not None and r.params.variant == variant]
        for kind in ("trained", "spared"):
            bars = mine if kind == "trained" else [r for r in mine if _stopped(r)]
            if not bars:
                continue
            done = [len(record.losses) for record in bars]
            figure.add_bar(
                x=[record.number for record in bars],
                y=done if kind == "trained" else [max_epochs - epochs for epochs in done],
                marker={"color": entry.colour, "opacity": 1.0 if kind == "trained" else 0.25},
                textposition="none",
                **of_slots([record.number for record in bars]),
                name=f"{variant}, {kind}",
            )
    figure.update_xaxes(tickformat="d")
    figure.update_yaxes(range=[0, max_epochs], tickformat="d")
    return figure


def stops(records: Sequence[SlotRecord]) -> list[Stop]:
    """Of the pruned slots, the earliest stop first."""
    begun = min((r.started for r in records if r.started is not None), default=None)
    found = []
    for record in records:
        if not _stopped(record):
            continue
        after_s = None
        if begun is not None and record.started is not None and record.seconds is not None:
            after_s = (record.started - begun).total_seconds() + record.seconds
        found.append(Stop(record, after_s))
    return sorted(found, key=lambda stop: math.inf if stop.after_s is None else stop.after_s)


def parallel_figure(records: Sequence[SlotRecord], space: Space) -> go.Figure | None:
    """A line a slot through everything it drew, to its best objective; None without any.

    Of more slots than LINES the best, for more would hide each other. Each axis reaches from their
    lowest value to the highest, a drawn range on the scale it is drawn on; the best slot is bold,
    pruned and failed ones are dotted. One trace has all lines that look alike.
    """
    measured = _lowest(records)
    if not measured:
        return None
    drawn = space.varied()
    logs = {name for name, values in drawn.items() if isinstance(values, Range) and values.log}
    axes = [*drawn, OBJECTIVES[measured[0].objective]]
    rows = [
        [*(_place(getattr(r.params, name), drawn[name]) for name in drawn), _loss(r)]
        for r in measured
    ]
    losses = [row[-1] for row in rows]
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        logs.add(axes[-1])
    columns = [_scaled([row[at] for row in rows], axes[at] in logs) for at in range(len(axes))]
    lines = dict(zip((r.number for r in measured), zip(*columns, strict=True), strict=True))
    figure = go.Figure(layout=figure_layout("", "", height=380))
    for alike in _alike(measured):
        _add_lines(figure, alike, lines, is_best=alike == [best_of(measured)])
    choices = {at: c for at, c in enumerate(drawn.values()) if isinstance(c, tuple)}
    figure.update_layout(margin={"l": 30, "r": 30}, **_ends(axes, rows, choices))
    return figure


def _lowest(records: Sequence[SlotRecord]) -> list[SlotRecord]:
    """The LINES of the lowest loss, and the baselines, in the order of their slots."""
    measured = [r for r in records if r.params is not None and _finite(r.best_loss)]
    lowest = sorted(measured, key=lambda r: (r.best_loss, r.number))[:LINES]
    numbers = {r.number for r in lowest}
    return [r for r in measured if r.number in numbers or r.baseline]


def _alike(records: Sequence[SlotRecord]) -> list[list[SlotRecord]]:
    """By variant, those that did not complete and those that did; the best alone, over all."""
    best = best_of(records)
    others = [
        [r for r in records if r is not best and _look(r) == (variant, complete)]
        for complete in (False, True)
        for variant in VARIANTS
    ]
    return [group for group in [*others, [best] if best else []] if group]


def _look(record: SlotRecord) -> tuple[str, bool]:
    assert record.params is not None
    return record.params.variant, record.state == "complete"


def _add_lines(
    figure: go.Figure,
    alike: Sequence[SlotRecord],
    lines: Mapping[int, Sequence[float]],
    *,
    is_best: bool,
) -> None:
    variant, complete = _look(alike[0])
    x: list[int | None] = []
    y: list[float | None] = []
    slots: list[int | None] = []
    for record in alike:
        line = lines[record.number]
        x += [*range(len(line)), None]  # the gap behind each line
        y += [*line, None]
        slots += [*[record.number] * len(line), None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={
            "color": VARIANTS[variant].colour,
            "width": 4 if is_best else 1.5,
            "dash": "solid" if complete else "dot",
        },
        opacity=1.0 if complete else 0.6,
        marker={"size": 6},
        **of_slots(slots),
    )


def _place(value: Any, drawn: Range | Choice) -> float:
    """On its axis: of a choice the number of the value."""
    return drawn.index(value) if isinstance(drawn, tuple) else float(value)


def _ends(
    axes: Sequence[str], rows: Sequence[Sequence[float]], choices: Mapping[int, Choice]
) -> dict[str, Any]:
    """The axes' names below, the lowest and the highest value at their ends.

    choices: by axis, where a row has the number of a value.
    """
    columns = list(zip(*rows, strict=True))
    edges = [
        {
            "x": at,
            "y": y,
            "text": str(choices[at][int(value)]) if at in choices else f"{value:.3g}",
            "showarrow": False,
            "yshift": shift,
        }
        for at, column in enumerate(columns)
        for y, value, shift in ((0, min(column), -14), (1, max(column), 14))
    ]
    rules: list[Mapping[str, Any]] = [
        {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": {"color": NEUTRAL}}
        for at in range(len(axes))
    ]
    names = [name.replace(" under ", "<br>under ") for name in axes]
    return {
        "annotations": edges,
        "shapes": rules,
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": names,
            "range": [-0.4, len(axes) - 0.6],
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": {"visible": False, "range": [-0.12, 1.1]},
    }


def _scaled(values: Sequence[float], log: bool) -> list[float]:
    """From 0, the lowest, to 1."""
    places = [math.log10(value) for value in values] if log else list(values)
    low, high = min(places), max(places)
    return [0.5 if high == low else (place - low) / (high - low) for place in places]


def _stopped(record: SlotRecord) -> bool:
    """By the pruner: one that diverged is called pruned, too."""
    return record.state == "pruned" and not record.diverged


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def shown(records: Sequence[SlotRecord]) -> set[int]:
    """The slots whose curves are drawn at first: the baselines and the best."""
    best = best_of(records)
    return {r.number for r in records if r.baseline} | ({best.number} if best else set())
