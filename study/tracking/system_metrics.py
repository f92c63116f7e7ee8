"""What a worker's machine is busy with: MLflow's system metrics, sampled beside training."""

import logging
import threading
from types import TracebackType
from typing import Self

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

log = logging.getLogger(__name__)

PREFIX = "system/"  # what the UI's tab of system metrics shows


class Machine:
    """A `with` round a worker's slots: cores, memory, disk, network and GPUs of the whole machine.

    MLflow's own SystemMetricsMonitor asks the server at each sample, and so waits for one that is
    away: its parts are used here, what they say goes with a run's epochs.
    """

    def __init__(self, every_s: float) -> None:
        """every_s: between two samples; 0: none are taken."""
        self._every_s = every_s
        self._monitors: list[BaseMetricsMonitor] = []
        self._owed = False  # the first sample of an attempt
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self._every_s:
            self._thread.join()

    def begin(self) -> None:
        """An attempt starts: what was before is not of it."""
        with self._lock:
            self._monitors = _monitors() if self._every_s else []  # the network's counts from here
            self._sample()  # the use of cores is since the sample before
            self._drop()
            self._owed = True

    def since_last(self) -> dict[str, float]:
        """Means by name of the samples since the last call; empty if there were none.

        Of the network: megabytes since the attempt began.
        An attempt's first call takes a sample: many are over before the next is due.
        """
        with self._lock:
            if self._owed:
                self._sample()
                self._owed = False
            means = {
                f"{PREFIX}{name}": float(value)
                for monitor in self._monitors
                for name, value in monitor.aggregate_metrics().items()
            }
            self._drop()
        return means

    def _work(self) -> None:
        while not self._closing.wait(self._every_s):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        try:
            for monitor in self._monitors:
                monitor.collect_metrics()
        except Exception:  # a witness in trouble is no trouble of training's
            log.warning("system metrics end here", exc_info=True)
            self._monitors = []

    def _drop(self) -> None:
        for monitor in self._monitors:
            monitor.clear_metrics()


def _monitors() -> list[BaseMetricsMonitor]:
    found: list[BaseMetricsMonitor] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
        except (ImportError, RuntimeError):  # no such GPU, or no driver
            continue
        except Exception as error:  # a witness in trouble is no trouble of training's
            log.warning("no %s: %r", kind.__name__, error, exc_info=True)
    return found
