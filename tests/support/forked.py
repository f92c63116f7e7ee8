"""Commands as processes of their own that begin in a moment, also sixteen in the same second.

They are forked from one process that has imported everything: a worker's imports alone take four
to eight seconds of a core. What runs in them is the command's own main().
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.runs import Folder

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 300  # a machine may be shared
_ENVIRONMENT = dict(os.environ)  # as it is before a test changes it for itself


@cache
def forks() -> ForkServerContext:
    """Of the one process: for pools and processes that call functions of modules."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["study.cli.app", "study.worker.worker", "study.evaluation.evaluator"]
    )
    with pytest.MonkeyPatch.context() as patch:
        for key in os.environ.keys() - _ENVIRONMENT.keys():
            patch.delenv(key)
        for key, value in _ENVIRONMENT.items():
            patch.setenv(key, value)
        patch.chdir(REPOSITORY)
        forkserver.ensure_running()
    return context


class Process:
    """A function's call in a process of its own, with as much of Popen as tests ask for."""

    def __init__(self, log: Path | None, function: Callable[..., Any], *arguments: Any) -> None:
        """log: receives all that it writes, behind what is there; without it see communicate."""
        self._said = [log.open("a+b")] if log else [_unnamed(), _unnamed()]
        streams = [DupFd(file.fileno()) for file in self._said]
        self._process = forks().Process(target=_begin, args=(streams, function, *arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, -9 behind SIGKILL."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code."""
        self._process.join(timeout_s)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"still ran after {timeout_s:.0f} s:\n{self.said()}")
        return self.returncode

    def said(self) -> str:
        """All that it has written so far."""
        return "".join(map(_read, self._said))

    def communicate(self, timeout: float = WAIT_S) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self.wait(timeout)
        out, errors = map(_read, self._said)
        return out, errors


def nothing() -> None:
    pass


class Forked(Process):
    """A command that runs in a folder."""

    def __init__(
        self,
        folder: "Folder",
        log: Path | None,
        name: str,
        *options: str,
        before: Callable[[], None] = nothing,
    ) -> None:
        """before: called in the new process first; a function of a module."""
        self.args = folder.arguments(name, *options)
        super().__init__(log, _become, self.args, str(folder.path), folder.env, before)

    def completed(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        out, errors = self.communicate(timeout_s)
        return subprocess.CompletedProcess(self.args, self.wait(), out, errors)


def command_line(
    arguments: list[str], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A whole command line of the project in a process of its own."""
    process = Process(None, _become, arguments, str(cwd), env, nothing)
    out, errors = process.communicate(500)
    return subprocess.CompletedProcess(arguments, process.wait(), out, errors)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.01)


def _unnamed() -> IO[bytes]:
    return tempfile.TemporaryFile("a+b")


def _read(file: IO[bytes]) -> str:
    file.seek(0)  # who writes appends, wherever this reads
    return file.read().decode(errors="replace")


def _begin(streams: list[Any], function: Callable[..., Any], *arguments: Any) -> None:
    os.setsid()
    files = [stream.detach() for stream in streams]
    os.dup2(files[0], 1)
    os.dup2(files[-1], 2)
    function(*arguments)


def _become(
    arguments: list[str], cwd: str, env: Mapping[str, str], before: Callable[[], None]
) -> None:
    os.chdir(cwd)
    os.environ.update(env)
    warnings.simplefilter("ignore")  # as PYTHONWARNINGS says to a fresh interpreter
    before()
    sys.argv = ["deepfake-study", *arguments]
    from study.cli.app import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
