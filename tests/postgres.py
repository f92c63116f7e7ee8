"""A real PostgreSQL of our own on 127.0.0.1, as the `postgres` fixture gives it to tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "c4nary-p4ssword"  # must be found nowhere that a study writes


@dataclass(frozen=True)
class Postgres:
    bin_dir: Path
    port: int

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"study_{uuid.uuid4().hex[:12]}"
        env = {**os.environ, "PGPASSWORD": PASSWORD}
        sql = f"CREATE DATABASE {name} STRATEGY wal_log"
        command = [self.bin_dir / "psql", "-h", "127.0.0.1", "-p", str(self.port)]
        subprocess.run(
            [*command, "-U", "tester", "-d", "postgres", "-qc", sql], env=env, check=True
        )
        return f"postgresql+psycopg://tester:{PASSWORD}@127.0.0.1:{self.port}/{name}"


def find_binaries() -> Path | None:
    """The newest server on this machine, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running(bin_dir: Path) -> Iterator[Postgres]:
    """Starts a server in a fresh folder, and stops it by its own process."""
    # root may not run it
    user = {"user": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)
        data, password_file = root / "data", root / "password"
        password_file.write_text(PASSWORD)
        if user:
            shutil.chown(root, "postgres")
        init = ["-A", "scram-sha-256", "-U", "tester", "--no-sync", "--no-instructions"]
        init += ["-E", "UTF8", "--locale=C.UTF-8", f"--pwfile={password_file}", "-D", str(data)]
        subprocess.run(
            [bin_dir / "initdb", *init], check=True, stdout=subprocess.DEVNULL, cwd=root, **user
        )
        port = _free_port()
        with (data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses='127.0.0.1'\nport={port}\nfsync=off\nsynchronous_commit=off\n"
                f"full_page_writes=off\nshared_buffers=32MB\nunix_socket_directories='{root}'\n"
            )
        with (root / "log").open("wb") as log:
            server = subprocess.Popen(
                [bin_dir / "postgres", "-D", data], stdout=log, stderr=log, cwd=root, **user
            )
        try:
            _wait_until_ready(bin_dir, port, server)
            yield Postgres(bin_dir, port)
        finally:
            server.send_signal(signal.SIGINT)  # a fast stop: SIGTERM waits for clients
            server.wait(timeout=20)


def _wait_until_ready(bin_dir: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    ready = [bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    for _ in range(200):
        assert server.poll() is None, "PostgreSQL ended at once"
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise TimeoutError("PostgreSQL did not become ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
