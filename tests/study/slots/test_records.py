"""Which slot is the best, which were: on records made by hand."""

from dataclasses import replace

from study.slots.records import SlotRecord, State, best_of, incumbents, ranked

NOTHING = SlotRecord(
    number=0,
    state="complete",
    baseline=None,
    attempt=0,
    params=None,
    losses={},
    reason=None,
    run_id=None,
    worker=None,
    seconds=None,
)


def study(*slots: tuple[State, tuple[float, ...]]) -> list[SlotRecord]:
    """By number: how each ended, and its losses by epoch."""
    return [
        replace(NOTHING, number=number, state=state, losses=dict(enumerate(losses)))
        for number, (state, losses) in enumerate(slots)
    ]


RECORDS = study(
    ("complete", (0.7, 0.5, 0.6)),  # its best epoch counts
    ("pruned", (0.1,)),
    ("complete", (0.5,)),
    ("failed", (0.2,)),
    ("complete", (0.4, 0.9)),
    ("running", (0.3,)),
    ("complete", (0.45,)),
    ("complete", (0.4,)),
    ("waiting", ()),
)


def test_complete_slots_alone_are_ranked_and_of_equals_the_first_is_first() -> None:
    assert [record.number for record in ranked(RECORDS)] == [4, 7, 6, 0, 2]
    best = best_of(RECORDS)
    assert best is not None
    assert best.number == 4


def test_an_incumbent_is_below_all_before_it_and_an_equal_is_none() -> None:
    assert [record.number for record in incumbents(RECORDS)] == [0, 4]


def test_where_nothing_is_complete_nothing_is_best() -> None:
    unfinished = study(("pruned", (0.1,)), ("running", (0.3,)), ("failed", ()))
    assert (ranked(unfinished), best_of(unfinished), incumbents(unfinished)) == ([], None, [])
