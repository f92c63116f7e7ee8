"""A real PostgreSQL of our own on 127.0.0.1, as the `postgres` fixture gives it to tests."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port

PASSWORD = "c4nary-p4ssword"  # must be found nowhere that a study writes


class Postgres:
    """Stopped and started on one port, with one set of data."""

    def __init__(self, bin_dir: Path, root: Path) -> None:
        """root: an empty folder that the server's user may enter."""
        self.bin_dir = bin_dir
        self.root = root
        self.port = free_port()
        # root may not run it
        self._user = {"user": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        self._server: subprocess.Popen[bytes] | None = None
        self._init()

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

    def start(self) -> None:
        """Returns when it takes connections; nothing if it runs already."""
        if self._server is not None:
            return
        with (self.root / "log").open("ab") as log:
            # itself, not pg_ctl: after a SIGKILL we reap our own child
            self._server = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.root / "data"],
                stdout=log,
                stderr=log,
                cwd=self.root,
                **self._user,
            )
        _wait_until_ready(self.bin_dir, self.port, self._server)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT: clients are cut off. SIGQUIT: at once, and the next start recovers."""
        if self._server is None:
            return
        self._server.send_signal(how)
        self._server.wait(timeout=30)
        self._server = None

    def _init(self) -> None:
        data, password_file = self.root / "data", self.root / "password"
        password_file.write_text(PASSWORD)
        if self._user:
            shutil.chown(self.root, "postgres")
        init = ["-A", "scram-sha-256", "-U", "tester", "--no-sync", "--no-instructions"]
        init += ["-E", "UTF8", "--locale=C.UTF-8", f"--pwfile={password_file}", "-D", str(data)]
        subprocess.run(
            [self.bin_dir / "initdb", *init],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.root,
            **self._user,
        )
        with (data / "postgresql.conf").open("a") as file:
            # synchronous_commit stays on: what was committed must survive SIGQUIT
            file.write(
                f"listen_addresses='127.0.0.1'\nport={self.port}\nfsync=off\n"
                "full_page_writes=off\nshared_buffers=32MB\n"
                f"unix_socket_directories='{self.root}'\n"
            )


def find_binaries() -> Path | None:
    """The newest server on this machine, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running(bin_dir: Path) -> Iterator[Postgres]:
    """A server in a fresh folder, stopped by its own process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)
        server = Postgres(bin_dir, root)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _wait_until_ready(bin_dir: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    ready = [bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    for _ in range(200):
        assert server.poll() is None, "PostgreSQL ended at once"
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise TimeoutError("PostgreSQL did not become ready")
