"""The MLflow UI, as a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from study.config import StudyConfig
from study.tracking.store import TrackingError
from study.tracking.tracker import runs_page

START_S = 120  # MLflow's server imports for seconds, on a busy machine for many


def serve_ui(config: StudyConfig, port: int, say: Callable[[str], None]) -> int:
    """Run the MLflow UI on the study's store until it ends; its exit code.

    say gets the address of the study's runs, once it answers. Raises TrackingError if the port is
    taken, there is no store yet, or the server does not start.
    """
    uri = config.tracking.uri
    if not uri.startswith("sqlite:///"):
        say(f"this study is tracked by a server, which has the UI: {uri}/{runs_page(config)}")
        return 0
    if not Path(uri.removeprefix("sqlite:///")).exists():
        raise TrackingError(f"tracking.uri: {uri}: no such file; no study was run here yet")
    port = _free_port(port)
    page = runs_page(config)
    arguments = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    # MLflow's own list has every private network in it; a page of another host is refused here
    hosts = f"127.0.0.1:{port},localhost:{port}"
    arguments += ["--allowed-hosts", hosts, "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", *arguments]
    # a session of its own: a terminal's Ctrl-C reaches this process alone, which ends the group
    server = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    stopped: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        os.killpg(server.pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        _wait_until_it_answers(server, f"http://127.0.0.1:{port}/health")
        say(f"MLflow UI of '{config.name}' (Ctrl-C ends it): http://127.0.0.1:{port}/{page}")
        server.wait()
    except TrackingError:
        if not stopped:
            raise
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever outlived its parent
            os.killpg(server.pid, signal.SIGKILL)
    return 128 + stopped[0] if stopped else 1


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(f"--port {port}: {error.strerror}; choose another") from None
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TrackingError(f"the MLflow UI did not start (exit code {server.poll()}): see above")
