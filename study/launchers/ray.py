"""Workers as Ray tasks: on a cluster that is there, or on one started on this machine.

A task starts the same worker process as any launcher and passes its end on. Ray runs a task again
elsewhere when its node or process dies; the worker follows the process of its task and frees its
slot when that is gone. The storage URL travels as an argument of the task, within the cluster's
own channels: to neither a command line nor a file. Who doesn't trust these gives it no password
(PGPASSFILE on each node).
"""

import importlib.util
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepfake.errors import UserError, one_line
from study.config import StudyConfig
from study.launchers.base import (
    MAX_RESTARTS,
    POLL_S,
    SLACK_S,
    Environment,
    ExtraMissing,
    Launcher,
    OnEnd,
    WorkerCommand,
    as_shell,
    away_from_sqlite,
    is_death,
    last_line,
    new_log,
)

# Ray rewrites 127.0.0.1 to the network's address, and binds every other to all interfaces, unless
# this is set before Ray is imported
ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOCAL_ADDRESS = "127.0.0.1"
OBJECT_STORE_BYTES = 80_000_000  # the least Ray takes: nothing of ours goes there
KNOCK_S = 10.0


class RayAway(UserError):
    """The Ray cluster can't be reached, or has no room for a worker."""


class WorkerDied(Exception):
    """A worker process was killed or broke down: Ray tries its task again."""


def run_worker(
    command: WorkerCommand, device: Sequence[str], environment: Environment, log_dir: Path
) -> int:
    """One worker process; its exit code. The task that Ray runs, on whichever node.

    Cancelling the task is a KeyboardInterrupt here: the worker is asked for a clean end.
    Raises WorkerDied.
    """
    log = new_log(log_dir)
    with log.open("ab") as file:
        process = command.start(*device, env=environment(), output=file, own_session=True)
    try:
        code = _wait(process)
    except KeyboardInterrupt:
        command.end(process)
        raise
    if is_death(code):
        raise WorkerDied(f"a worker died (exit code {code}): {log}")
    return as_shell(code)


class RayWorkers:
    """Tasks of the cluster that this process has joined; its end is theirs."""

    def __init__(self, tasks: list[Any], log_dir: Path, grace_s: float) -> None:
        self.worst = 0
        self._left = tasks
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._kill_at = float("inf")
        self._last_error = ""

    def poll(self) -> bool:
        import ray

        if not self._left:
            return False
        force = time.monotonic() > self._kill_at
        if force:
            self._cancel(force=True)
        ended, self._left = ray.wait(self._left, num_returns=len(self._left), timeout=POLL_S)
        for task in ended:
            self.worst = max(self.worst, self._code(task))
        return bool(self._left)

    def end(self, number: int) -> None:
        again = self._kill_at < float("inf")
        self._kill_at = min(self._kill_at, time.monotonic() + self._grace_s + 2 * SLACK_S)
        self._cancel(force=again)

    def drop_waiting(self) -> None:
        """Ray does not tell which have begun: `watch` ends them later."""

    def last_words(self) -> str:
        if self._last_error:
            return self._last_error
        logs = sorted(self._log_dir.glob("worker-*.log"), key=lambda log: log.stat().st_mtime)
        text = logs[-1].read_text(errors="replace") if logs else ""
        return last_line(text, f"see {self._log_dir}")

    def _cancel(self, *, force: bool) -> None:
        import ray

        for task in self._left:
            ray.cancel(task, force=force)

    def _code(self, task: Any) -> int:
        import ray

        try:
            return int(ray.get(task))
        except ray.exceptions.TaskCancelledError:
            return 128 + signal.SIGTERM
        except ray.exceptions.RayError as error:
            self._last_error = last_line(str(error), type(error).__name__)
            return 128 + signal.SIGTERM if self._kill_at < float("inf") else 1


def check_installed() -> None:
    """Raises ExtraMissing without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise ExtraMissing("ray", "ray")


def _join(address: str | None, cpus: int) -> None:
    import ray

    if address is not None and (at := re.fullmatch(r"([\w.-]+):(\d+)", address)):
        _knock(at[1], int(at[2]))
    try:
        quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            ray.init(address=address, **quietly)
            return
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address=LOCAL_ADDRESS,
            **quietly,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = address or "a new one on this machine"
        said = one_line(error)
        raise RayAway(f"--ray-address: no Ray cluster at {where}: {said}") from None


def _knock(host: str, port: int) -> None:
    """Raises RayAway at once where nothing listens: Ray would try for minutes, and then exit."""
    try:
        socket.create_connection((host, port), timeout=KNOCK_S).close()
    except OSError as error:
        reason = one_line(error, path=False)
        raise RayAway(f"--ray-address {host}:{port}: no Ray cluster there: {reason}") from None


def _fitting(cpus: int, gpus: float | None) -> float:
    """GPUs a worker takes. Raises RayAway if the cluster would never start one."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
    wanted = (1.0 if any(node.get("GPU") for node in nodes) else 0.0) if gpus is None else gpus
    fits = [n for n in nodes if n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= wanted]
    if not fits:
        shown = "; ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
        ray.shutdown()
        raise RayAway(
            f"a worker takes {cpus} CPUs (train.threads) and {wanted:g} GPUs, no node has them "
            f"({shown}); lower train.threads or --gpus-per-worker"
        )
    return wanted


def _wait(process: subprocess.Popen[bytes]) -> int:
    # in slices: Ray's KeyboardInterrupt does not wake a thread that waits
    while (code := process.poll()) is None:
        time.sleep(POLL_S)
    return code


class Ray(Launcher):
    """Tasks of a cluster, a worker each; without an address of one that starts here."""

    takes = ("ray_address", "gpus_per_worker")

    def check(self, config: StudyConfig, env: Mapping[str, str]) -> None:
        check_installed()

    def warnings(self, config: StudyConfig, env: Mapping[str, str]) -> Iterator[str]:
        if not self._begins_one:
            yield from away_from_sqlite(config)

    def variables(self) -> Mapping[str, str]:
        return ONE_MACHINE if self._begins_one else {}

    def start(
        self,
        command: WorkerCommand,
        config: StudyConfig,
        environment: Environment,
        on_end: OnEnd,
    ) -> RayWorkers:
        """Join the cluster, or start one here, and give it the workers. Raises RayAway."""
        import ray

        workers, cpus = self.placement.workers or 1, config.train.threads  # a worker's
        _join(self.placement.ray_address, workers * cpus)
        gpus = _fitting(cpus, self.placement.gpus_per_worker)
        task = ray.remote(run_worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=MAX_RESTARTS,
            retry_exceptions=[WorkerDied],
            scheduling_strategy="SPREAD",
        )
        device, log_dir = () if gpus else ("--device", "cpu"), config.checkpoints_dir / "logs"
        tasks = [task.remote(command, device, environment, log_dir) for _ in range(workers)]
        return RayWorkers(tasks, log_dir, command.grace_s)

    @property
    def _begins_one(self) -> bool:
        return self.placement.ray_address is None
