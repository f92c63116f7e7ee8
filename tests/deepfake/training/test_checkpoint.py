import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepfake.errors import UserError
from deepfake.training.checkpoint import CheckpointError, Checkpoints, check_writable
from tests.support.forked import Process, wait_until

N = 4096  # weights: 16 KB, most of a file


def state_of(epoch, attempt=0):
    """A state in which every value says which epoch it is of."""
    return {
        "model": {"weight": torch.full((N,), float(epoch)), "steps": torch.tensor(epoch)},
        "history": [{"epoch": e, "val_loss": 1 / (e + 1)} for e in range(epoch + 1)],
        "best_state": None,
        "attempt": attempt,
    }


def epoch_of(state):
    """The epoch a state is of, -1 without one; fails if the state is torn between two."""
    if state is None:
        return -1
    epoch = len(state["history"]) - 1
    assert state["history"] == state_of(epoch)["history"]
    assert torch.equal(state["model"]["weight"], torch.full((N,), float(epoch)))
    assert state["model"]["steps"].item() == epoch
    return epoch


def save(files, *epochs):
    for epoch in epochs:
        files.save(epoch, state_of(epoch, files.attempt))


def written_by(folder):
    """Epoch and attempt of the state that a next attempt would continue from."""
    state = Checkpoints(folder, attempt=99).load()
    return epoch_of(state), state["attempt"]


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def flip_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Of one slot; not there yet."""
    return tmp_path / "study" / "slot_007"


def test_a_state_comes_back_bit_for_bit(folder):
    generator = torch.Generator().manual_seed(0)
    strided = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
    state = {
        "strided": strided,
        "types": [1, 2.5, float("inf"), True, None, "text", {"nested": (1, 2)}],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    Checkpoints(folder).save(0, state)
    loaded = Checkpoints(folder).load()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["strided"], strided)
    assert loaded["strided"].stride() == strided.stride()
    assert loaded["types"] == state["types"]
    assert torch.equal(loaded["half"], state["half"])
    assert loaded["half"].dtype == torch.bfloat16


def test_no_checkpoint_is_none(folder):
    assert Checkpoints(folder).load() is None
    folder.mkdir(parents=True)
    assert Checkpoints(folder).load() is None


def test_the_last_of_several_is_loaded_and_two_are_kept(folder):
    files = Checkpoints(folder)
    for epoch in range(5):
        save(files, epoch)
        assert epoch_of(files.load()) == epoch
        assert names(folder) == [f"e{e:04d}.a0.pt" for e in range(max(0, epoch - 1), epoch + 1)]
    assert files.damaged == []


def test_epochs_are_counted_not_spelled(folder):
    save(Checkpoints(folder), 9999, 10_000)  # by name e10000 comes before e9999
    assert written_by(folder) == (10_000, 0)
    save(Checkpoints(folder), 10_001)
    assert names(folder) == ["e10000.a0.pt", "e10001.a0.pt"]


# damage


def test_a_flipped_byte_anywhere_goes_back_to_the_one_before_and_is_said(folder, caplog):
    size = 0
    for place in range(9):
        save(Checkpoints(folder), 3, 4)
        newest = folder / "e0004.a0.pt"
        size = newest.stat().st_size
        flip_byte(newest, min(size * place // 8, size - 1))
        caplog.clear()
        files = Checkpoints(folder, attempt=1)
        assert epoch_of(files.load()) == 3
        assert files.damaged == ["e0004.a0.pt"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"{newest} is damaged" in caplog.text
    assert size > 4 * N  # the weights were really among what was flipped


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 5000])
def test_a_cut_file_goes_back_to_the_one_before(folder, length):
    save(Checkpoints(folder), 0, 1)
    newest = folder / "e0001.a0.pt"
    newest.write_bytes(newest.read_bytes()[:length])
    assert written_by(folder) == (0, 0)


def test_two_damaged_ones_are_none_and_both_are_said(folder):
    save(Checkpoints(folder), 0, 1)
    for file in folder.iterdir():
        flip_byte(file, 2000)
    files = Checkpoints(folder, attempt=1)
    assert files.load() is None
    assert files.damaged == ["e0001.a0.pt", "e0000.a0.pt"]


def test_a_damaged_one_is_set_aside_and_its_epoch_can_be_saved_again(folder):
    files = Checkpoints(folder)
    save(files, 0, 1)
    flip_byte(folder / "e0001.a0.pt", 2000)
    assert epoch_of(files.load()) == 0
    assert names(folder) == ["e0000.a0.pt", "e0001.a0.damaged"]
    save(files, 1)
    assert written_by(folder) == (1, 0)
    assert names(folder) == ["e0000.a0.pt", "e0001.a0.damaged", "e0001.a0.pt"]


def test_a_damaged_one_that_another_worker_sets_aside_first_is_no_error(folder, monkeypatch):
    save(Checkpoints(folder), 0, 1)
    flip_byte(folder / "e0001.a0.pt", 2000)
    replace = Path.replace

    def overtaken(path, target):
        replace(path, target)  # the other worker
        return replace(path, target)

    files = Checkpoints(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", overtaken)
        assert epoch_of(files.load()) == 0
    assert files.damaged == ["e0001.a0.pt"]
    assert names(folder) == ["e0000.a0.pt", "e0001.a0.damaged"]


class Opens:
    """Unpickling it would create a file: code run by a checkpoint."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_would_run_code_is_refused_and_the_one_before_taken(folder, tmp_path):
    # its digest is right: only weights_only stands between the file and the code
    trap = tmp_path / "code_ran"
    files = Checkpoints(folder)
    save(files, 0)
    files.save(1, {"model": Opens(trap)})
    assert epoch_of(files.load()) == 0
    assert files.damaged == ["e0001.a0.pt"]
    assert not trap.exists()


# attempts


def test_a_higher_epoch_wins_whatever_the_attempt(folder):
    save(Checkpoints(folder, attempt=1), 4)
    save(Checkpoints(folder, attempt=0), 5)
    assert written_by(folder) == (5, 0)
    save(Checkpoints(folder, attempt=2), 6)
    assert written_by(folder) == (6, 2)


def test_at_one_epoch_the_higher_attempt_wins_in_whatever_order_they_come(folder):
    for attempt in (9, 0, 10, 2):  # by name a9 comes after a10
        save(Checkpoints(folder, attempt), 4)
    assert written_by(folder) == (4, 10)
    assert names(folder) == ["e0004.a10.pt", "e0004.a9.pt"]


@pytest.mark.parametrize("late", range(6))
def test_what_an_attempt_that_was_given_up_writes_late_neither_replaces_nor_hides_a_newer_one(
    folder, late
):
    frozen, next_one = Checkpoints(folder, attempt=0), Checkpoints(folder, attempt=1)
    save(frozen, 2, 3)
    save(next_one, 4, 5)
    newest = (folder / "e0005.a1.pt").read_bytes()
    save(frozen, late)
    assert written_by(folder) == (5, 1)
    assert (folder / "e0005.a1.pt").read_bytes() == newest
    assert len(names(folder)) == 2
    save(next_one, 6)
    assert written_by(folder) == (6, 1)


def test_a_next_attempt_continues_from_the_one_before(folder):
    save(Checkpoints(folder, attempt=0), 0, 1)
    second = Checkpoints(folder, attempt=1)
    assert epoch_of(second.load()) == 1
    save(second, 2)
    assert names(folder) == ["e0001.a0.pt", "e0002.a1.pt"]


# a crash


class Crash(BaseException):
    """The end of the process, as far as the code under test can tell."""


def crash_before_step(monkeypatch, number):
    """Every step that changes the folder counts; from that number on none happens."""
    steps = iter(range(10**6))

    def counted(real):
        def step(*args, **kwargs):
            if next(steps) >= number:
                raise Crash
            return real(*args, **kwargs)

        return step

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    for name in ("open", "replace", "rename", "unlink", "write_text", "write_bytes", "mkdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return lambda: next(steps) > number


@pytest.mark.parametrize("saved_before", [0, 1, 2, 3])
def test_a_crash_at_any_step_of_saving_leaves_the_new_one_or_the_one_before(
    tmp_path, monkeypatch, saved_before
):
    seen, crashed, number = [], True, -1
    while crashed:
        number += 1
        files = Checkpoints(tmp_path / str(number))
        save(files, *range(saved_before))
        with monkeypatch.context() as patch:
            reached = crash_before_step(patch, number)
            try:
                save(files, saved_before)
            except Crash:
                crashed = True
            else:
                crashed = False
                assert not reached()
        seen.append(epoch_of(files.load()))
        # and after the crash saving works again
        save(files, saved_before)
        assert epoch_of(files.load()) == saved_before
        assert files.damaged == []
    assert len(seen) > 3  # open, fsync, rename at least
    assert seen[-1] == saved_before
    assert set(seen) == {saved_before - 1, saved_before}  # -1: there was none before


def save_forever(folder, attempt):
    files = Checkpoints(folder, attempt)
    first = epoch_of(files.load()) + 1
    print(first, flush=True)
    for epoch in range(first, 10**6):
        save(files, epoch)
        print(epoch, flush=True)


@pytest.mark.slow
def test_sigkill_in_the_middle_of_saving_leaves_whole_files_and_loses_one_epoch_at_most(folder):
    rng = random.Random(0)
    on_disk = -1
    for attempt in range(5):
        worker = Process(None, save_forever, folder, attempt)
        wait_until(worker.said, "saving begins")
        time.sleep(rng.uniform(0.02, 0.4))
        worker.kill()
        first, *said = worker.said().split()
        assert int(first) == on_disk + 1
        assert worker.returncode == -signal.SIGKILL
        last = int(said[-1]) if said else int(first) - 1
        files = Checkpoints(folder, attempt + 1)
        on_disk = epoch_of(files.load())
        assert on_disk in (last, last + 1)
        assert files.damaged == []
    assert on_disk > 4  # it was killed while it worked, not while it began


# what can't be written


SAVE_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import save
from deepfake.training.checkpoint import CheckpointError, Checkpoints
files = Checkpoints(Path(sys.argv[1]))
save(files, 0, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))  # half a file
try:
    save(files, 2)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoints_alone(folder):
    done = subprocess.run(
        [sys.executable, "-c", SAVE_WITHOUT_ROOM, folder, Path(__file__).parent],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"{folder}/e0002.a0.pt: the checkpoint can't be written: File too large; make room, or "
        "name another folder in study.checkpoints_dir\n"
    )
    assert done.stderr == ""
    assert names(folder) == ["e0000.a0.pt", "e0001.a0.pt"]  # nor what was begun
    files = Checkpoints(folder)
    assert epoch_of(files.load()) == 1
    assert files.damaged == []
    save(files, 2)  # there is room again
    assert written_by(folder) == (2, 0)


def test_a_folder_that_cannot_be_made_is_one_line(folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder of the study should be")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(folder))}.*Not a dir") as caught:
        save(Checkpoints(folder), 0)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


# the end


def test_removing_leaves_nothing_of_the_slot_and_all_of_its_neighbour(folder):
    files, neighbour = Checkpoints(folder), Checkpoints(folder.with_name("slot_008"))
    files.remove()  # there is nothing yet: no error
    save(neighbour, 0)
    save(files, 0, 1)
    flip_byte(folder / "e0001.a0.pt", 2000)
    files.load()
    with pytest.MonkeyPatch.context() as patch:
        crash_before_step(patch, 3)  # mkdir, open, fsync: what a crash leaves goes too
        with pytest.raises(Crash):
            save(files, 1)
    assert names(folder) == [".e0001.a0.pt.tmp", "e0000.a0.pt", "e0001.a0.damaged"]
    files.remove()
    assert not folder.exists()
    assert files.load() is None
    assert epoch_of(neighbour.load()) == 0


def test_a_file_that_cannot_be_read_costs_an_epoch_and_no_attempt(folder):
    Checkpoints(folder).save(0, state_of(0))
    (folder / "e0001.a0.pt").mkdir()  # IsADirectoryError, as a share in trouble has its own
    resumed = Checkpoints(folder)
    assert epoch_of(resumed.load()) == 0
    assert resumed.damaged == ["e0001.a0.pt"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"study\.checkpoints_dir: .*file/below can't be"):
        check_writable(tmp_path / "file" / "below")
