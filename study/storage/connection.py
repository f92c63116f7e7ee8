"""The SQL under a study: how it is connected to, locked, and spoken of without its password."""

import fcntl
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url

from deepfake.errors import one_line

SQLITE_BUSY_S = 60  # a writer waits this long for another's transaction
_ADVISORY_LOCK = 0x6465_6570  # any constant: one lock for all that create tables or open test
_WEIGHTS_LOCK = 0x6465_6571  # with a study's id: of each study
_CLIENT = {  # of PostgreSQL's driver: a server that vanished is noticed in a minute, not in hours
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # ms
}
_SESSION = (
    "SET TIME ZONE 'UTC'",  # leases are compared without a zone, and PGTZ would set one
    # a frozen worker must not hold its row locks
    "SET idle_in_transaction_session_timeout = '60s'",
)


def has_tables(url: str) -> bool:
    engine = sqlalchemy.create_engine(url, **engine_kwargs(url))
    try:
        # what Optuna writes last
        if not sqlalchemy.inspect(engine).has_table("alembic_version"):
            return False
        with engine.connect() as connection:
            version = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            return version.first() is not None
    finally:
        engine.dispose()


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """One process at a time, on every machine that shares the database; freed when it dies."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        with FileLock(parsed.database + ".lock"):
            yield
        return
    engine = sqlalchemy.create_engine(url, **engine_kwargs(url))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_ADVISORY_LOCK)))
            yield  # the lock ends with the connection
    finally:
        engine.dispose()


@contextmanager
def weights_lock(url: str, study_id: str, *, alone: bool) -> Iterator[bool]:
    """A study's weights, held by all who read them or by the one who removes some; whether held.

    Readers wait for the one; who wants to be alone does not wait. Freed when its holder dies.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        how = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
        with Path(f"{parsed.database}.{study_id[:8]}.lock").open("w") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                yield False
            else:
                yield True
        return
    locks = sqlalchemy.func
    lock = locks.pg_try_advisory_lock if alone else locks.pg_advisory_lock_shared
    key = (_WEIGHTS_LOCK, int(study_id[:7], 16))
    engine = sqlalchemy.create_engine(url, **engine_kwargs(url))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            held = connection.execute(sqlalchemy.select(lock(*key))).scalar_one()
            yield held is not False  # who waits is told nothing
    finally:
        engine.dispose()


def engine_kwargs(url: str) -> dict[str, Any]:
    match make_url(url).get_backend_name():
        case "sqlite":
            return {"connect_args": {"timeout": SQLITE_BUSY_S}}
        case "postgresql":
            return {"pool_pre_ping": True, "connect_args": _CLIENT}
        case other:
            raise ValueError(f"{other} is neither sqlite nor postgresql+psycopg")


def make_safe(engine: sqlalchemy.Engine, only_reads: Callable[[], bool]) -> None:
    """What Optuna does not ask of a database that many workers share.

    only_reads: whether the transaction that this thread begins writes nothing.
    """
    match engine.dialect.name:
        case "sqlite":
            _make_sqlite_safe(engine, only_reads)
        case _:
            _make_postgres_safe(engine)


def _make_postgres_safe(engine: sqlalchemy.Engine) -> None:
    @sqlalchemy.event.listens_for(engine, "connect")
    def _settle(connection: Any, _: object) -> None:
        connection.autocommit = True  # or a rollback takes the settings back
        for setting in _SESSION:
            connection.execute(setting)
        connection.autocommit = False

    engine.dispose()  # connections made before the event


def _make_sqlite_safe(engine: sqlalchemy.Engine, only_reads: Callable[[], bool]) -> None:
    """Let claims be atomic: SQLite ignores Optuna's SELECT ... FOR UPDATE.

    Without it, 8 processes ran 18 waiting trials 38 times. BEGIN IMMEDIATE takes the write lock
    before the state of a trial is read; a reader takes none: frozen, it would hold up everybody.
    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _own_transactions(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # or the driver begins on its own, and too late

    @sqlalchemy.event.listens_for(engine, "begin")
    def _lock_first(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if only_reads() else "BEGIN IMMEDIATE")

    engine.dispose()  # connections made before the events
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode=WAL")  # readers and the writer don't wait
    finally:
        raw.close()


def reason_of(url: str, error: BaseException) -> str:
    """One line from the driver's error, without the URL's password."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    reason = one_line(getattr(cause, "orig", None) or cause, None)  # cut when nothing is secret
    if isinstance(error, ImportError | sqlalchemy.exc.NoSuchModuleError):
        reason = (
            "its driver is missing: pip install 'deepfake-study[postgres]', and write "
            "postgresql+psycopg://"
        )
    for part in _secrets(url):
        reason = reason.replace(part, "***")
    return reason[:300]


def _secrets(url: str) -> list[str]:
    """Pieces of the URL that may be a password, however it was quoted; longest first."""
    userinfo = re.match(r"[^:]+:/*(.*)@", url)
    options = re.findall(r"password=([^&]*)", url)
    pieces = [*re.split(r"[@:/]", userinfo[1]), userinfo[1]] if userinfo else []
    user = pieces[0] if len(pieces) > 2 else None
    found = {piece for piece in [*pieces, *options] if len(piece) > 1 and piece != user}
    return sorted(found, key=len, reverse=True)
