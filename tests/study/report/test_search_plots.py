"""All slots at a glance, against numbers worked out by hand."""

from dataclasses import replace
from datetime import datetime, timedelta

from plotly.graph_objects import Figure

from deepfake.config import Hyperparameters
from study.config.schema import Space
from study.report.search_plots import LINES, Spared, parallel_figure, pruning_figure, spared, stops
from study.slots.records import DIVERGED, SlotRecord, State

SPACE = Space.model_validate(
    {
        "variant": ["cnn", "mobilenet_v2_frozen"],
        "lr": {"low": 1e-5, "high": 1e-2, "log": True},
        "weight_decay": 1e-5,
        "dropout": {"low": 0.0, "high": 0.7},
    }
)


def record(number: int, state: State, lr: float, dropout: float, *losses: float) -> SlotRecord:
    params = Hyperparameters(variant="cnn", lr=lr, weight_decay=1e-5, dropout=dropout)
    return SlotRecord(
        number=number,
        state=state,
        baseline=None,
        attempt=0,
        params=params,
        losses=dict(enumerate(losses)),
        reason=None,
        run_id=None,
        worker=None,
        seconds=None,
    )


RECORDS = [
    record(0, "complete", 1e-4, 0.2, 0.9, 0.5, 0.6, 0.7),
    record(1, "pruned", 1e-2, 0.6, 1.0, 1.1),
    record(2, "pruned", 1e-3, 0.4, 0.8),
]


def test_pruned_slots_are_spared_what_max_epochs_would_have_let_them_have() -> None:
    # of ten epochs each: slot 1 trained two and slot 2 one
    assert spared(RECORDS, 10) == Spared(slots=2, trained=3, spared=8 + 9, all_trained=7)
    figure = pruning_figure(RECORDS, 10)
    assert figure is not None
    bars = {
        (trace.name, slot): epochs
        for trace in figure.data
        for slot, epochs in zip(trace.x, trace.y, strict=True)
    }
    assert bars == {
        ("cnn, trained", 0): 4,
        ("cnn, trained", 1): 2,
        ("cnn, trained", 2): 1,
        ("cnn, spared", 1): 8,
        ("cnn, spared", 2): 9,
    }


def test_a_slot_that_diverged_was_not_spared_anything() -> None:
    diverged = replace(RECORDS[1], reason=f"{DIVERGED} behind 2 finite epochs")
    assert spared([diverged], 10) == Spared(slots=0, trained=0, spared=0, all_trained=2)
    assert pruning_figure([diverged], 10) is None


def test_a_study_without_a_pruned_slot_has_no_figure_of_pruning() -> None:
    assert pruning_figure(RECORDS[:1], 10) is None
    assert pruning_figure([], 10) is None
    assert parallel_figure([], SPACE) is None


def test_the_stops_are_in_the_order_of_time_since_the_first_slot_began() -> None:
    noon = datetime(2026, 1, 1, 12)
    begun = [
        replace(RECORDS[0], started=noon, seconds=600.0),
        replace(RECORDS[1], started=noon + timedelta(seconds=30), seconds=70.0),
        replace(RECORDS[2], started=noon + timedelta(seconds=60), seconds=20.0),
    ]
    assert [(stop.record.number, stop.after_s) for stop in stops(begun)] == [(2, 80), (1, 100)]
    assert [stop.after_s for stop in stops(RECORDS)] == [None, None]


def lines_of(figure: Figure) -> list[list[float]]:
    """Every slot's places on the axes, in the order they are drawn."""
    found: list[list[float]] = [[]]
    for trace in figure.data:
        for y in trace.y:
            if y is None:
                found.append([])
            else:
                found[-1].append(round(y, 9))
    return found[:-1]


def test_a_line_runs_through_what_a_slot_drew_on_the_scale_it_was_drawn_on() -> None:
    figure = parallel_figure(RECORDS, SPACE)
    assert figure is not None
    # slots 1, 2 and, over them, the best, 0; lr by its logarithm: 1e-2, 1e-3, 1e-4; dropout
    # 0.6, 0.4, 0.2; best loss 1.0, 0.8, 0.5
    assert lines_of(figure) == [[1, 1, 1], [0.5, 0.5, 0.6], [0, 0, 0]]
    assert [list(trace.customdata[::4]) for trace in figure.data] == [[1, 2], [0]]
    assert list(figure.layout.xaxis.ticktext) == ["lr", "dropout", "validation loss"]
    ends = [note.text for note in figure.layout.annotations]
    assert ends == ["0.0001", "0.01", "0.2", "0.6", "0.5", "1"]
    assert [trace.line.dash for trace in figure.data] == ["dot", "solid"]
    assert [trace.line.width for trace in figure.data] == [1.5, 4]


def test_of_many_slots_the_best_have_lines_and_the_baselines() -> None:
    many = [record(n, "complete", 1e-3, 0.2, 1 - n / 1000) for n in range(LINES + 50)]
    many[3] = replace(many[3], baseline="cnn")
    figure = parallel_figure(many, SPACE)
    assert figure is not None
    assert len(lines_of(figure)) == LINES + 1
    drawn = {slot for trace in figure.data for slot in trace.customdata}
    assert drawn == {3, None, *range(50, LINES + 50)}
