"""study.cli.fork_server without a worker's imports: what it forks runs a Python script."""

import os
import socket

from study.cli.fork_server import serve

with socket.socket(fileno=os.dup(0)) as requests:
    request = serve(requests)
if request is not None:
    os.environ.update(request["env"])
    exec(request["arguments"][0])
