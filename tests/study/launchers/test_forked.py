"""Workers forked from a server: this process's own children, whatever becomes of the server."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from study.launchers import forked
from study.launchers.base import Placement, WorkerCommand
from study.launchers.forked import ForkedWorker, ForkServer, fork_server
from study.launchers.local import Local
from tests.support.exact import wait_for
from tests.support.runs import ENV, REPOSITORY, Folder

WAITING = "import time; print('here', flush=True); time.sleep(600)"


class Scripted(WorkerCommand):
    """Its worker is a Python script."""

    def start(self, *more: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", f"print('fresh'); {self.arguments[0]}"],
            env=options["env"],
            stdout=options["output"],
        )


class Started:
    """A server of scripts, and what its workers write."""

    def __init__(self, script: str, folder: Path) -> None:
        env = {**ENV, "PYTHONPATH": str(REPOSITORY)}
        self.server = ForkServer(Scripted((script,), str(folder), 25.0), env)
        self.log = folder / "worker.log"
        self.env = env

    def worker(self, **env: str) -> ForkedWorker:
        with self.log.open("ab") as file:
            return self.server.start(env={**self.env, **env}, output=file)

    def running(self) -> ForkedWorker:
        """A worker that has begun."""
        worker = self.worker()
        wait_for(lambda: worker.pid or told(worker), 60)
        wait_for(lambda: "here" in self.log.read_text(), 60)
        return worker


def told(worker: ForkedWorker) -> None:
    """Have it ask the server whether it is started."""
    with suppress(subprocess.TimeoutExpired):
        worker.wait(0.01)


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "_SERVER", "tests.support.light_server")


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Started]:
    started = Started(WAITING, tmp_path)
    yield started
    started.server.close()


def test_a_worker_is_this_processs_child_in_a_session_of_its_own(tmp_path: Path) -> None:
    script = (
        "import os, sys; print(os.getppid(), os.getsid(0) == os.getpid(), os.getcwd(),"
        " os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(3)"
    )
    started = Started(script, tmp_path)
    worker = started.worker(CUDA_VISIBLE_DEVICES="GPU-a")
    assert worker.wait(60) == 3
    assert started.log.read_text().split() == [str(os.getpid()), "True", str(tmp_path), "GPU-a"]
    started.server.close()


def test_a_worker_that_is_killed_says_so(waiting: Started) -> None:
    worker = waiting.running()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.01)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(60) == -signal.SIGKILL


def test_workers_outlive_their_server_and_the_next_is_a_fresh_interpreter(
    waiting: Started,
) -> None:
    worker = waiting.running()
    waiting.server.kill()
    waiting.server._process.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    second = waiting.worker()
    wait_for(lambda: second.pid or told(second), 60)
    wait_for(lambda: "fresh" in waiting.log.read_text(), 60)
    for process in (worker, second):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_a_server_that_dies_amid_its_imports_costs_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_SERVER", "no.such.module")
    started = Started("raise SystemExit(3)", tmp_path)
    assert started.worker().wait(60) == 3
    assert started.log.read_text() == "fresh\n"
    started.server.close()


def mute_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never answers."""
    (folder / "mute.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(forked, "_SERVER", "mute")


def test_a_server_that_hangs_is_given_up_and_costs_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mute_server(tmp_path, monkeypatch)
    monkeypatch.setattr(forked, "START_S", 0.5)
    started = Started("raise SystemExit(3)", tmp_path)
    workers = [started.worker(), started.worker()]
    assert [worker.wait(60) for worker in workers] == [3, 3]
    assert started.log.read_text() == "fresh\nfresh\n"
    said = (
        "the process that workers are forked from did not answer within 0.5 s: each imports anew"
    )
    assert caplog.messages == [said]
    started.server.close()


def test_what_a_server_said_before_it_was_killed_is_heard(
    waiting: Started, caplog: pytest.LogCaptureFixture
) -> None:
    first = waiting.worker()
    wait_for(lambda: "here" in waiting.log.read_text(), 60)  # its reply waits to be read
    server = waiting.server._process
    server.send_signal(signal.SIGSTOP)
    os.waitpid(server.pid, os.WUNTRACED)  # it is stopped
    second = waiting.worker()  # and this request is never read
    server.kill()
    server.wait()
    for worker in (first, second):
        wait_for(lambda worker=worker: worker.pid or told(worker), 60)  # type: ignore[misc]
    command_lines = [Path(f"/proc/{worker.pid}/cmdline").read_text() for worker in (first, second)]
    assert ["light_server" in line for line in command_lines] == [True, False]
    assert caplog.messages == ["the process that workers are forked from ended: each imports anew"]
    for worker in (first, second):
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == -signal.SIGTERM


def test_a_worker_that_somebody_else_waited_for_has_ended(waiting: Started) -> None:
    worker = waiting.running()
    worker.send_signal(signal.SIGTERM)
    os.waitpid(worker.pid, 0)
    assert worker.wait(60) == 0
    assert worker.wait(60) == 0


def test_without_pidfds_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Scripted((WAITING,), str(tmp_path), 25.0)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.delattr(os, "pidfd_open")
        assert fork_server(command, ENV) is None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "no-python"))
        assert fork_server(command, ENV) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert not is_subreaper()


def is_subreaper() -> bool:
    """Whether this process is given its children's orphans."""
    get_subreaper, answer = 37, ctypes.c_int()
    assert ctypes.CDLL(None).prctl(get_subreaper, ctypes.byref(answer), 0, 0, 0) == 0
    return bool(answer.value)


def test_a_signal_that_comes_before_the_server_is_ready_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute_server(tmp_path, monkeypatch)
    started = Started(WAITING, tmp_path)
    worker = started.worker()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.1)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == -signal.SIGINT
    assert started.log.read_text() == ""
    started.server.close()


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def started_at(pid: int) -> int:
    """In the kernel's ticks: a number of a process is taken again once all were given."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_server_that_was_warmed_up_ends_with_its_block_whatever_ends_that(
    tmp_path: Path,
) -> None:
    local = Local(Placement())
    env = {**ENV, "PYTHONPATH": str(REPOSITORY)}
    before = set(children(os.getpid()))
    command = Scripted((WAITING,), str(tmp_path), 25.0)
    with suppress(KeyError), local.warm_up(command, lambda: env):
        assert len(set(children(os.getpid())) - before) == 1
        raise KeyError
    assert set(children(os.getpid())) == before


@pytest.mark.slow
def test_a_study_that_is_refused_leaves_no_process(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0)
    done = folder.run_afresh("run")
    assert done.returncode == 2
    assert "Train_poly.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cwd") if cwd_of(entry) == tmp_path]


def cwd_of(entry: Path) -> Path | None:
    try:
        return entry.readlink()
    except OSError:
        return None


@pytest.mark.slow
def test_a_study_whose_server_dies_is_finished_by_its_workers(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=4")
    run = folder.start("run", "--workers", "2")
    checkpoints = folder.path / "mlruns/checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/*/slot_*/*.pt")))
    server = min(children(run.pid), key=started_at)  # before the workers that it forked
    os.kill(server, signal.SIGKILL)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "a worker died" not in errors
    assert folder.json("status")["slots"]["complete"] == 3
