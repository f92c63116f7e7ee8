import io
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from deepfake.config import Hyperparameters, VariantName
from study.cli.live import COLUMNS, live_table, seconds_left
from study.evaluation.evaluator import Evaluator
from study.evaluation.finalists import contenders_of_search
from study.slots.records import LastEpoch, SlotRecord, Stage, State
from study.slots.slots import Slots
from study.slots.study import join
from study.slots.training import Training
from tests.support.runs import Folder
from tests.support.terminal import CTRL_C, Terminal

FINETUNED: VariantName = "mobilenet_v2_finetuned"


def record(number: int, state: State, variant: VariantName | None, **changes: Any) -> SlotRecord:
    params = None
    if variant is not None:
        params = Hyperparameters(variant=variant, lr=3e-4, weight_decay=1e-5, dropout=0.5)
    values = {"losses": {}, "worker": None, "seconds": None, "attempt": 0, **changes}
    return SlotRecord(
        number=number,
        state=state,
        baseline=None,
        params=params,
        reason=None,
        run_id=None,
        **values,
    )


def epochs(count: int) -> dict[int, float]:
    return {epoch: 0.7 - epoch / 100 for epoch in range(count)}


ENDED = [
    record(0, "complete", "cnn", seconds=100.0, losses=epochs(20)),
    record(1, "pruned", "cnn", seconds=80.0, losses=epochs(10)),
    record(2, "complete", FINETUNED, seconds=420.0, losses=epochs(20)),
]


def test_what_is_left_is_shared_by_the_workers_that_run() -> None:
    left = [
        record(3, "running", "cnn"),  # the mean of 100 and 80: 90
        record(4, "running", FINETUNED, losses=epochs(10)),  # half of 420: 210
        record(5, "waiting", None),  # the mean of all three: 200
    ]
    assert seconds_left([*ENDED, *left], 20) == pytest.approx((90 + 210 + 200) / 2)


def test_a_study_takes_as_long_as_its_longest_slot() -> None:
    left = [
        record(3, "running", "cnn", losses=epochs(10)),  # 45
        record(4, "running", FINETUNED),  # 420, more than half of 465
    ]
    assert seconds_left([*ENDED, *left], 20) == pytest.approx(420)


@pytest.mark.parametrize(
    "records",
    [
        [ENDED[0], record(1, "running", "cnn")],
        ENDED,
        [*ENDED, record(3, "waiting", None)],
        [
            ENDED[0],
            record(1, "failed", "cnn", seconds=1.0),
            record(2, "complete", "cnn", seconds=1.0, attempt=1),  # only its last attempt
            record(3, "running", "cnn"),
        ],
    ],
    ids=["one has ended", "none is left", "none runs", "a failed and a resumed one"],
)
def test_there_is_no_forecast_where_there_is_nothing_to_go_by(records: list[SlotRecord]) -> None:
    assert seconds_left(records, 20) is None


RUNNING = [
    record(
        3,
        "running",
        FINETUNED,
        losses={0: 0.61, 1: 0.5512, 2: 0.5834},
        last_epoch=LastEpoch(train_loss=0.4321, images_per_s=1234.5),
        worker="gpu-17:30412",
    ),
    record(4, "running", "mobilenet_v2_frozen", stage=Stage(4200, 10000, 190.0)),
]


def drawn(records: list[SlotRecord], width: int, height: int = 30) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(live_table(records, 20, width, height))
    return console.export_text().splitlines()


def test_a_wide_terminal_has_a_row_for_each_slot_that_runs() -> None:
    heading, trained, embedding, study = drawn([*ENDED, *RUNNING], 120)
    assert heading.split() == [
        *("slot", "variant", "lr", "epoch", "train", "val", "best", "img/s", "worker")
    ]
    said = ["3", FINETUNED, "3.0e-04", "3/20", "0.4321", "0.5834", "0.5512", "1,234"]
    assert [cell for cell in trained.split() if "━" not in cell and "╸" not in cell] == [
        *said,
        "gpu-17:30412",
    ]
    assert "embed 42% 3 min" in embedding
    # two slots are left: 17 of 20 epochs of 420 s, and the mean of all, 200 s, shared by two
    assert study == ("3/5 slots finished, ETA 6 min; best 0.5100 (slot 0); 1 pruned, 0 failed")


def test_a_narrow_terminal_loses_columns_and_no_figure_is_cut() -> None:
    heading, trained, _, study = drawn([*ENDED, *RUNNING], 80)
    assert heading.split() == ["slot", "variant", "epoch", "train", "val", "best", "img/s"]
    for figure in (FINETUNED, "3/20", "0.4321", "0.5834", "0.5512", "1,234"):
        assert figure in trained
    assert study.endswith("0 failed")
    heading, trained, _, study = drawn([*ENDED, *RUNNING], 60)
    assert heading.split() == ["slot", "variant", "epoch", "val", "best"]
    assert "0.5834 0.5512" in trained
    assert "ETA 6 min; best 0.5100 (slot 0)" in study


def test_no_width_cuts_a_figure_or_a_heading() -> None:
    widest = replace(
        RUNNING[0],
        worker="a-host-with-a-very-long-name.of.a.cluster:3041299",
        last_epoch=LastEpoch(train_loss=0.4321, images_per_s=123456.7),
        rerun=Training("mobilenet_v2_finetuned", "baseline", 1, 12345),
    )
    for width in range(60, 200):
        heading, trained, embedding, _ = drawn([*ENDED, widest, RUNNING[1]], width)
        shown = [name for name, least in COLUMNS.items() if width >= least]
        assert heading.split() == [name for name in shown if name not in ("bar", "of")], width
        assert "0.5834 0.5512" in trained, width
        assert "embed 42% 3 min" in embedding, width
        assert ("123k" in trained) == ("img/s" in shown)
        assert ("a-host-with…:3041299" in trained) == ("worker" in shown), width


def test_more_rows_than_the_terminal_has_lines_are_counted() -> None:
    many = [record(number, "running", "cnn") for number in range(100)]
    lines = drawn(many, 80, height=10)
    assert len(lines) == 9
    assert lines[-2:] == ["and 94 more", "0/100 slots finished, ETA -; best -; 0 pruned, 0 failed"]


def test_who_stops_a_bar_is_told_once_how_to_continue(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    annotations = tmp_path / "photos/Train_poly.json"
    annotations.unlink()
    os.mkfifo(annotations)
    prepare = folder.start("prepare")
    with annotations.open("wb"):  # until it reads them
        prepare.send_signal(signal.SIGINT)
        _, errors = prepare.communicate(timeout=60)
    assert prepare.returncode == 128 + signal.SIGINT, errors
    assert errors.count("stopped") == 1
    assert "stopped; nothing is lost: the same command continues" in errors


def slots_of(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Slots:
    monkeypatch.chdir(folder.path)
    return join(folder.study_config())


@pytest.mark.slow
def test_the_final_evaluation_is_counted_to_its_end(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    slots = slots_of(small_study, monkeypatch)
    evaluator = Evaluator(slots, torch.device("cpu"), lambda *now: told.append(now))
    evaluator.evaluate(contenders_of_search(slots, 1), corruptions=True)
    for stage in ("prove", "test"):
        counts = [(done, total) for name, done, total in told if name == stage]
        assert counts[0][0] == 0
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1] > 0
        done = [count for count, _ in counts]
        assert done == list(range(len(done)))  # batch by batch, under corruptions as well


@pytest.mark.slow
def test_an_export_draws_its_bars(small_study: Folder, tmp_path: Path) -> None:
    with Terminal(small_study, "export", "--out", str(tmp_path / "model")) as terminal:
        assert terminal.end() == 0, terminal.text
        for stage in ("prove", "test", "calibrate", "write"):
            assert stage in terminal.text
        assert "2/2" in terminal.text  # written and registered


PHOTOS = 100  # epochs long enough to be seen in the table, which looks every half second
LONG = ("study.n_trials=3", "train.max_epochs=8", "train.stop_patience=8")
AMID = re.compile(r" [1-7]/8 ")  # a slot's row, whichever epoch is drawn first


@pytest.mark.slow
def test_a_study_is_watched_from_another_terminal_until_it_is_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path, PHOTOS, *LONG)
    with Terminal(folder, "run", columns=120) as run:
        run.wait_for(AMID.search)
        with Terminal(folder, "status", "--watch", "--interval", "0.2s", columns=80) as watch:
            assert run.end() == 0, run.text
            assert watch.end(60) == 0, watch.text
            for terminal in (run, watch):
                assert "slot variant" in terminal.text
                assert "slots finished, ETA" in terminal.text
                assert "8/8" in terminal.text
                assert "study sample: 3 slots" in terminal.text  # the result, in the end
            assert ":" in run.text.partition("img/s worker")[2]  # host:pid
            assert "img/s worker" not in watch.text  # no room for the column
    plain = folder.call("status", "--watch")  # after the fact, and without a terminal
    assert plain.returncode == 0
    assert plain.stdout == folder.call("status").stdout


@pytest.mark.slow
def test_ctrl_c_leaves_a_watched_study_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path, PHOTOS, *LONG)
    run = folder.start("run")
    try:
        wait_for_study(folder)
        with Terminal(folder, "status", "--watch") as watch:
            watch.wait_for(lambda text: "slots finished" in text)
            watch.press(CTRL_C)
            assert watch.end(60) == 130, watch.text
    finally:
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors


def wait_for_study(folder: Folder) -> None:
    deadline = time.monotonic() + 120
    while folder.call("status").returncode:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_says_how_to_continue_the_first_time_and_the_second(
    tmp_path: Path, presses: int
) -> None:
    folder = Folder(tmp_path, PHOTOS, *LONG)
    with Terminal(folder, "run") as run:
        run.wait_for(AMID.search)
        run.press(CTRL_C)
        run.wait_for(lambda text: "can be continued after both" in text)
        if presses == 2:
            run.press(CTRL_C)
        code = run.end(150)
        if presses == 1 or code > 0:
            assert code == 128 + signal.SIGINT
            assert "stopped; continue with: deepfake-study run" in run.text.replace("\r\n", "")
        else:  # the second came when the workers had ended: it ended the rest
            assert code == -signal.SIGINT
    again = folder.run("run")
    assert again.returncode == 0, again.stderr
    assert folder.json("status")["slots"]["complete"] == 3
