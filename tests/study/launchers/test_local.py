"""Workers on this machine: which GPU each has, who replaces the dead, how they end."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from deepfake.errors import UserError
from study.launchers import local as launch, monitor as lookout_module, run
from study.launchers.base import CHOSEN, MAX_RESTARTS, Placement, WorkerCommand, is_death
from study.launchers.local import Local, LocalWorkers, assign_gpus, visible_gpus
from study.launchers.monitor import Lookout
from study.launchers.run import watch
from study.signals import StopSignal
from study.storage.retry import StorageAway
from study.worker.setup import worker_name
from tests.support.exact import assert_exact, holders, wait_for
from tests.support.runs import Folder


def local(**options: Any) -> Local:
    return Local(Placement(**options))


# which GPU


def test_without_a_setting_every_gpu_is_handed_out_by_index() -> None:
    assert visible_gpus(None, 3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("setting", "count", "handed_out"),
    [
        ("2,5", 2, ["2", "5"]),
        ("GPU-8f1c, GPU-02aa", 2, ["GPU-8f1c", "GPU-02aa"]),
        ("1,99,0", 1, ["1"]),  # CUDA stops at what it does not find
        ("", 0, []),
    ],
)
def test_the_users_own_list_is_what_is_handed_out(
    setting: str, count: int, handed_out: list[str]
) -> None:
    assert visible_gpus(setting, count) == handed_out


def test_one_worker_a_gpu_is_the_default() -> None:
    assert assign_gpus(["0", "1", "2"], None, 1) == ["0", "1", "2"]


def test_packed_workers_are_spread_evenly() -> None:
    assert assign_gpus(["2", "5"], None, 2) == ["2", "5", "2", "5"]
    assert assign_gpus(["2", "5"], 3, 2) == ["2", "5", "2"]


def test_without_a_gpu_there_is_one_worker_or_as_many_as_were_asked_for() -> None:
    assert assign_gpus([], None, 1) == [None]
    assert assign_gpus([], 3, 1) == [None] * 3


def test_more_workers_than_places_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match="2 GPUs with 1 workers each take 2; add --workers-per-"):
        assign_gpus(["0", "1"], 5, 1)
    assert len(assign_gpus(["0", "1"], 5, 3)) == 5  # what it said to add


def test_counting_the_gpus_does_not_initialise_cuda() -> None:
    local().gpus({})
    assert not torch.cuda.is_initialized()


def test_a_device_that_is_named_is_every_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)  # no machine here has any
    env = {"CUDA_VISIBLE_DEVICES": "4,GPU-8f1c,6"}
    assert local().gpus(env) == ["4", "GPU-8f1c", "6"]
    assert local(device="cpu").gpus(env) == [None]
    assert local(device="cpu", workers=2).gpus(env) == [None, None]
    assert local(device="cuda:1").gpus(env) == ["GPU-8f1c"]
    assert local(device="cuda").gpus(env) == ["4"]
    packed = local(device="cuda:2", workers_per_gpu=2)
    assert packed.gpus(env) == ["6", "6"]
    with pytest.raises(UserError, match=r"--workers 2: 1 GPUs .* add --workers-per-gpu 2"):
        local(device="cuda:1", workers=2).gpus(env)
    with pytest.raises(UserError, match="--device cuda:3: this machine has 3 CUDA devices"):
        local(device="cuda:3").gpus(env)


# processes


class Scripted(WorkerCommand):
    """Starts a Python script where a worker would be: what is around it is real."""

    def start(self, *more: str, **options: Any) -> subprocess.Popen[bytes]:
        (script,) = self.arguments
        return subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=self.cwd,
            env=options["env"],
            stdout=options["output"],
            stderr=options["output"],
            start_new_session=options["own_session"],
        )


def started(
    script: str,
    tmp_path: Path,
    gpus: Sequence[str | None] = (None,),
    ended: list[tuple[str, str | None]] | None = None,
    grace_s: float = 25.0,
) -> LocalWorkers:
    command = Scripted((script,), str(tmp_path), grace_s)
    ends = [] if ended is None else ended
    logs = tmp_path / "logs"
    return LocalWorkers(command, gpus, dict(os.environ), logs, lambda *end: ends.append(end))


def until_ended(workers: LocalWorkers) -> None:
    wait_for(lambda: not workers.poll(), 60)


def test_each_worker_sees_its_own_gpu_and_writes_its_own_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    with caplog.at_level(logging.INFO):
        workers = started(script, tmp_path, ["GPU-a", "GPU-b", "GPU-a"])
    assert "starting 3 workers" in caplog.messages
    until_ended(workers)
    logs = [path.read_text().strip() for path in (tmp_path / "logs").iterdir()]
    assert sorted(logs) == ["GPU-a", "GPU-a", "GPU-b"]
    assert workers.worst == 0


def test_a_worker_that_dies_is_replaced_on_its_gpu_and_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ended: list[tuple[str, str | None]] = []
    with caplog.at_level(logging.WARNING):
        workers = started(script, tmp_path, ["7"], ended)
        first = workers.workers[0]
        until_ended(workers)
    assert len(ended) == 1 + MAX_RESTARTS
    assert ended[0] == (worker_name(first.process.pid), None)
    assert workers.worst == 1
    assert "a worker died (exit code -9)" in caplog.text


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_worker_that_chose_its_end_is_not_replaced(code: int, tmp_path: Path) -> None:
    ended: list[tuple[str, str | None]] = []
    workers = started(f"print('error: said'); raise SystemExit({code})", tmp_path, ended=ended)
    until_ended(workers)
    assert workers.worst == code
    assert [why for _, why in ended] == (
        [f"its worker ended with exit code {code}"] if code else []
    )
    assert workers.last_words() == "error: said"


def test_what_counts_as_a_death() -> None:
    assert not any(map(is_death, CHOSEN))
    assert is_death(-signal.SIGKILL)
    assert is_death(70)  # the watchdog of a trial that hung
    assert is_death(1)
    assert not is_death(-signal.SIGTERM)  # told to end before it could listen


def test_a_worker_that_does_not_end_within_its_grace_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SLACK_S", 0.2)
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(100)"
    )
    workers = started(script, tmp_path, grace_s=0.3)
    log = workers.workers[0].log_path
    wait_for(lambda: log.read_text() == "deaf\n")
    workers.end(signal.SIGTERM)
    until_ended(workers)
    assert workers.worst == 0
    assert workers.restarts == 0


# the watch


class Counted:
    """Workers that run for so many polls."""

    worst = 0

    def __init__(self, polls: int) -> None:
        self.polls = polls
        self.told: list[int] = []
        self.dropped = 0

    def poll(self) -> bool:
        self.polls -= 1
        return self.polls >= 0

    def end(self, number: int) -> None:
        self.told.append(number)

    def drop_waiting(self) -> None:
        self.dropped += 1

    def last_words(self) -> str:
        return ""


class FakeSlots:
    """The database as a launcher sees it, away for a while."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.freed: list[str] = []

    def impatient(self) -> Any:
        return nullcontext()

    def free_worker(self, worker: str, reason: str | None) -> None:
        self._ask()
        self.freed.append(worker)

    def records(self) -> list[Any]:
        self._ask()
        return []

    def _ask(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise StorageAway("study.storage: away")


def test_a_database_that_is_away_costs_a_look_and_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout_module, "AWAY_S", 0.0)
    slots, shown = FakeSlots(away=2), []
    lookout = Lookout(slots, shown.append)  # type: ignore[arg-type]
    lookout.free("host:12", None)
    lookout.look()
    lookout.look()
    assert not lookout.finished
    assert (slots.freed, shown) == ([], [])
    lookout.look()
    assert lookout.finished
    assert slots.freed == ["host:12"]
    lookout.look()
    assert slots.freed == ["host:12"]  # once


class HungSlots(FakeSlots):
    """Of a database that takes calls and answers none."""

    def _ask(self) -> None:
        time.sleep(600)


def test_a_signal_is_passed_on_while_the_database_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout_module, "LOOK_S", 0.0)
    monkeypatch.setattr(lookout_module, "AWAY_S", 0.1)
    stop = StopSignal(second_exits=False)
    workers = Counted(polls=3)
    stop._on_signal(signal.SIGINT, None)
    watch(workers, stop, Lookout(HungSlots(away=0), lambda records: None))  # type: ignore[arg-type]
    assert workers.told == [signal.SIGINT]


def test_each_signal_is_passed_on_once() -> None:
    stop = StopSignal(second_exits=False)
    stop._on_signal(signal.SIGINT, None)
    workers = Counted(polls=3)
    watch(workers, stop, Lookout(FakeSlots(away=99), lambda records: None))  # type: ignore[arg-type]
    assert workers.told == [signal.SIGINT]


def test_a_parent_that_went_away_ends_the_workers() -> None:
    stop = StopSignal(second_exits=False)
    stop.number = signal.SIGTERM  # as follow_parent has it
    workers = Counted(polls=3)
    watch(workers, stop, Lookout(FakeSlots(away=99), lambda records: None))  # type: ignore[arg-type]
    assert workers.told == [signal.SIGTERM]


def test_a_signal_behind_a_time_that_is_over_is_passed_on_as_the_second() -> None:
    stop = StopSignal(second_exits=False)
    stop.timed_out, stop.number = True, signal.SIGTERM  # as end_after has it

    class Interrupted(Counted):
        def poll(self) -> bool:
            stop.count = int(self.polls <= 2)  # Ctrl-C, once
            return super().poll()

    workers = Interrupted(polls=4)
    watch(workers, stop, Lookout(FakeSlots(away=99), lambda records: None))  # type: ignore[arg-type]
    assert workers.told == [signal.SIGTERM, signal.SIGTERM]


def test_workers_that_linger_behind_the_last_slot_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "LINGER_S", -1.0)
    workers = Counted(polls=2)
    stop = StopSignal(second_exits=False)
    lookout = Lookout(FakeSlots(away=0), lambda records: None)  # type: ignore[arg-type]
    lookout.look()  # all are finished
    watch(workers, stop, lookout)
    assert workers.dropped >= 1
    assert workers.told[0] == signal.SIGTERM


@pytest.mark.slow
def test_a_run_ends_with_its_parent_and_frees_its_slots(tmp_path: Path) -> None:
    tiny = ("study.n_trials=3", "train.max_epochs=50", "study.prune_patience=9")
    folder = Folder(tmp_path, 24, *tiny)
    assert folder.call("prepare").returncode == 0
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *folder.command("run", "--workers", "2")],
        cwd=folder.path,
        env=folder.env,
        stderr=subprocess.DEVNULL,
    )
    pids = wait_for(lambda: holders(folder)).values()
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert holders(folder) == {}


@pytest.mark.slow
def test_nohup_lets_a_run_outlive_its_parent(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=6")
    assert folder.call("prepare").returncode == 0
    command = ["nohup", *folder.command("run")]
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(100)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=folder.path,
        env=folder.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: holders(folder))  # the run has seen its parent
    parent.kill()
    parent.wait()
    wait_for(lambda: "run" not in commands_in(folder))
    assert_exact(folder, 3)


def commands_in(folder: Folder) -> set[str]:
    """Which of deepfake-study's commands run in the folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if (entry / "cwd").readlink() == folder.path:
                found |= set((entry / "cmdline").read_text().split("\0")[3:4])
    return found


def test_workers_of_a_finished_study_that_was_given_more_slots_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "LINGER_S", 0.01)
    lookout = Lookout(FakeSlots(away=99), lambda records: None)  # type: ignore[arg-type]
    lookout.finished = True

    class Extended(Counted):
        def poll(self) -> bool:
            lookout.finished = self.polls == 3  # at the first poll alone
            time.sleep(0.02)
            return super().poll()

    workers = Extended(polls=3)
    watch(workers, StopSignal(second_exits=False), lookout)
    assert (workers.dropped, workers.told) == (1, [])
