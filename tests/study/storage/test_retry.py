import itertools
import logging
import random
import socket
import sqlite3
import threading
import traceback

import pytest
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
)

from deepfake.errors import UserError
from study.storage import retry as outage
from study.storage.retry import Patience, StorageAway, is_final, is_outage

SECRET = "c4nary-p4ssword"


def of_driver(kind, words="server closed the connection", **settings):
    """An error of SQLAlchemy's, as it wraps one of a driver's."""
    return kind("UPDATE trials", {}, sqlite3.DatabaseError(words), **settings)


def of_optuna(cause):
    """What Optuna's storage makes of an error of the database's."""
    try:
        raise StorageInternalError("An exception is raised during the commit.") from cause
    except StorageInternalError as error:
        return error


GONE = of_driver(OperationalError)


class Database:
    """Fails once with each of the errors, then answers; then="for ever" fails with the last."""

    def __init__(self, *errors, then="answers"):
        self.calls = 0
        self._errors = iter(errors)
        self._last = errors[-1] if then == "for ever" else None

    def __call__(self):
        self.calls += 1
        error = next(self._errors, self._last)
        if error is not None:
            raise error
        return f"answer {self.calls}"


def patience(limit_s=300.0, hurried=lambda: False):
    return Patience(limit_s, hurried)


def explain(error):
    return "the reason"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def _endless_waits(monkeypatch):
    """Each wait is of days, unless something cuts it short."""
    random.seed(0)  # waits are drawn, from 0 up
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 1e7)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 1e7)


# trying again


def test_a_call_that_succeeds_is_made_once_and_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    database, waiting = Database(), patience()
    assert waiting.call(database, explain) == "answer 1"
    assert (database.calls, waiting.outages) == (1, 0)
    assert caplog.text == ""


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_a_call_is_tried_again_until_the_database_answers(failures, caplog):
    caplog.set_level(logging.INFO)
    database, waiting = Database(*[GONE] * failures), patience()
    assert waiting.call(database, explain) == f"answer {failures + 1}"
    assert waiting.outages == failures
    # an outage is said once, and its end
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    away, back = caplog.messages
    assert away == "the study database is away (the reason): trying again"
    assert back.startswith("the study database is back after ")


def test_what_explains_the_outage_is_given_the_error():
    seen = []
    patience().call(Database(GONE), lambda error: seen.append(error) or "the reason")
    assert seen == [GONE]


def test_a_database_that_is_locked_for_a_while_gets_the_write_in_the_end(tmp_path):
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/study.db", connect_args={"timeout": 0}
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE trials (number INTEGER)")
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tries = itertools.count(1)

    def write():
        if next(tries) == 3:
            other.execute("COMMIT")
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO trials VALUES (7)")

    waiting = patience()
    waiting.call(write, explain)
    assert waiting.outages == 2
    assert other.execute("SELECT number FROM trials").fetchall() == [(7,)]
    other.close()
    engine.dispose()


# giving up


@pytest.mark.timeout(60)
def test_a_database_that_stays_away_is_given_up_at_the_limit():
    database, waiting = Database(GONE, then="for ever"), patience(limit_s=0.1)
    with pytest.raises(StorageAway, match=r"^away for \d+ s: the reason$") as caught:
        waiting.call(database, explain)
    assert isinstance(caught.value, UserError)
    assert waiting.outages == database.calls  # each try was a failed call


def test_without_patience_a_call_is_tried_once(caplog):
    database, waiting = Database(GONE), patience(limit_s=0.0)
    with pytest.raises(StorageAway):
        waiting.call(database, explain)
    assert (database.calls, waiting.outages) == (1, 1)
    assert caplog.text == ""  # the error says it


@pytest.mark.timeout(60)
def test_a_limit_that_is_lowered_while_a_call_waits_ends_it():
    def impatient_from_the_fifth_call_on():
        if database.calls == 4:
            waiting.limit_s = 0.0
        database()

    database, waiting = Database(GONE, then="for ever"), patience()
    with pytest.raises(StorageAway):
        waiting.call(impatient_from_the_fifth_call_on, explain)
    assert (database.calls, waiting.outages) == (5, 5)
    waiting.limit_s = 300.0
    assert waiting.call(Database(GONE), explain) == "answer 2"


def test_what_the_driver_said_is_shown_by_explain_alone(caplog):
    # a driver's words may hold the URL, and the URL a password
    telling = of_driver(OperationalError, f"could not connect to user:{SECRET}@host")
    database = Database(telling, then="for ever")
    with pytest.raises(StorageAway) as caught:
        patience(hurried=lambda: database.calls == 3).call(database, explain)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "trying again" in caplog.text
    assert SECRET not in caplog.text


# in a hurry


def test_in_a_hurry_from_the_start_a_call_is_tried_once():
    database = Database(GONE)
    with pytest.raises(StorageAway):
        patience(hurried=lambda: True).call(database, explain)
    assert database.calls == 1
    assert patience(hurried=lambda: True).call(Database(), explain) == "answer 1"


def test_a_hurry_that_begins_between_two_tries_ends_the_call():
    database = Database(GONE, then="for ever")
    with pytest.raises(StorageAway):
        patience(hurried=lambda: database.calls == 3).call(database, explain)
    assert database.calls == 3


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("_endless_waits")
def test_a_hurry_that_begins_within_a_wait_ends_it_at_once_with_a_last_try():
    def hurry_in_a_wait():
        asked.append(database.calls)
        return len(asked) > 3

    for errors, then in (((GONE,), "answers"), ((GONE,), "for ever")):
        asked, database = [], Database(*errors, then=then)
        waiting = patience(hurried=hurry_in_a_wait)
        if then == "answers":
            assert waiting.call(database, explain) == "answer 2"
        else:
            with pytest.raises(StorageAway):
                waiting.call(database, explain)
        assert database.calls == 2
        assert asked[:4] == [1] * 4  # once before the wait, then in it


# several threads


@pytest.mark.timeout(60)
def test_a_call_that_waits_does_not_hold_up_those_of_other_threads():
    back, tried = threading.Event(), threading.Event()

    def away():
        if not back.is_set():
            tried.set()
            raise GONE
        return "back"

    waiting, answers = patience(), []
    thread = threading.Thread(target=lambda: answers.append(waiting.call(away, explain)))
    thread.start()
    tried.wait()
    assert waiting.call(Database(GONE), explain) == "answer 2"
    assert thread.is_alive()
    back.set()
    thread.join()
    assert answers == ["back"]
    assert waiting.outages >= 2


# what is an outage


def locked(tmp_path):
    holder = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        return failure_of(f"sqlite:///{tmp_path}/locked.db", timeout=0)
    finally:
        holder.close()


def refused(tmp_path):
    pytest.importorskip("psycopg")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        return failure_of(f"postgresql+psycopg://user@127.0.0.1:{port}/study")


def failure_of(url, **connect_args):
    """What it raises to write to this database."""
    engine = sqlalchemy.create_engine(url, connect_args=connect_args)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE trials (number INTEGER)")
    except Exception as error:  # noqa: BLE001  # whatever it is, tests look at it
        return error
    finally:
        engine.dispose()
    raise AssertionError(f"{url} took the write")


@pytest.mark.parametrize("real", [locked, refused])
def test_a_database_that_does_not_let_us_in_now_is_an_outage(real, tmp_path):
    error = real(tmp_path)
    assert isinstance(error, OperationalError)
    assert is_outage(error)
    assert is_outage(of_optuna(error))
    assert not is_final(error)


OUTAGES = [
    of_driver(OperationalError),
    of_driver(InterfaceError),
    of_driver(InternalError),
    of_driver(DBAPIError, connection_invalidated=True),
    of_driver(ProgrammingError, connection_invalidated=True),
    PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
def test_a_lost_connection_is_tried_again_however_it_is_said(error):
    for said in (error, of_optuna(error), of_optuna(of_optuna(error)), of_optuna(None)):
        assert patience().call(Database(said), explain) == "answer 2"


OTHERS = [
    of_driver(IntegrityError),
    of_driver(ProgrammingError),
    of_driver(DataError),
    of_driver(DBAPIError),
    of_optuna(of_driver(IntegrityError)),
    of_optuna(ValueError("a value")),
    UpdateFinishedTrialError("Trial#3 has already finished and can not be updated."),
    DuplicatedStudyError("study"),
    KeyError("no such study"),
    OSError("disk"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("outages", [0, 2])
def test_other_errors_pass_through_as_they_are_and_at_once(error, outages):
    database, waiting = Database(*[GONE] * outages, error), patience()
    with pytest.raises(type(error)) as caught:
        waiting.call(database, explain)
    assert caught.value is error
    assert (database.calls, waiting.outages) == (outages + 1, outages)


def test_a_service_that_nobody_defined_is_no_outage(monkeypatch, tmp_path):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "pg_service.conf"))
    (tmp_path / "pg_service.conf").write_text("[study]\nhost=127.0.0.1\n")
    assert is_final(failure_of("postgresql+psycopg:///study?service=other"))


@pytest.mark.parametrize(
    "words",
    [
        'FATAL:  password authentication failed for user "eve"',
        'FATAL:  database "study" does not exist',
        'FATAL:  role "eve" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "eve", database "study"',
        'could not translate host name "nowhere" to address: Name or service not known',
        "failed to resolve host 'nowhere': [Errno -2] Name or service not known",
        "fe_sendauth: no password supplied",
    ],
)
def test_no_waiting_lets_us_in_where_the_server_said_no(words):
    error = of_driver(OperationalError, words)
    assert is_outage(error)
    assert is_final(error)


@pytest.mark.parametrize(
    "words",
    [
        "connection refused",
        "failed to resolve host 'study-db': [Errno -3] Temporary failure in name resolution",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "server closed the connection unexpectedly",
        "database is locked",
    ],
)
def test_a_later_try_may_get_in_where_the_server_said_not_now(words):
    assert not is_final(of_driver(OperationalError, words))
