"""Tables as they are printed: numbers to the right, the first columns to the left."""

import io

from rich.console import Console, RenderableType

from deepfake.data.prepare import Summary
from study.cli.tables import gc_table, status_table, summary_table
from study.maintenance.disk import Usage
from study.maintenance.gc import Collected
from tests.study.cli.test_live import ENDED, record


def printed(table: RenderableType) -> list[str]:
    text = io.StringIO()
    Console(width=150, file=text).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_numbers_stand_to_the_right_of_their_names() -> None:
    splits = {"train": {"real": 1000, "fake": 9}, "val": {"real": 2, "fake": 30}}
    summary = Summary(700, 1041, 1002, 39, splits, {}, 0, 700, 1002, 39)
    lines = printed(summary_table(summary))
    assert lines[0] == "1041 faces of 700 photos"
    assert [line.strip("│") for line in lines if "│" in line] == [
        " train │ 1000 │    9 ",
        " val   │    2 │   30 ",
        " all   │ 1002 │   39 ",
    ]


def test_what_gc_removes_is_a_table_only_if_there_is_something() -> None:
    kept = {3: "the best"}
    some = Collected([Usage("weights", "/runs/3", 2_500_000)], 2_500_000, kept, dry_run=True)
    lines = printed(gc_table(some))
    assert lines[0] == "slot 3 stays: the best"
    assert any(
        line.split() == ["│", "weights", "│", "2.5", "MB", "│", "/runs/3", "│"] for line in lines
    )
    assert lines[-1] == "2.5 MB would be freed"
    assert printed(gc_table(Collected([], 0, kept, dry_run=False)))[1:] == ["0.0 MB freed"]


def test_the_status_counts_all_and_lists_those_that_began() -> None:
    records = [*ENDED, record(3, "waiting", None)]
    lines = printed(status_table("s", records, 20))
    assert lines[0] == "study s: 4 slots"
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["0", "complete"],
        ["1", "pruned"],
        ["2", "complete"],
    ]
    assert lines[4].strip() == "1 waiting  0 running  2 complete  1 pruned  0 failed"
    assert lines[5].startswith("best:    0 complete")
