"""A real two-node Ray on loopback, and what runs on it."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.ports import free_port

START_S = 90
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # Ray rewrites 127.0.0.1 to the network's address


class RayCluster:
    """Nodes at HEAD and OTHER, with two cores and no GPU each unless told otherwise."""

    def __init__(self, folder: Path, gpus: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"{HEAD}:{self.port}"
        self.gpus = gpus
        self.env = {
            "HOME": str(folder),  # where Ray looks for a token of its own
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._start(HEAD, "--head", f"--port={self.port}", "--include-dashboard=false")
        self._start(OTHER, f"--address={self.address}")

    def workers(self, node: str | None = None) -> set[int]:
        """The worker processes (of a node), by process id."""
        found = set()
        for pid in _descendants(self._nodes[n].pid for n in self._nodes if node in (None, n)):
            with suppress(OSError):
                if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(pid)
        return found

    def lose(self, node: str) -> None:
        """Kill what makes a node one of the cluster. Its tasks end some seconds later."""
        ours = _descendants([self._nodes[node].pid])
        raylets = [pid for pid in ours if _name(pid) == "raylet"]
        assert raylets
        for pid in raylets:
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """By our own processes: `ray stop` would end every Ray of the machine."""
        ours = _descendants(node.pid for node in self._nodes.values())
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in ours:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while any(Path(f"/proc/{pid}").exists() for pid in ours[len(self._nodes) :]):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        for node in self._nodes.values():
            node.wait(timeout=20)

    def _start(self, address: str, *options: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", *options, "--block"]
        command += [f"--node-ip-address={address}", "--num-cpus=2", f"--num-gpus={self.gpus}"]
        command += ["--object-store-memory=80000000", "--disable-usage-stats"]
        if address == HEAD:
            command.append(f"--temp-dir={self.folder}")
        log = self.folder / f"{address}.log"
        with log.open("wb") as file:
            self._nodes[address] = subprocess.Popen(
                command,
                env={**os.environ, **self.env},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert self._nodes[address].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@contextmanager
def running(*, gpus: int = 0) -> Iterator[RayCluster]:
    """Starts the cluster, and ends it by its own processes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets in it: the path must be short
    cluster = RayCluster(folder, gpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def listening(root: int) -> set[str]:
    """Addresses on which a process and all that it started listen, as the kernel writes them."""
    inodes, table = set(), ""
    for pid in _descendants([root]):
        with suppress(OSError):
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
            table = "".join(
                Path(f"/proc/{pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6")
            )
    rows = [line.split() for line in table.splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def _descendants(roots: Iterator[int] | list[int]) -> list[int]:
    """The processes and all that they started, oldest first."""
    found = list(roots)
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
