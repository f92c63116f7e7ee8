"""Journals on disk: what training said is there, whatever died."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepfake.config import TrainConfig
from deepfake.training.loop import FitResult
from study.tracking.spool import Journal, Spool, SpoolError, run_name
from tests.support.forked import Process
from tests.support.recorded import LABELS, WEIGHTS, result, start, stats, train

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def kinds(journal: Journal) -> list[str]:
    return [entry.kind for entry in journal.entries()]


def test_an_attempt_is_kept_in_order_with_its_times_and_files(spool: Spool) -> None:
    before_ms = int(time.time() * 1000)
    train(spool.run(7, 1), epochs=2)
    [journal] = spool.journals()
    assert (journal.slot, journal.attempt, journal.path.name) == (7, 1, "slot_007.a1.jsonl")
    assert kinds(journal) == [
        *("start", "file", "epoch", "epoch", "metrics"),
        *("file", "file", "file", "file", "tags", "end"),
    ]
    entries = journal.entries()
    times = [entry.at_ms for entry in entries]
    assert times == sorted(times)
    assert before_ms <= times[0] <= times[-1] <= time.time() * 1000
    assert entries[0].content["params"] == {"variant": "cnn", "lr": "0.001"}
    assert entries[0].content["tags"]["attempt"] == "1"
    assert [e.content["metrics"]["val_loss"] for e in entries[2:4]] == [0.6, 0.5]
    assert entries[4].content["metrics"]["best_val_accuracy"] == 0.5
    assert entries[-1].content == {"state": "complete", "reason": ""}
    kept = load_file(journal.file("weights/best.safetensors"))
    assert torch.equal(kept["0.weight"], WEIGHTS["0.weight"])
    assert json.loads(journal.file("val/confusion_matrix.json").read_text()) == [[1, 1], [1, 1]]
    for picture in ("val/confusion_matrix.png", "learning_curves.png"):
        assert journal.file(picture).read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_is_no_number_is_kept_as_such(spool: Spool) -> None:
    spool.run(0, 0).log_epoch(stats(0, math.nan))
    [entry] = spool.journals()[0].entries()
    assert math.isnan(entry.content["metrics"]["val_loss"])


def test_a_training_whose_first_epoch_diverged_leaves_no_weights(spool: Spool) -> None:
    spool.run(0, 0).log_result(FitResult([], None, None, None, "diverged"), LABELS)
    assert spool.pending() == 0


def test_a_torn_last_line_is_not_there_yet(spool: Spool) -> None:
    run = spool.run(0, 0)
    run.set_tags({"a": "1"})
    with run.journal.path.open("ab") as file:
        file.write(b'{"kind": "tags", "at_ms"')
    assert (kinds(run.journal), spool.pending()) == (["tags"], 1)
    again = spool.run(0, 0)  # what a full disk left is cut off, not written on
    again.set_tags({"b": "2"})
    assert [entry.content for entry in run.journal.entries()] == [
        {"tags": {"a": "1"}},
        {"tags": {"b": "2"}},
    ]


def test_a_line_that_is_damaged_costs_no_other(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    run = spool.run(0, 0)
    run.set_tags({"a": "1"})
    with run.journal.path.open("ab") as file:
        file.write(b"\0\0\0\0\n[]\n")
    spool.run(0, 0).set_tags({"b": "2"})
    assert kinds(run.journal) == ["tags", "tags"]
    assert caplog.text.count("a line that can't be read is left out") == 2


def test_journals_come_by_slot_and_attempt(spool: Spool) -> None:
    for slot, attempt in ((10, 0), (2, 10), (2, 9), (1000, 0)):
        spool.run(slot, attempt)
    (spool.folder / "notes.txt").write_text("none of ours")
    order = [(journal.slot, journal.attempt) for journal in spool.journals()]
    assert order == [(2, 9), (2, 10), (10, 0), (1000, 0)]


def test_pending_counts_what_was_not_delivered(spool: Spool) -> None:
    run = spool.run(0, 0)
    for number in range(3):
        run.set_tags({"n": str(number)})
    spool.run(1, 0).set_tags({"n": "0"})
    assert (spool.pending(), spool.pending(0), spool.pending(1), spool.pending(2)) == (4, 3, 1, 0)
    run.journal.note_delivered(run.journal.entries()[1].end)
    assert (spool.pending(), spool.pending(0)) == (2, 1)
    [left] = run.journal.entries(run.journal.delivered)
    assert left.content == {"tags": {"n": "2"}}


def test_an_offset_that_cannot_be_read_means_from_the_start(spool: Spool) -> None:
    run = spool.run(0, 0)
    run.set_tags({"a": "1"})
    run.journal.path.with_suffix(".offset").write_text("")
    assert spool.pending() == 1


def train_and_die(folder: Path) -> None:
    train(Spool(folder).run(0, 0), epochs=2)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_was_said_before_a_sigkill_is_there(tmp_path: Path) -> None:
    assert Process(None, train_and_die, tmp_path).wait() == -signal.SIGKILL
    [journal] = Spool(tmp_path).journals()
    assert kinds(journal)[-1] == "end"
    assert load_file(journal.file("weights/best.safetensors")).keys() == WEIGHTS.keys()


def test_an_attempt_whose_journal_was_taken_away_writes_nothing_more(spool: Spool) -> None:
    run = spool.run(0, 0)
    start(run)
    run.journal.remove()
    run.log_result(result(0.6), LABELS)
    run.fail("ValueError: no", "Traceback")
    assert list(spool.folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SpoolError, match=r"taken/slot_000\.a0\.jsonl: .*; .*checkpoints_dir") as e:
        Spool(tmp_path / "taken").run(0, 0)
    assert "\n" not in str(e.value)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_what_was_kept_before_stays_whole(spool: Spool) -> None:
    run = spool.run(0, 0)
    run.set_tags({"a": "1"})
    with no_file_above(run.journal.size + 20), pytest.raises(SpoolError, match="make room there"):
        run.set_tags({"b": "2"})
    assert [entry.content for entry in run.journal.entries()] == [{"tags": {"a": "1"}}]
    run.set_tags({"c": "3"})
    assert [e.content["tags"] for e in run.journal.entries()] == [{"a": "1"}, {"c": "3"}]


def test_weights_that_do_not_fit_are_no_entry(spool: Spool) -> None:
    run = spool.run(0, 0)
    big = result(0.6)
    big.best_state["0.weight"] = torch.zeros(100_000)
    with no_file_above(100_000), pytest.raises(SpoolError, match=r"best\.safetensors"):
        run.log_result(big, LABELS)
    names = [e.content["name"] for e in run.journal.entries() if e.kind == "file"]
    assert "learning_curves.png" in names
    assert "weights/best.safetensors" not in names


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "link/secret"])
def test_a_file_outside_the_journals_folder_is_refused(spool: Spool, name: str) -> None:
    journal = spool.run(0, 0).journal
    journal.files_dir.mkdir()
    (journal.files_dir / "link").symlink_to(spool.folder.parent)
    with pytest.raises(SpoolError, match="leaves its folder"):
        journal.file(name)


def test_an_ended_study_leaves_nothing_but_what_was_not_delivered(spool: Spool) -> None:
    train(spool.run(0, 0), epochs=1)
    with spool.lock("slot_000"):
        pass
    spool.tidy()
    assert spool.pending() > 0
    spool.journals()[0].note_delivered(10)
    spool.journals()[0].remove()
    (spool.folder / "slot_001.a0.files").mkdir()  # of an attempt that was fenced off
    spool.tidy()
    assert not spool.folder.exists()


def test_a_locked_slot_is_not_waited_for_long(spool: Spool) -> None:
    with spool.lock("slot_000"), pytest.raises(TimeoutError), spool.lock("slot_000", 0.1):
        pass


def test_a_run_is_named_by_its_slot_or_its_baseline() -> None:
    train_config = TrainConfig(variant="cnn", lr=2e-4, weight_decay=0, dropout=0)
    assert run_name(7, None, train_config) == "007 cnn lr=2.0e-4"
    assert run_name(0, "mobilenet", train_config) == "baseline mobilenet"


@pytest.mark.slow
def test_the_spool_needs_no_mlflow() -> None:
    code = "import study.tracking.spool, sys; print('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
