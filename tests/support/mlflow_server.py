"""A real `mlflow server` on 127.0.0.1, artifacts proxied; and what a store holds, comparable."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from study.tracking.system_metrics import PREFIX
from tests.support.ports import free_port

START_S = 120  # the server imports for seconds, on a busy machine for many
TIMED = ("seconds", "images_per_s")  # differ from one training to the next
# who ran which commit when: no two studies share these
OWN_TAGS = ("mlflow.", "study_id", "git_commit")


class MlflowServer:
    """Stopped and started on one port, with one store: what it was told, it still has."""

    def __init__(self, folder: Path, backend_store_uri: str | None = None) -> None:
        """backend_store_uri: without it an SQLite file in folder."""
        self.backend_store_uri = backend_store_uri or f"sqlite:///{folder}/server.db"
        self.artifacts_dir = folder / "server-artifacts"
        self.log_path = folder / "server.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers; nothing if it runs already."""
        if self._process is not None:
            return
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += ["--artifacts-destination", str(self.artifacts_dir)]
        env = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": self.backend_store_uri,  # no password in ps
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=env,
                cwd=self.log_path.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_it_answers(self._process)

    def stop(self) -> None:
        """At once, with all it started: requests in flight are cut."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert process.poll() is None, self.log_path.read_text()
            try:
                direct.open(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(self.log_path.read_text())


@contextmanager
def running(folder: Path, backend_store_uri: str | None = None) -> Iterator[MlflowServer]:
    """A server of its own for the block."""
    server = MlflowServer(folder, backend_store_uri)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def store_image(uri: str, experiment: str) -> dict[str, Any]:
    """What the store holds of an experiment, equal for equal studies: no ids, times or places.

    "parent": its parent runs, "slots": the runs of each slot; more than one in either is a double.
    """
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment}"
    runs = client.search_runs([found.experiment_id], max_results=1000)
    parents = {r.info.run_id for r in runs if r.data.tags.get("role") == "study"}
    image: dict[str, Any] = {"parent": [], "slots": {}}
    for run in runs:
        if run.info.run_id in parents:
            image["parent"].append(_run_image(client, run))
        else:
            assert run.data.tags["mlflow.parentRunId"] in parents
            slot = int(run.data.tags["slot"])
            image["slots"].setdefault(slot, []).append(_run_image(client, run))
    image["slots"] = dict(sorted(image["slots"].items()))
    return image


def _run_image(client: MlflowClient, run: Run) -> dict[str, Any]:
    tags = {k: v for k, v in run.data.tags.items() if not k.startswith(OWN_TAGS)}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": dict(sorted(run.data.params.items())),
        "tags": dict(sorted(tags.items())),
        "metrics": {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in sorted(run.data.metrics)
            if name not in TIMED and not name.startswith(PREFIX)
        },
        "timed": {
            name: [m.step for m in client.get_metric_history(run.info.run_id, name)]
            for name in TIMED
        },
        "artifacts": _artifacts(client, run.info.run_id),
    }


def _artifacts(client: MlflowClient, run_id: str) -> dict[str, str]:
    """Path -> sha256; a picture and the configuration, which names places, by their path alone."""
    with tempfile.TemporaryDirectory() as folder:
        client.download_artifacts(run_id, "", folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): ""
            if path.suffix == ".png" or path.name == "config.yaml"
            else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
