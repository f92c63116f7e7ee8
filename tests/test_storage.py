"""The study database: opened by many at once, and its password shown by none."""

import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy import text

from study.config import SearchConfig, StudyConfig, redact
from study.storage import StorageError, exclusive, open_storage
from tests.postgres import PASSWORD, Postgres

MakeConfig = Callable[..., StudyConfig]


def open_and_count(search: SearchConfig) -> int:
    return len(open_storage(search).get_all_studies())


@pytest.mark.slow
def test_processes_that_open_an_empty_database_together_all_succeed(
    make_config: MakeConfig, storage_url: str
) -> None:
    search = make_config(storage=storage_url).study
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(open_and_count, [search] * 8)) == [0] * 8


def test_an_sqlite_transaction_takes_the_write_lock_before_it_reads(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    storage = open_storage(make_config().study)
    with storage.engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM trials"))  # a read opens the transaction
        other = sqlite3.connect(tmp_path / "study.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def count_up(path: Path, url: str) -> None:
    for _ in range(20):
        with exclusive(url):
            path.write_text(str(int(path.read_text()) + 1))


@pytest.mark.slow
def test_exclusive_is_held_by_one_process_at_a_time(storage_url: str, tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(count_up, [path] * 4, [storage_url] * 4))
    assert path.read_text() == "80"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://me:{pw}@127.0.0.1:1/db", "refused"),
        ("postgresql+psycopg://me:{pw}/x@y@127.0.0.1:1/db", "can't be opened"),  # badly quoted
        ("postgresql+psycopg://me@127.0.0.1:1/db?password={pw}", "refused"),
        ("postgresql+psycopg://me:{pw}@127.0.0.1:none/db", "can't be opened"),
        ("mysql://me:{pw}@127.0.0.1/db", "mysql is neither sqlite nor postgresql"),
        ("postgresql+nodriver://me:{pw}@127.0.0.1/db", "driver is missing"),
        ("{pw}", "Could not parse"),
        ("sqlite:///:memory:", "can't be shared"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_the_password(
    url: str, message: str, make_config: MakeConfig
) -> None:
    search = make_config(storage=url.format(pw=PASSWORD)).study
    with pytest.raises(StorageError, match=re.escape(message)) as caught:
        open_storage(search)
    if url != "{pw}":  # without a scheme nothing says that it is a password
        assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_not_shown(make_config: MakeConfig, postgres: Postgres) -> None:
    url = postgres.new_database().replace(PASSWORD, "wr0ng-canary")
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        open_storage(make_config(storage=url).study)
    assert "wr0ng-canary" not in str(caught.value)


def test_looking_at_a_study_creates_no_database(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no study was started here yet"):
        open_storage(make_config().study, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(make_config: MakeConfig) -> None:
    config = make_config("study.storage=sqlite:////proc/nowhere/study.db")
    with pytest.raises(StorageError, match="/proc/nowhere"):
        open_storage(config.study)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://***@host:5432/db"),
        ("postgresql+psycopg://me:se@cret@host/db", "postgresql+psycopg://***@host/db"),
        ("postgresql+psycopg://host/db?password=secret", "postgresql+psycopg://host/db"),
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("postgresql+psycopg:/me:secret@host/db", "postgresql+psycopg:/***@host/db"),
        ("postgresql:me:secret@host/db", "postgresql:***@host/db"),
    ],
)
def test_a_redacted_url_says_where_and_never_who(url: str, shown: str) -> None:
    assert redact(url) == shown
