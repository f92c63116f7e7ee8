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
from multiprocessing import get_context
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.runs import Folder

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["study.cli.app", "study.worker.worker", "study.evaluation.evaluator"]
)
WAIT_S = 300  # a machine may be shared


def nothing() -> None:
    pass


class Forked:
    """A command that runs in a folder, with as much of Popen as tests ask for."""

    def __init__(
        self,
        folder: "Folder",
        log: Path | None,
        name: str,
        *options: str,
        before: Callable[[], None] = nothing,
    ) -> None:
        """log: receives all that it writes, behind what is there; without it see communicate.

        before: called in the new process first; a function of a module.
        """
        self._said = [log.open("a+b")] if log else [_unnamed(), _unnamed()]
        self.args = folder.arguments(name, *options)
        streams = [DupFd(file.fileno()) for file in self._said]
        self._process = _FORKS.Process(
            target=_become, args=(self.args, str(folder.path), folder.env, streams, before)
        )
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

    def completed(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        out, errors = self.communicate(timeout_s)
        return subprocess.CompletedProcess(self.args, self.wait(), out, errors)


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


def _become(
    arguments: list[str],
    cwd: str,
    env: Mapping[str, str],
    streams: list[Any],
    before: Callable[[], None],
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    files = [stream.detach() for stream in streams]
    os.dup2(files[0], 1)
    os.dup2(files[-1], 2)
    warnings.simplefilter("ignore")  # as PYTHONWARNINGS says to a fresh interpreter
    before()
    sys.argv = ["deepfake-study", *arguments]
    from study.cli.app import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
