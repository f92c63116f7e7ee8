"""The protocol of a launcher, what it starts, and what it gives to whoever waits."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, ClassVar, Protocol

from deepfake.errors import UserError
from study.config import StudyConfig

# exit codes that a worker chose; any other is a death, and another worker takes its place
CHOSEN = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
# of one that was told to end before it could listen
UNHEARD = (-signal.SIGINT, -signal.SIGTERM)
MAX_RESTARTS = 3
POLL_S = 0.5  # between two looks at a worker
SLACK_S = 5.0  # from the end of the grace to SIGKILL
_LOOK_S = 0.1


@dataclass(frozen=True)
class Placement:
    """The launcher, by its name in LAUNCHERS, and its options; None is the launcher's default."""

    launcher: str = "local"
    workers: int | None = None
    workers_per_gpu: int | None = None
    slurm: tuple[str, ...] = ()
    detach: bool = False
    ray_address: str | None = None
    gpus_per_worker: float | None = None
    grace_s: float = 25.0
    timeout_s: float | None = None  # from the workers' start to their clean end
    device: str | None = None  # of all workers; None takes every GPU that is visible

    def given(self) -> set[str]:
        """The fields that say something else than the default."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}


class ExtraMissing(UserError):
    """A launcher's package is not installed."""

    def __init__(self, launcher: str, package: str) -> None:
        super().__init__(
            f"--launcher {launcher} needs {package}: pip install 'deepfake-study[{launcher}]'"
        )


@dataclass(frozen=True)
class WorkerCommand:
    """What starts a worker where the same files are seen. Holds nothing secret."""

    arguments: tuple[str, ...]  # behind `deepfake-study`
    cwd: str  # what relative paths in them are relative to
    grace_s: float  # from the first signal to the worker's end

    def worker(self, *more: str) -> list[str]:
        """Behind `deepfake-study`: of a worker that ends with this process."""
        own = ["--grace", f"{self.grace_s:g}s", "--parent", str(os.getpid())]
        return [*self.arguments, *own, *more]

    def start(
        self,
        *more: str,
        env: dict[str, str] | None = None,
        output: IO[bytes] | None = None,
        own_session: bool,
    ) -> subprocess.Popen[bytes]:
        """A worker that ends with this process. env, output: this process's without."""
        return subprocess.Popen(
            [sys.executable, "-m", "study", *self.worker(*more)],
            cwd=self.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=own_session,
        )

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a worker for a clean end, and end it when its grace is over."""
        process.terminate()
        deadline = time.monotonic() + self.grace_s + SLACK_S
        while _runs(process.pid) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        process.kill()


def is_death(code: int) -> bool:
    return code not in (*CHOSEN, *UNHEARD)


def as_shell(code: int) -> int:
    """Popen's exit code as a shell has it: 143 for -15."""
    return code if code >= 0 else 128 - code


def last_line(text: str, otherwise: str) -> str:
    """otherwise: for a text that is empty."""
    return (text.strip().splitlines() or [otherwise])[-1]


def new_log(log_dir: Path) -> Path:
    """A new empty file for a worker's log; machines may share the folder."""
    log_dir.mkdir(parents=True, exist_ok=True)
    stem = f"worker-{socket.gethostname()}-{os.getpid()}"
    number = len(list(log_dir.glob(f"{stem}-*.log")))
    path = log_dir / f"{stem}-{number}.log"
    path.touch(exist_ok=False)
    return path


def _runs(pid: int) -> bool:
    # not Popen.wait: a signal handler may have interrupted one, which holds Popen's lock
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    except ChildProcessError:
        return False


OnEnd = Callable[[str, str | None], None]


class Workers(Protocol):
    """Workers that were started somewhere, to whoever waits for them."""

    worst: int  # the worst exit code that one of them chose; 1 if one died and is not replaced

    def poll(self) -> bool:
        """Whether any is left, after about POLL_S."""

    def end(self, number: int) -> None:
        """Ask them for a clean end, by this signal where there are signals; again: at once."""

    def drop_waiting(self) -> None:
        """Nothing is left to run: end those that wait in a queue."""

    def last_words(self) -> str:
        """The last line that one of them wrote."""


Environment = Callable[[], dict[str, str]]  # of a worker, on the machine where it is called


class Launcher(Protocol):
    """Where workers run. `start` is all that one must have."""

    takes: ClassVar[tuple[str, ...]] = ()  # fields of Placement that are its own
    placement: Placement

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def command(self, *words: str) -> WorkerCommand:
        """words: of a worker, behind `deepfake-study`."""
        return WorkerCommand(words, str(Path.cwd()), self.placement.grace_s)

    def warm_up(
        self, command: WorkerCommand, environment: Environment
    ) -> AbstractContextManager[None]:
        """Begin what `start` in the block will use, beside other work; over with the block."""
        return nullcontext()

    def check(self, config: StudyConfig, env: Mapping[str, str]) -> None:
        """Before data is touched. Raises UserError, one line, for what can't be placed so."""

    def warnings(self, config: StudyConfig, env: Mapping[str, str]) -> Iterator[str]:
        """What is allowed and seldom meant."""
        yield from ()

    def variables(self) -> Mapping[str, str]:
        """What this process's environment must hold before `start`."""
        return {}

    def start(
        self,
        command: WorkerCommand,
        config: StudyConfig,
        environment: Environment,
        on_end: OnEnd,
    ) -> Workers:
        """Start the workers. on_end: called with the name of each that died, where it is known."""


def away_from_sqlite(config: StudyConfig) -> Iterator[str]:
    """The warning of launchers whose workers are on several machines."""
    if config.study.storage.get_secret_value().startswith("sqlite"):
        yield "study.storage: SQLite is for one machine"
