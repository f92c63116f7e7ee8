"""Figures of the finalists on test: what is drawn, and how far in."""

from dataclasses import replace
from typing import Any

import pytest

from deepfake.variants import VARIANTS
from study.evaluation.results import (
    Cell,
    Comparison,
    Figure,
    ModelFigures,
    Sides,
    Welch,
)
from study.report.test_plots import (
    curve_figures,
    differences_figure,
    incumbents_figure,
    standing_figure,
)


def curves(model: str, role: str, knee: tuple[float, float]) -> dict[str, Any]:
    """A model whose ROC and precision have one corner, (false alarms, found)."""
    alarms, found = knee
    reliability = {"x": [0.1, 0.9], "y": [0.2, 0.8]}
    return {
        "model": model,
        "role": role,
        "roc": {"x": [0.0, alarms, 1.0], "y": [0.0, found, 1.0]},
        "precision_recall": {"x": [0.0, found, 1.0], "y": [1.0, 1 - alarms, 0.5]},
        "at_half": {"false_alarms": alarms, "recall": found, "precision": 1 - alarms},
        "reliability": {"before": reliability, "after": reliability},
    }


def test_the_best_is_solid_and_baselines_are_dotted_in_their_variants_colours() -> None:
    models = [curves("slot 7", "candidate", (0.3, 0.8)), curves("cnn", "baseline", (0.3, 0.7))]
    figures = curve_figures(models, {"slot 7": "mobilenet_v2_finetuned", "cnn": "cnn"})
    assert list(figures) == ["roc", "precision-recall", "reliability-before", "reliability-after"]
    lines = [trace.line for trace in figures["roc"].data if trace.mode == "lines"]
    assert [line.dash for line in lines] == ["solid", "dot"]
    assert [line.color for line in lines] == [
        VARIANTS[variant].colour for variant in ("mobilenet_v2_finetuned", "cnn")
    ]
    points = [trace for trace in figures["roc"].data if trace.mode == "markers"]
    assert [(*trace.x, *trace.y) for trace in points] == [(0.3, 0.8), (0.3, 0.7)]


@pytest.mark.parametrize(("worst", "in_corner"), [((0.05, 0.97), True), ((0.2, 0.85), False)])
def test_where_every_model_is_good_the_corner_is_shown(
    worst: tuple[float, float], in_corner: bool
) -> None:
    models = [curves("slot 7", "candidate", (0.01, 0.99)), curves("cnn", "baseline", worst)]
    figures = curve_figures(models, {"slot 7": "cnn", "cnn": "cnn"})
    assert (figures["roc"].layout.xaxis.range[1] < 0.2) == in_corner
    for axis in (figures["roc"].layout.yaxis, figures["precision-recall"].layout.xaxis):
        assert (axis.range[0] > 0.8) == in_corner


def measured(model: str, slot: int, **figures: Figure | None) -> ModelFigures:
    return ModelFigures(model, "candidate", slot, [0], 0.5, [1.0], [0.5], dict(figures))


def incumbent(slot: int, val: float, test: float) -> ModelFigures:
    nll = Figure(test, test - 0.25, test + 0.5, None, [test])
    return replace(measured(f"incumbent {slot}", slot, nll=nll), val_nll=val)


def compared(baseline: str, nll: Welch) -> Comparison:
    sides = Sides(0.0, 0.0, nll)
    verdict: Any = "not distinguishable"
    return Comparison("slot 7", baseline, (3, 3), verdict, None, sides, sides, sides, None)


def test_incumbents_are_in_the_order_of_the_search_validation_beside_test() -> None:
    found = [incumbent(12, 0.25, 1.0), incumbent(3, 0.5, 0.75)]
    figure = incumbents_figure(found, {"incumbent 3": "cnn", "incumbent 12": "cnn"})
    assert figure is not None
    val, test = figure.data
    assert list(val.x) == list(test.x) == [3, 12]
    assert (list(val.y), list(test.y)) == ([0.5, 0.25], [0.75, 1.0])
    assert (list(test.error_y.array), list(test.error_y.arrayminus)) == ([0.5] * 2, [0.25] * 2)
    assert incumbents_figure(found[:1], {"incumbent 12": "cnn"}) is None


def test_the_difference_to_each_baseline_has_its_interval_if_there_is_one() -> None:
    comparisons = [
        compared("cnn", Welch(-0.25, -0.5, 0.125, 8.0, 0.1)),
        compared("mobilenet_v2_frozen", Welch(0.5, None, None, None, None)),
    ]
    variants: Any = {name: name for name in ("cnn", "mobilenet_v2_frozen")}
    points = differences_figure(comparisons, variants).data
    assert [(*trace.x, *trace.y) for trace in points] == [
        (-0.25, "cnn"),
        (0.5, "mobilenet_v2_frozen"),
    ]
    bars = [(*trace.error_x.arrayminus, *trace.error_x.array) for trace in points]
    assert bars == [(0.25, 0.375), (0, 0)]


def test_a_long_name_is_broken_behind_its_last_underscore_where_it_is_a_tick() -> None:
    names: Any = ("mobilenet_v2_finetuned", "mobilenet_v2_fro", "slot 7")
    comparisons = [compared(name, Welch(0.5, None, None, None, None)) for name in names]
    figure = differences_figure(comparisons, dict.fromkeys(names, "cnn"))
    assert list(figure.layout.yaxis.tickvals) == [*names]
    assert list(figure.layout.yaxis.ticktext) == [
        "mobilenet_v2_<br>finetuned",
        "mobilenet_v2_fro",  # as long as there is room for
        "slot 7",
    ]


def test_accuracy_stands_beside_what_the_report_printed_of_that_model() -> None:
    accuracy = Figure(0.75, 0.5, 0.875, None, [0.75])
    models = [measured(name, 7, accuracy=accuracy) for name in ("slot 7", "cnn")]
    cells = [
        Cell("cnn", name, printed, 0.75, 0.5, 0.875, "inconclusive")
        for name, printed in (("accuracy", 0.98), ("f1_0", 0.99))
    ]
    figure = standing_figure(models, {"slot 7": "cnn", "cnn": "cnn"}, cells)
    *ours, printed = figure.data
    assert [trace.y[0] for trace in ours] == ["slot 7", "cnn"]
    assert (list(printed.x), list(printed.y)) == ([0.98], ["cnn"])
    assert list(figure.layout.yaxis.range) == [1.5, -0.5]  # the first on top
