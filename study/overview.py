"""All slots at a glance, for the HTML report: what they drew, and what pruning spared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from study.charts import COLOURS, NEUTRAL, figure_layout, of_slots
from study.config import OBJECTIVES, Range, Space
from study.slots import SlotRecord, best_of

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
    for variant, colour in COLOURS.items():
        mine = [r for r in trained if r.params is not None and r.params.variant == variant]
        for kind in ("trained", "spared"):
            bars = mine if kind == "trained" else [r for r in mine if _stopped(r)]
            if not bars:
                continue
            done = [len(record.losses) for record in bars]
            figure.add_bar(
                x=[record.number for record in bars],
                y=done if kind == "trained" else [max_epochs - epochs for epochs in done],
                marker={"color": colour, "opacity": 1.0 if kind == "trained" else 0.25},
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
    drawn = [name for name, values in space.drawn().items() if isinstance(values, Range)]
    logs = {name for name in drawn if getattr(space, name).log}
    axes = [*drawn, OBJECTIVES[measured[0].objective]]
    rows = [[*(getattr(r.params, name) for name in drawn), r.best_loss] for r in measured]
    losses = [row[-1] for row in rows]
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        logs.add(axes[-1])
    columns = [_scaled([row[at] for row in rows], axes[at] in logs) for at in range(len(axes))]
    lines = dict(zip((r.number for r in measured), zip(*columns, strict=True), strict=True))
    figure = go.Figure(layout=figure_layout("", "", height=380))
    for alike in _alike(measured):
        _add_lines(figure, alike, lines, is_best=alike == [best_of(measured)])
    figure.update_layout(margin={"l": 30, "r": 30}, **_ends(axes, rows))
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
        for variant in COLOURS
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
            "color": COLOURS[variant],  # type: ignore[index]
            "width": 4 if is_best else 1.5,
            "dash": "solid" if complete else "dot",
        },
        opacity=1.0 if complete else 0.6,
        marker={"size": 6},
        **of_slots(slots),
    )


def _ends(axes: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The axes' names below, the lowest and the highest value at their ends."""
    columns = list(zip(*rows, strict=True))
    edges = [
        {"x": at, "y": y, "text": f"{value:.3g}", "showarrow": False, "yshift": shift}
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


def top(records: Sequence[SlotRecord], n: int) -> set[int]:
    """The complete slots of the lowest loss."""
    complete = [r for r in records if r.state == "complete"]
    return {r.number for r in sorted(complete, key=lambda r: (r.best_loss, r.number))[:n]}
