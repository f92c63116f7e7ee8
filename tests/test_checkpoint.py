import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepfake.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint

N = 4096


def state_of(epoch):
    """A state in which every value says which epoch it is of."""
    return {
        "model": {"weight": torch.full((N,), float(epoch)), "steps": torch.tensor(epoch)},
        "history": [{"epoch": e, "val_loss": 1 / (e + 1)} for e in range(epoch + 1)],
        "best_state": None,
    }


def epoch_of(state):
    """The epoch a state is of; fails if the state is torn between two."""
    epoch = len(state["history"]) - 1
    assert state["history"] == state_of(epoch)["history"]
    assert torch.equal(state["model"]["weight"], torch.full((N,), float(epoch)))
    assert state["model"]["steps"].item() == epoch
    return epoch


def flip_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study" / "slot_007.pt"


def test_a_state_comes_back_bit_for_bit(path):
    state = {
        "strided": torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        ),
        "types": [1, 2.5, float("inf"), True, None, "text", {"nested": (1, 2)}],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["strided"], state["strided"])
    assert loaded["strided"].stride() == state["strided"].stride()
    assert loaded["types"] == state["types"]
    assert torch.equal(loaded["half"], state["half"])


def test_no_checkpoint_is_none(path):
    assert load_checkpoint(path) is None


def test_the_last_of_several_is_loaded(path):
    for epoch in range(5):
        save_checkpoint(path, state_of(epoch))
    assert epoch_of(load_checkpoint(path)) == 4


def test_a_flipped_byte_anywhere_goes_back_to_the_one_before_with_a_warning(path, caplog):
    size = 0
    for place in range(9):
        for epoch in (3, 4):
            save_checkpoint(path, state_of(epoch))
        size = path.stat().st_size
        flip_byte(path, min(size * place // 8, size - 1))
        caplog.clear()
        assert epoch_of(load_checkpoint(path)) == 3
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"{path} is damaged" in caplog.text
    assert size > 4 * N  # the weights were really among what was flipped


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 5000])
def test_a_cut_file_goes_back_to_the_one_before(path, length):
    save_checkpoint(path, state_of(0))
    save_checkpoint(path, state_of(1))
    path.write_bytes(path.read_bytes()[:length])
    assert epoch_of(load_checkpoint(path)) == 0


def test_two_damaged_ones_are_none(path):
    save_checkpoint(path, state_of(0))
    save_checkpoint(path, state_of(1))
    for kept in checkpoints(path):
        flip_byte(kept, 2000)
    assert load_checkpoint(path) is None


def checkpoints(path):
    """The two generations on disk; with an all-zero tensor of N floats each is large."""
    found = [file for file in path.parent.iterdir() if file.stat().st_size > 4 * N]
    assert len(found) == 2
    return found


def test_a_damaged_one_is_replaced_by_the_next_save(path):
    save_checkpoint(path, state_of(0))
    save_checkpoint(path, state_of(1))
    flip_byte(path, 2000)
    save_checkpoint(path, state_of(1))
    assert epoch_of(load_checkpoint(path)) == 1


class Crash(BaseException):
    """The end of the process, as far as the code under test can tell."""


def crash_before_step(monkeypatch, number):
    """Every step that changes the folder counts; the one of that number never happens."""
    steps = iter(range(10**6))

    def counted(real):
        def step(*args, **kwargs):
            if next(steps) == number:
                raise Crash
            return real(*args, **kwargs)

        return step

    def half_saved(state, file):
        if next(steps) == number:
            file.write(b"PK\x03\x04" + bytes(1000))  # begun, not finished
            raise Crash
        return torch_save(state, file)

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", half_saved)
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    for name in ("open", "replace", "rename", "unlink", "write_text", "write_bytes", "mkdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return lambda: next(steps) > number


@pytest.mark.parametrize("saved_before", [0, 1, 2, 3])
def test_a_crash_at_any_step_of_saving_leaves_the_new_one_or_the_one_before(
    path, monkeypatch, saved_before
):
    for epoch in range(saved_before):
        save_checkpoint(path, state_of(epoch))
    whole = {file.name: file.read_bytes() for file in path.parent.glob("*")}
    seen = []
    for number in range(100):
        for file in path.parent.glob("*"):
            file.unlink()
        for name, content in whole.items():
            (path.parent / name).write_bytes(content)
        with monkeypatch.context() as patch:
            reached = crash_before_step(patch, number)
            try:
                save_checkpoint(path, state_of(saved_before))
            except Crash:
                crashed = True
            else:
                crashed = False
                assert not reached()
        loaded = load_checkpoint(path)
        seen.append(-1 if loaded is None else epoch_of(loaded))
        # and after the crash saving works again
        save_checkpoint(path, state_of(saved_before))
        assert epoch_of(load_checkpoint(path)) == saved_before
        if not crashed:
            break
    assert len(seen) > 4  # open, save, fsync, rename at least
    assert seen[-1] == saved_before
    assert set(seen) == {saved_before - 1, saved_before}  # -1: there was none before


class Opens:
    """Unpickling it would create a file: code run by a checkpoint."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_would_run_code_is_refused_and_the_one_before_taken(
    path, tmp_path, caplog
):
    # its digest is right: only weights_only stands between the file and the code
    trap = tmp_path / "code_ran"
    save_checkpoint(path, state_of(0))
    save_checkpoint(path, {"model": Opens(trap)})
    assert epoch_of(load_checkpoint(path)) == 0
    assert not trap.exists()
    assert f"{path} is damaged" in caplog.text


def test_removing_leaves_nothing_and_no_checkpoint_is_no_error(path):
    remove_checkpoint(path)
    for epoch in range(3):
        save_checkpoint(path, state_of(epoch))
    neighbour = path.with_name("slot_008.pt")
    save_checkpoint(neighbour, state_of(0))
    with pytest.MonkeyPatch.context() as patch:
        crash_before_step(patch, 3)  # mkdir, open, save: what a crash leaves goes too
        with pytest.raises(Crash):
            save_checkpoint(path, state_of(3))
    assert len(list(path.parent.iterdir())) > 3
    remove_checkpoint(path)
    assert load_checkpoint(path) is None
    assert not list(path.parent.glob("slot_007*"))
    assert epoch_of(load_checkpoint(neighbour)) == 0


SAVE_FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import epoch_of, state_of
from deepfake.checkpoint import load_checkpoint, save_checkpoint
path = Path(sys.argv[1])
state = load_checkpoint(path)
first = 0 if state is None else epoch_of(state) + 1
print(first, flush=True)
for epoch in range(first, 10**6):
    save_checkpoint(path, state_of(epoch))
    print(epoch, flush=True)
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_saving_loses_one_epoch_at_most(path):
    rng = random.Random(0)
    for _ in range(4):
        worker = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = int(worker.stdout.readline())  # imports are over, saving begins
        time.sleep(rng.uniform(0.02, 0.4))
        worker.send_signal(signal.SIGKILL)
        said = worker.communicate()[0].split()
        assert worker.returncode == -signal.SIGKILL
        last = int(said[-1]) if said else first - 1
        loaded = load_checkpoint(path)
        on_disk = -1 if loaded is None else epoch_of(loaded)
        assert on_disk in (last, last + 1)
    assert on_disk > 4  # it was killed while it worked, not while it began
