"""The MLflow UI, as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlencode

from study.config import StudyConfig
from study.signals import StopSignal
from study.tracking.store import StudyRuns, TrackingError, sqlite_path

START_S = 120  # MLflow's server imports for seconds, on a busy machine for many
END_S = 5.0  # from the first signal to SIGKILL: MLflow's server waits for requests without end
POLL_S = 0.3


def serve_ui(config: StudyConfig, port: int, say: Callable[[str], None]) -> int:
    """Run the MLflow UI on the study's store until it ends; its exit code.

    say gets the address of the study's runs, once it answers. Raises TrackingError if the port is
    taken, there is no store yet, or the server does not start.
    """
    uri = config.tracking.uri
    if (sqlite := sqlite_path(uri)) is None:
        say(f"this study is tracked by a server, which has the UI: {uri}/{runs_page(config)}")
        return 0
    if not sqlite.exists():
        raise TrackingError(f"tracking.uri: {uri}: no such file; no study was run here yet")
    port = _free_port(port)
    page = runs_page(config)
    arguments = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    # MLflow's own list has every private network in it; a page of another host is refused here
    hosts = f"127.0.0.1:{port},localhost:{port}"
    arguments += ["--allowed-hosts", hosts, "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", *arguments]
    stop = StopSignal(second_exits=False)
    stop.listen()  # before there is a server: none may outlive this process
    # a session of its own: a terminal's Ctrl-C reaches this process alone, which ends the group
    server = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        if _answers(server, f"http://127.0.0.1:{port}/health", stop):
            say(f"MLflow UI of '{config.name}' (Ctrl-C ends it): http://127.0.0.1:{port}/{page}")
        while server.poll() is None and not stop.asked():
            time.sleep(POLL_S)
    finally:
        _end(server)
    return 1 if stop.number is None else 128 + stop.number


def runs_page(config: StudyConfig) -> str:
    """The part of the UI's address behind the host that lists the study's slots, the best first.

    Raises TrackingError if the study is not in the store.
    """
    runs = StudyRuns.of(config, study_id="")  # for its experiment alone
    if runs is None:
        raise TrackingError(f"study '{config.name}' has no runs in {config.tracking.uri} yet")
    query = urlencode(
        {
            "workflowType": "machine_learning",
            "searchFilter": "tags.slot != ''",
            "orderByKey": f"metrics.`best_{config.study.objective}`",
            "orderByAsc": "true",
        }
    )
    return f"#/experiments/{runs.experiment_id}/runs?{query}"


def _end(server: subprocess.Popen[bytes]) -> None:
    """The server and all that it started, at once if a request that is never whole holds it up."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(f"--port {port}: {error.strerror}; choose another") from None
        return int(probe.getsockname()[1])


def _answers(server: subprocess.Popen[bytes], url: str, stop: StopSignal) -> bool:
    """Once it does; False if a signal came first. Raises TrackingError if it never does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        if stop.asked():
            return False
        try:
            direct.open(url, timeout=5).close()
            return True
        except OSError:
            time.sleep(POLL_S)
    raise TrackingError(f"the MLflow UI did not start (exit code {server.poll()}): see above")
