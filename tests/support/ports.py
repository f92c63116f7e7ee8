"""Ports for servers that are stopped and started again at the same address."""

import errno
import itertools
import os
import socket

FIRST, A_PROCESS = 20000, 1000  # below those that Linux gives to connections: from 32768
_next = itertools.count(os.getpid())


def free_port() -> int:
    """A port that no connection takes before its server does, nor another process's test."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    for _ in range(A_PROCESS):
        port = FIRST + process * A_PROCESS + next(_next) % A_PROCESS
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise OSError(f"no port is free from {FIRST + process * A_PROCESS} on")
