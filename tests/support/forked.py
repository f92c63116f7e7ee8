"""Commands as processes of their own that begin in a moment, also sixteen in the same second.

They are forked from one process that has imported everything: a worker's imports alone take eight
seconds of a core. What runs in them is the command's own main().
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path

from tests.support.runs import Folder

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["study.cli.app", "study.worker.worker", "study.evaluation.evaluator"]
)
WAIT_S = 300  # a machine may be shared


def nothing() -> None:
    pass


class Forked:
    """A running command; what it writes goes to log, behind what is there."""

    def __init__(
        self,
        folder: Folder,
        log: Path,
        name: str,
        *options: str,
        before: Callable[[], None] = nothing,
    ) -> None:
        """before: called in the new process first; a function of a module."""
        arguments = folder.arguments(name, *options)
        self.log = log
        self._process = _FORKS.Process(
            target=_become, args=(arguments, str(folder.path), folder.env, str(log), before)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """None while it runs, -9 behind SIGKILL."""
        return self._process.exitcode

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join()

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code."""
        self._process.join(timeout_s)
        if self.code is None:
            self.kill()
            raise TimeoutError(f"still ran after {timeout_s:.0f} s:\n{self.said()}")
        return self.code

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.01)


def _become(
    arguments: list[str], cwd: str, env: Mapping[str, str], log: str, before: Callable[[], None]
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    before()
    sys.argv = ["deepfake-study", *arguments]
    from study.cli.app import main

    main()
