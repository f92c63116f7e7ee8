"""A real two-node Slurm on 127.0.0.1, and what runs on it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).parent


class SlurmCluster:
    """Nodes n1 and n2 with two cores each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": f"{folder}/slurm.conf"}

    def call(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        env = {**os.environ, **self.env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def processes(self) -> dict[int, dict[str, str]]:
        """The environment of each process that descends from this cluster's jobs, by its id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    parts = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    env = dict(part.split("=", 1) for part in parts if "=" in part)
                    if env.get("SLURM_CONF") == self.env["SLURM_CONF"] and "SLURM_JOB_ID" in env:
                        found[int(entry.name)] = env
        return found

    def workers(self, node: str | None = None) -> dict[int, str]:
        """The array task of each worker process (of a node), by process id."""
        return {
            pid: env["SLURM_ARRAY_TASK_ID"]
            for pid, env in self.processes().items()
            if node in (None, env.get("SLURMD_NODENAME")) and b"\0worker\0" in _command_line(pid)
        }

    def parent(self, pid: int) -> int:
        """What started a worker: submitit's process of its task."""
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    def tasks(self) -> dict[str, dict[str, str]]:
        """What the controller says of each array task, by its number."""
        found = {}
        for line in self.call("scontrol", "--oneliner", "show", "job").splitlines():
            fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
            if fields.get("ArrayTaskId", "").isdecimal():
                found[fields["ArrayTaskId"]] = fields
        return found

    def lose(self, node: str) -> None:
        """Kill a node's daemons. Its orphans run on, as on a machine cut off from the others."""
        pid = int((self.folder / f"slurmd.{node}.pid").read_text())
        steps = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and _command_line(int(entry.name)).startswith(b"slurmstepd")
        ]
        # a step daemon writes its node's log
        log = f"{self.folder}/log/slurmd.{node}.log"
        own = [step for step in steps if log in _open_files(step)]
        for process in (pid, *own):
            os.kill(process, signal.SIGKILL)


def missing() -> str | None:
    """Why there can be no Slurm here."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    return f"no {', '.join(absent)} here (Debian: slurm-wlm)" if absent else None


@contextmanager
def running(folder: Path) -> Iterator[SlurmCluster]:
    """Starts the cluster in a fresh folder, and ends it with all that its jobs left."""
    cluster = SlurmCluster(folder)
    try:
        subprocess.run([HERE / "slurm_up.sh", folder], check=True, timeout=60)
        yield cluster
    finally:
        subprocess.run([HERE / "slurm_down.sh", folder], check=False, timeout=60)
        for pid in cluster.processes():  # orphans of a lost node
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(entry.readlink()))
    return found
