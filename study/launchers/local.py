"""Workers on this machine, a GPU each."""

import logging
import math
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepfake.errors import UserError
from deepfake.parallel import available_cores
from deepfake.reproducibility import check_precision, pick_device
from study.config import StudyConfig
from study.launchers.base import (
    MAX_RESTARTS,
    POLL_S,
    SLACK_S,
    Environment,
    Launcher,
    OnEnd,
    WorkerCommand,
    as_shell,
    is_death,
    last_line,
    new_log,
)
from study.launchers.forked import ForkedWorker, ForkServer, fork_server

# torch and study.worker, seconds of imports, only within methods: what workers are forked from is
# started first, and its imports go on meanwhile

log = logging.getLogger(__name__)


def visible_gpus(setting: str | None, count: int) -> list[str]:
    """What a worker's CUDA_VISIBLE_DEVICES can name: the user's own entries, or every index.

    setting: CUDA_VISIBLE_DEVICES as it is. count: how many GPUs CUDA sees under it; it ignores
    the entries behind one that it does not find.
    """
    entries = map(str, range(count)) if setting is None else setting.split(",")
    return [entry.strip() for entry in entries][:count]


def assign_gpus(
    gpus: Sequence[str], workers: int | None, workers_per_gpu: int
) -> list[str | None]:
    """The GPU of each worker, spread evenly; None is the CPU.

    workers: without it as many as there is room for, or one where there is no GPU. Raises
    UserError if there are more workers than places.
    """
    if not gpus:
        return [None] * (workers or 1)
    places = len(gpus) * workers_per_gpu
    wanted = places if workers is None else workers
    if wanted > places:
        raise UserError(
            f"--workers {wanted}: {len(gpus)} GPUs with {workers_per_gpu} workers each take "
            f"{places}; add --workers-per-gpu {math.ceil(wanted / len(gpus))} to pack them"
        )
    return [gpus[number % len(gpus)] for number in range(wanted)]


@dataclass
class Worker:
    """A local worker process and what it was started with."""

    process: subprocess.Popen[bytes] | ForkedWorker
    gpu: str | None
    log_path: Path


class LocalWorkers:
    """One process for each entry of gpus; a log file each. A worker that dies is replaced."""

    def __init__(
        self,
        command: WorkerCommand,
        gpus: Sequence[str | None],
        env: dict[str, str],
        log_dir: Path,
        on_end: OnEnd,
        server: ForkServer | None = None,
    ) -> None:
        """on_end: called with the name of a worker that ended, and why unless it died.

        server: what starts them. Without it each is a fresh interpreter.
        """
        self.worst = 0
        self.workers: list[Worker] = []
        self.restarts = 0
        self._command = command
        self._env = env
        self._log_dir = log_dir
        self._on_end = on_end
        self._server = server
        self._last_log = log_dir
        self._kill_at = math.inf
        log_dir.mkdir(parents=True, exist_ok=True)
        log.info("starting %d worker%s", len(gpus), "s" * (len(gpus) != 1))
        for gpu in gpus:
            self._start(gpu)

    def poll(self) -> bool:
        from study.worker import worker_name

        if time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        for worker in list(self.workers):
            try:
                code = worker.process.wait(timeout=POLL_S / len(self.workers))
            except subprocess.TimeoutExpired:
                continue
            self.workers.remove(worker)
            self._last_log = worker.log_path
            died = is_death(code)
            if code:  # its slot comes back at once, not with its lease
                reason = None if died else f"its worker ended with exit code {code}"
                self._on_end(worker_name(worker.process.pid), reason)
            if died:
                code = 0 if self._ending or self._replace(worker, code) else 1
            self.worst = max(self.worst, as_shell(code))
        return bool(self.workers)

    def end(self, number: int) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + self._command.grace_s + SLACK_S)
        self._signal(number)

    def drop_waiting(self) -> None:
        """None waits: they are processes."""

    def last_words(self) -> str:
        try:
            text = self._last_log.read_text(errors="replace")
        except OSError as error:
            return f"{self._last_log}: {error.strerror}"
        return last_line(text, f"see {self._last_log}")

    @property
    def _ending(self) -> bool:
        return self._kill_at < math.inf

    def _signal(self, number: int) -> None:
        # workers are in sessions of their own: a terminal's Ctrl-C reaches this process alone,
        # so that they see it once
        for worker in self.workers:
            worker.process.send_signal(number)

    def _start(self, gpu: str | None) -> None:
        path = new_log(self._log_dir)
        env, device = self._env, "cpu"
        if gpu is not None:  # the only one the worker sees
            env, device = {**env, "CUDA_VISIBLE_DEVICES": gpu}, "cuda:0"
        process: subprocess.Popen[bytes] | ForkedWorker
        with path.open("ab") as file:
            if self._server is not None:
                process = self._server.start("--device", device, env=env, output=file)
            else:
                process = self._command.start(
                    "--device", device, env=env, output=file, own_session=True
                )
        self.workers.append(Worker(process, gpu, path))

    def _replace(self, worker: Worker, code: int) -> bool:
        if self.restarts >= MAX_RESTARTS:
            log.error("a worker died (exit code %d): %s", code, worker.log_path)
            return False
        self.restarts += 1
        log.warning("a worker died (exit code %d), another starts: %s", code, worker.log_path)
        self._start(worker.gpu)
        return True


class Local(Launcher):
    """Processes on this machine."""

    takes = ("workers_per_gpu", "device")
    _server: ForkServer | None = None  # while warm

    @contextmanager
    def warm_up(self, command: WorkerCommand, environment: Environment) -> Iterator[None]:
        self._server = fork_server(command, environment())
        try:
            yield
        finally:
            if self._server is not None:
                self._server.close()
            self._server = None

    def check(self, config: StudyConfig, env: Mapping[str, str]) -> None:
        import torch

        gpus = self.gpus(env)  # may refuse
        check_precision(config.train, torch.device("cpu" if None in gpus else "cuda"))

    def warnings(self, config: StudyConfig, env: Mapping[str, str]) -> Iterator[str]:
        cores, threads = available_cores(), config.train.threads
        if (workers := len(self.gpus(env))) * threads != cores:
            said = f"{workers} worker{'s' * (workers > 1)} of train.threads {threads} on "
            yield f"{said}{cores} cores; on CPUs one worker a core is best: --workers {cores}"

    def gpus(self, env: Mapping[str, str]) -> list[str | None]:
        """The GPU of each worker; None is the CPU. Raises UserError for no such device."""
        import torch

        options = self.placement
        # counted by NVML: this process takes no memory on any of them
        count = torch.cuda.device_count()
        gpus = visible_gpus(env.get("CUDA_VISIBLE_DEVICES"), count)
        if options.device is not None:
            device = pick_device(options.device)
            gpus = [gpus[device.index or 0]] if device.type == "cuda" else []
        return assign_gpus(gpus, options.workers, options.workers_per_gpu or 1)

    def start(
        self,
        command: WorkerCommand,
        config: StudyConfig,
        environment: Environment,
        on_end: OnEnd,
    ) -> LocalWorkers:
        env, log_dir = environment(), config.checkpoints_dir / "logs"
        return LocalWorkers(command, self.gpus(env), env, log_dir, on_end, self._server)
