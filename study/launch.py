"""N workers on this machine: each a process of its own, the same command a cluster starts."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from study.worker import StopSignal, worker_name

log = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RESTARTS = 3  # of workers that died, for all together
GRACE_S = 25.0  # from the first signal to SIGKILL
# exit codes that a worker chose; any other is a death, and another worker takes its place
CHOSEN = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass
class Worker:
    """A local worker process and what it was started with."""

    process: subprocess.Popen[bytes]
    device: str
    log_path: Path


class LocalWorkers:
    """Worker i on GPU i mod count, or on the CPU; a log file each."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log_dir: Path) -> None:
        """command: the arguments behind `python -m study.cli`."""
        self.command = list(command)
        self.env = env
        self.log_dir = log_dir
        self.workers: list[Worker] = []
        self.restarts = 0
        self._last_log = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)

    def start(self, count: int) -> None:
        gpus = torch.cuda.device_count()
        for number in range(count):
            self._start(f"cuda:{number % gpus}" if gpus else "cpu")

    def watch(
        self, stop: StopSignal, on_poll: Callable[[], None], on_death: Callable[[str], None]
    ) -> int:
        """Until all have ended; the worst exit code they chose.

        A worker that dies is named to on_death, and another starts. Signals are passed on; after
        the first the workers have GRACE_S to end.
        """
        worst, passed_on, deadline = 0, 0, math.inf
        while self.workers:
            on_poll()
            while passed_on < stop.count:
                passed_on += 1
                deadline = min(deadline, time.monotonic() + GRACE_S)
                self._signal(stop.number or signal.SIGTERM)
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            for worker in list(self.workers):
                try:
                    code = worker.process.wait(timeout=POLL_S / len(self.workers))
                except subprocess.TimeoutExpired:
                    continue
                self.workers.remove(worker)
                self._last_log = worker.log_path
                if code not in CHOSEN:
                    on_death(worker_name(worker.process.pid))
                    code = 0 if stop.count or self._replace(worker, code) else 1
                worst = max(worst, code)
        on_poll()
        return worst

    def last_words(self) -> str:
        """The last line that the last worker to end wrote."""
        lines = self._last_log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"see {self._last_log}"

    def _signal(self, number: int) -> None:
        # workers are in sessions of their own: a terminal's Ctrl-C reaches this process alone,
        # so that they see it once
        for worker in self.workers:
            worker.process.send_signal(number)

    def _start(self, device: str) -> None:
        path = self.log_dir / f"worker-{os.getpid()}-{len(list(self.log_dir.iterdir()))}.log"
        arguments = [*self.command, "--device", device, "--parent", str(os.getpid())]
        with path.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "study.cli", *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.workers.append(Worker(process, device, path))

    def _replace(self, worker: Worker, code: int) -> bool:
        if self.restarts >= MAX_RESTARTS:
            log.error("a worker died (exit code %d): %s", code, worker.log_path)
            return False
        self.restarts += 1
        log.warning("a worker died (exit code %d), another starts: %s", code, worker.log_path)
        self._start(worker.device)
        return True
