"""A password is in nothing that a study writes, says, or shows among the running processes."""

import os
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy.engine import make_url

from tests.support.forked import Forked, wait_until
from tests.support.postgres import PASSWORD, Postgres
from tests.support.runs import Folder

CANARY = "c4nary7f3e91"  # must be found nowhere that a study writes
USER_PASSWORD = f"{CANARY}@/ %"  # in a URL it is quoted; the canary is in it either way


@dataclass
class Watch:
    """Looks for the canary in new files below a folder and in the arguments of all processes."""

    folder: Path
    found: list[str] = field(default_factory=list)
    looked_at: int = 0
    _seen: set[tuple[Path, int, int]] = field(default_factory=set)

    def look(self) -> None:
        # not rglob: it raises if a folder is removed meanwhile
        paths = [Path(at, name) for at, _, names in os.walk(self.folder) for name in names]
        for path in paths:
            try:
                stat = path.stat()
                key = (path, stat.st_mtime_ns, stat.st_size)
                if not path.is_file() or key in self._seen:
                    continue
                content = path.read_bytes()
            except OSError:  # removed meanwhile
                continue
            self._seen.add(key)
            self.note(str(path), content)
        for arguments in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.note(str(arguments), arguments.read_bytes())
            except OSError:  # ended meanwhile
                continue

    def note(self, place: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.looked_at += 1
        if CANARY.encode() in data:
            self.found.append(f"{place}: {data[:300]!r}")

    def during(self, function: Callable[[], None]) -> None:
        """Look again and again while function runs: much of what it writes is removed."""
        done = threading.Event()

        def keep_looking() -> None:
            while not done.wait(0.3):
                self.look()

        thread = threading.Thread(target=keep_looking)
        thread.start()
        try:
            function()
        finally:
            done.set()
            thread.join()


@dataclass(frozen=True)
class Canary:
    folder: Folder
    watch: Watch
    url: str  # with the canary
    postgres: Postgres


def url_with_canary(postgres: Postgres) -> str:
    """A database of a user whose password is the canary."""
    url = make_url(postgres.new_database())
    sql = f"CREATE ROLE canary LOGIN PASSWORD '{USER_PASSWORD}';"
    sql += "GRANT ALL ON SCHEMA public TO canary"
    psql = [postgres.bin_dir / "psql", "-h", "127.0.0.1", "-p", str(postgres.port), "-q"]
    subprocess.run(
        [*psql, "-U", "tester", "-d", str(url.database)],
        env={**os.environ, "PGPASSWORD": PASSWORD},
        input=sql,  # not an argument: those are looked at
        text=True,
        check=True,
    )
    server = f"127.0.0.1:{postgres.port}/{url.database}"
    return f"postgresql+psycopg://canary:{quote(USER_PASSWORD, safe='')}@{server}"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Canary:
    """A finished study of two workers whose URL holds the canary, its database once restarted."""
    folder = Folder(
        tmp_path_factory.mktemp("canary"), 12, "study.n_trials=4", "train.max_epochs=3"
    )
    url = url_with_canary(postgres)
    folder.own_env["DEEPFAKE_STUDY_STORAGE"] = url
    watch = Watch(folder.path)

    def run() -> None:
        study = folder.start_afresh("run", "--workers", "2")
        checkpoints = folder.path / "mlruns/checkpoints"
        wait_until(lambda: any(checkpoints.rglob("e*.pt")), "an epoch is trained")
        postgres.stop()
        time.sleep(1)
        postgres.start()
        out, err = study.communicate(timeout=300)
        watch.note("run", out + err)
        assert study.returncode == 0, err

    watch.during(run)
    return Canary(folder, watch, url, postgres)


def test_the_watch_sees_a_password_in_a_file_and_among_the_arguments(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(b"\x00" + CANARY.encode())
    watch = Watch(tmp_path)
    with subprocess.Popen(["sh", "-c", "read line", CANARY], stdin=subprocess.PIPE) as process:
        arguments = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: bool(arguments.read_bytes()), "it has begun")
        watch.look()
    assert sorted(found.split(":")[0] for found in watch.found) == [
        f"/proc/{process.pid}/cmdline",
        f"{tmp_path}/below/file",
    ]


@pytest.mark.slow
def test_a_password_is_in_nothing_that_a_study_writes_or_says(canary: Canary) -> None:
    folder, watch = canary.folder, canary.watch

    def finish() -> None:
        for command in ("status", "sync", "evaluate", "compare", "report", "worker"):
            done = Forked(folder, folder.path / f"{command}.txt", command)
            assert done.wait() == 0, done.said()

    watch.during(finish)
    watch.look()
    logs = "".join(path.read_text() for path in folder.path.rglob("worker-*.log"))
    assert "the study database is away" in logs  # errors of the driver were said, too
    with sqlite3.connect(folder.path / "mlruns/mlflow.db") as tracked:
        watch.note("mlflow.db", "\n".join(tracked.iterdump()))  # a page's end may split it
    watch.note("study database", dump(canary))
    assert (folder.path / "sample.html").exists()
    assert watch.looked_at > 500
    assert watch.found == []


def dump(canary: Canary) -> bytes:
    command = [canary.postgres.bin_dir / "pg_dump", "-h", "127.0.0.1"]
    command += [
        "-p",
        str(canary.postgres.port),
        "-U",
        "tester",
        str(make_url(canary.url).database),
    ]
    env = {**os.environ, "PGPASSWORD": PASSWORD}
    text = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    assert b"fingerprint" in text
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda url: re.sub(r":\d+/", ":1/", url), "refused"),
        (lambda url: f"{url}_not", "does not exist"),
        (lambda url: url.replace("://canary:", "://canary:not-"), "authentication failed"),
        (lambda url: url.replace("://canary", "://nobody"), "authentication failed"),
        (lambda url: url.replace(quote(USER_PASSWORD, safe=""), USER_PASSWORD), ""),
        (lambda url: url.replace("+psycopg", "+nodriver"), "driver is missing"),
    ],
    ids=["server down", "no database", "wrong password", "no user", "unquoted", "no driver"],
)
@pytest.mark.parametrize("command", ["run", "status", "evaluate", "sync"])
def test_a_password_is_not_in_the_line_that_says_what_is_wrong(
    spoil: Callable[[str], str],
    says: str,
    command: str,
    canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(canary.folder.own_env, "DEEPFAKE_STUDY_STORAGE", spoil(canary.url))
    log = canary.folder.path / f"{command}.txt"
    log.unlink(missing_ok=True)
    done = Forked(canary.folder, log, command)
    assert done.wait() == 2, done.said()
    errors = [line for line in done.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.said()
    assert says in errors[0]
    assert "Traceback" not in done.said()
    assert CANARY not in done.said()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["PGPASSFILE", "PGSERVICE"])
def test_libpq_knows_the_password_and_the_url_has_none(
    way: str, tmp_path: Path, postgres: Postgres
) -> None:
    url = make_url(postgres.new_database())
    folder = Folder(tmp_path, 12, "study.n_trials=3", "train.max_epochs=1")
    secret = tmp_path / "secret"
    if way == "PGPASSFILE":
        secret.write_text(f"127.0.0.1:{postgres.port}:{url.database}:tester:{PASSWORD}\n")
        storage = f"postgresql+psycopg://tester@127.0.0.1:{postgres.port}/{url.database}"
        folder.own_env |= {"PGPASSFILE": str(secret), "DEEPFAKE_STUDY_STORAGE": storage}
    else:
        secret.write_text(
            f"[study]\nhost=127.0.0.1\nport={postgres.port}\ndbname={url.database}\n"
            f"user=tester\npassword={PASSWORD}\n"
        )
        folder.own_env |= {"PGSERVICEFILE": str(secret), "PGSERVICE": "study"}
        folder.own_env["DEEPFAKE_STUDY_STORAGE"] = "postgresql+psycopg://"
    secret.chmod(0o600)
    assert folder.call("prepare").returncode == 0
    worker = Forked(folder, tmp_path / "worker.log", "worker")
    assert worker.wait() == 0, worker.said()
    assert folder.json("status")["slots"]["complete"] == 3
    assert PASSWORD not in worker.said()
