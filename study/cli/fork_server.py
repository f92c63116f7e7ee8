"""The process that local workers are forked from: their imports, once for all of them.

study/launchers starts it by its name, with its end of a socket pair as standard input. A request
is one packet, arguments and what its environment has else as JSON, with the file for the worker's
output; the reply is the worker's process id. It ends when the other end of the socket is closed.

Nothing may run here but imports: a fork has no thread of Python's or OpenMP's that was there
before, and can't use CUDA once it was started.
"""

import gc
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

_REQUEST_BYTES = 1 << 20  # more than a packet can hold: none is cut


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork a worker for each request. Returns in a worker, with its request; at the end: None."""
    while True:
        packet, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 1)
        if not packet:
            return None
        (output,) = descriptors
        if between := os.fork():
            if os.waitpid(between, 0)[1]:  # none was started, and nobody may wait for it
                return None
            os.close(output)
        elif is_worker(requests):
            become(output)
            return dict(json.loads(packet))


def is_worker(requests: socket.socket) -> bool:
    """Fork once more, and end: True in the worker, whose parent is then who asked for it."""
    between, code = os.getpid(), 1
    try:
        if worker := os.fork():
            requests.send(str(worker).encode())
            code = 0
    finally:
        if os.getpid() == between:
            os._exit(code)
    requests.close()
    while os.getppid() == between:
        time.sleep(0.001)
    return True


def become(output: int) -> None:
    """A session of its own, and its own standard streams."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)


def main() -> None:
    from deepfake.models import network_of
    from deepfake.variants import VARIANTS
    from study.cli.app import main as command
    from study.tracking import confusion_figure, preload  # noqa: F401  # a slot's end imports it
    from study.worker import work  # noqa: F401  # and with it nearly all that a worker does

    preload()
    for variant in VARIANTS:
        network_of(variant)
    gc.freeze()  # or each worker's collections would copy every page
    with socket.socket(fileno=os.dup(0)) as requests:
        request = serve(requests)
    if request is None:
        return
    os.environ.update(request["env"])
    sys.argv = ["deepfake-study", *request["arguments"]]
    command()


if __name__ == "__main__":
    main()
