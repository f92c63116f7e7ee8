"""All slots at a glance, against numbers worked out by hand."""

from dataclasses import replace

from deepfake.config import Hyperparameters
from study.config import Space
from study.overview import Spared, parallel_figure, pruning_figure, spared
from study.records import DIVERGED, SlotRecord, State

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
        for slot, epochs in zip(trace.y, trace.x, strict=True)
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


def test_a_line_runs_through_what_a_slot_drew_on_the_scale_it_was_drawn_on() -> None:
    figure = parallel_figure(RECORDS, SPACE)
    assert figure is not None
    # slots 1, 2 and, over them, the best, 0; lr by its logarithm: 1e-2, 1e-3, 1e-4; dropout
    # 0.6, 0.4, 0.2; best loss 1.0, 0.8, 0.5
    lines = [[round(y, 9) for y in trace.y] for trace in figure.data]
    assert lines == [[1, 1, 1], [0.5, 0.5, 0.6], [0, 0, 0]]
    assert list(figure.layout.xaxis.ticktext) == ["lr", "dropout", "validation loss"]
    ends = [note.text for note in figure.layout.annotations]
    assert ends == ["0.0001", "0.01", "0.2", "0.6", "0.5", "1"]
    assert [trace.line.dash for trace in figure.data] == ["dot", "dot", "solid"]
    assert [trace.line.width for trace in figure.data] == [1.5, 1.5, 4]
