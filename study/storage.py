"""The only module that opens the Optuna storage: SQLite made safe for many writers, PostgreSQL."""

import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from deepfake.config import UserError
from study.config import SearchConfig, redact

optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is the live view's job
warnings.filterwarnings("ignore", message="Argument ``heartbeat_interval`` is an experimental")

SQLITE_BUSY_S = 60  # a writer waits this long for another's transaction
_ADVISORY_LOCK = 0x6465_6570  # any constant: one lock for all that create or repair
_OPEN_TIMEOUT_S = 10


class StorageError(UserError):
    """The study database can't be opened."""


def open_storage(search: SearchConfig, *, create: bool = True) -> RDBStorage:
    """The storage of study.storage, its tables created by one process however many open it.

    create=False: an SQLite file must be there. Raises StorageError, which never shows a password.
    """
    url = search.storage.get_secret_value()
    try:
        if make_url(url).get_backend_name() == "sqlite":
            _check_sqlite_file(url, create)
        with exclusive(url):
            # an SQLite of our own events can't be given to RDBStorage: they join below
            storage = RDBStorage(
                url,
                engine_kwargs=_engine_kwargs(url),
                heartbeat_interval=search.heartbeat_s,
                grace_period=search.lease_s,
            )
            if storage.engine.dialect.name == "sqlite":
                _make_sqlite_safe(storage.engine)
    except FileNotFoundError:
        raise StorageError(
            f"no study was started here yet: {redact(url)} is not there; start it with: "
            "deepfake-study run CONFIG"
        ) from None
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, OSError) as error:
        raise StorageError(_explain(url, error)) from None
    except RuntimeError as error:  # Optuna's: the schema is another release's
        raise StorageError(
            f"study.storage: {redact(url)}: {' '.join(str(error).split())}"
        ) from None
    return storage


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """One process at a time, on every machine that shares the database; freed when it dies."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        with FileLock(parsed.database + ".lock"):
            yield
        return
    engine = sqlalchemy.create_engine(url, **_engine_kwargs(url))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_ADVISORY_LOCK)))
            yield  # the lock ends with the connection
    finally:
        engine.dispose()


def _engine_kwargs(url: str) -> dict[str, Any]:
    match make_url(url).get_backend_name():
        case "sqlite":
            return {"connect_args": {"timeout": SQLITE_BUSY_S}}
        case "postgresql":
            return {"pool_pre_ping": True, "connect_args": {"connect_timeout": _OPEN_TIMEOUT_S}}
        case other:
            raise ValueError(f"{other} is neither sqlite nor postgresql+psycopg")


def _check_sqlite_file(url: str, create: bool) -> None:
    database = make_url(url).database
    if not database or database == ":memory:":
        raise ValueError("a study in memory can't be shared by workers; name a file")
    if create:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    elif not Path(database).exists():
        raise FileNotFoundError(database)


def _make_sqlite_safe(engine: sqlalchemy.Engine) -> None:
    """Let claims be atomic: SQLite ignores Optuna's SELECT ... FOR UPDATE.

    Without it, 8 processes ran 18 waiting trials 38 times. BEGIN IMMEDIATE takes the write lock
    before the state of a trial is read. https://docs.sqlalchemy.org/en/20/dialects/sqlite.html
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _own_transactions(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # or the driver begins on its own, and too late

    @sqlalchemy.event.listens_for(engine, "begin")
    def _lock_first(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before the events
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode=WAL")  # readers and the writer don't wait
    finally:
        raw.close()


def _explain(url: str, error: Exception) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    reason = " ".join(str(getattr(cause, "orig", None) or cause).split()) or type(cause).__name__
    if isinstance(error, ImportError | sqlalchemy.exc.NoSuchModuleError):
        reason = "its driver is missing; pip install 'deepfake-study[postgres]'"
    for part in _secrets(url):
        reason = reason.replace(part, "***")
    return (
        f"study.storage: {redact(url)} can't be opened ({reason[:300]}); check that the server "
        "runs and that the URL is sqlite:///path or postgresql+psycopg://user@host/database"
    )


def _secrets(url: str) -> list[str]:
    """Pieces of the URL that may be a password, however it was quoted; longest first."""
    userinfo = re.match(r"[^:]+:/*(.*)@", url)
    options = re.findall(r"password=([^&]*)", url)
    pieces = [*re.split(r"[@:/]", userinfo[1]), userinfo[1]] if userinfo else []
    user = pieces[0] if len(pieces) > 2 else None
    found = {piece for piece in [*pieces, *options] if len(piece) > 1 and piece != user}
    return sorted(found, key=len, reverse=True)
