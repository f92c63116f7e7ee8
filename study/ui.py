"""The MLflow UI, as a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from study.config import StudyConfig, TrackingError


def serve_ui(config: StudyConfig, port: int, say: Callable[[str], None]) -> int:
    """Run the MLflow UI on the study's store until it ends; its exit code.

    Raises TrackingError if the port is taken or there is no store yet.
    """
    uri = config.tracking.uri
    if not uri.startswith("sqlite:///"):
        say(f"this study is tracked by a server, which has the UI: {uri}")
        return 0
    if not Path(uri.removeprefix("sqlite:///")).exists():
        raise TrackingError(f"tracking.uri: {uri}: no such file; no study was run here yet")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(f"--port {port}: {error.strerror}; choose another") from None
        port = probe.getsockname()[1]
    say(f"MLflow UI of '{config.name}': http://127.0.0.1:{port}   (Ctrl-C ends it)")
    arguments = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *arguments])
    try:
        return server.wait()
    except KeyboardInterrupt:
        return server.wait()
    finally:
        server.terminate()
