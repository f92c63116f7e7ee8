"""The study database: opened by many at once, and its password shown by none."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import storage as optuna_rdb
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from study.config.schema import SearchConfig, StudyConfig, redact
from study.storage import Storage, open_storage, queries as own_trials
from study.storage.connection import exclusive
from study.storage.retry import StorageError
from tests.support.forked import forks
from tests.support.postgres import PASSWORD, Postgres

MakeConfig = Callable[..., StudyConfig]


def open_and_count(search: SearchConfig) -> int:
    return len(open_storage(search).get_all_studies())


@pytest.mark.slow
def test_processes_that_open_an_empty_database_together_all_succeed(
    make_config: MakeConfig, storage_url: str, tmp_path: Path
) -> None:
    (tmp_path / "study.db").unlink(missing_ok=True)  # its tables are to be created
    search = make_config(storage=storage_url).study
    with ProcessPoolExecutor(8, mp_context=forks()) as pool:
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


def test_who_only_reads_holds_up_no_writer(make_config: MakeConfig) -> None:
    storage = open_storage(make_config().study)
    optuna.create_study(study_name="sample", storage=storage)
    begun: list[str] = []

    @event.listens_for(storage.engine, "before_cursor_execute")
    def listen(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    storage.get_all_studies()
    storage.get_all_trials(1)
    storage.set_study_user_attr(1, "key", "value")
    storage.add_slot_trials(1, [slot_trial(0)])
    storage.get_trial(1)
    storage.claim(1, "host:1", "token")
    immediate = "BEGIN IMMEDIATE"
    assert begun == ["BEGIN", "BEGIN", immediate, immediate, "BEGIN", immediate]


def count_up(path: Path, url: str) -> None:
    for _ in range(20):
        with exclusive(url):
            path.write_text(str(int(path.read_text()) + 1))


@pytest.mark.slow
def test_exclusive_is_held_by_one_process_at_a_time(storage_url: str, tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    with ProcessPoolExecutor(4, mp_context=forks()) as pool:
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


@pytest.mark.slow
def test_a_wrong_password_is_not_shown(make_config: MakeConfig, postgres: Postgres) -> None:
    url = postgres.new_database().replace(PASSWORD, "wr0ng-canary")
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        open_storage(make_config(storage=url).study)
    assert "wr0ng-canary" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a folder", "another tool's database"])
def test_a_patient_worker_does_not_wait_for_what_no_waiting_mends(
    kind: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    if kind == "a folder":
        path.mkdir()
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE alembic_version (version_num TEXT)")
            other.execute("INSERT INTO alembic_version VALUES ('theirs')")
    with pytest.raises(StorageError, match=r"study\.storage: sqlite:"):
        open_storage(make_config().study, patient=True)


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


@pytest.fixture
def lose_answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """lose_answers(n): the next n transactions commit, and the client never hears of it."""
    left = 0
    original = optuna_rdb._create_scoped_session

    @contextmanager
    def losing(*arguments: object) -> Iterator[object]:
        nonlocal left
        with original(*arguments) as session:  # type: ignore[arg-type]
            yield session
        if left:
            left -= 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    def lose(n: int) -> None:
        nonlocal left
        left = n

    monkeypatch.setattr(optuna_rdb, "_create_scoped_session", losing)
    return lose


def slot_trial(slot: int, attempt: int = 0) -> FrozenTrial:
    return create_trial(
        state=TrialState.WAITING, user_attrs={"slot": slot, "attempt": attempt, "baseline": None}
    )


@pytest.fixture
def storage(make_config: MakeConfig, storage_url: str) -> Storage:
    opened = open_storage(make_config(storage=storage_url).study)
    optuna.create_study(study_name="sample", storage=opened)
    opened.add_slot_trials(1, [slot_trial(slot) for slot in range(2)])
    return opened


def test_a_claim_whose_answer_was_lost_is_this_workers_and_nobody_elses(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    lose_answers(1)
    assert storage.claim(1, "host:1", "token of host 1") == 1
    assert storage.claim(1, "host:2", "token of host 2") == 2
    assert storage.claim(1, "host:1", "another token") is None
    trial = storage.get_trial(1)
    assert (trial.state, trial.user_attrs["worker"]) == (TrialState.RUNNING, "host:1")


def test_the_lowest_slot_is_claimed_first_whenever_it_was_added(storage: Storage) -> None:
    storage.add_slot_trials(1, [slot_trial(slot, attempt=1) for slot in (10, 9, 0)])
    claimed = []
    while (trial_id := storage.claim(1, "host:1", f"token {len(claimed)}")) is not None:
        claimed.append(storage.get_trial(trial_id).user_attrs["slot"])
    assert claimed == [0, 0, 1, 9, 10]


@pytest.mark.slow
def test_a_claim_does_not_wait_for_that_of_another_worker(
    make_config: MakeConfig, postgres: Postgres
) -> None:
    opened = open_storage(make_config(storage=postgres.new_database()).study)
    optuna.create_study(study_name="sample", storage=opened)
    opened.add_slot_trials(1, [slot_trial(slot) for slot in range(2)])
    with opened.engine.connect() as other:
        other.execute(text("SELECT * FROM trials WHERE trial_id = 1 FOR UPDATE"))
        assert opened.claim(1, "host:1", "token") == 2


def test_trials_are_read_as_optuna_reads_them(storage: Storage) -> None:
    study = optuna.load_study(study_name="sample", storage=storage)
    for loss in (0.5, float("inf")):
        trial = study.ask()  # one that waits
        trial.suggest_float("lr", 1e-5, 1e-2, log=True)
        trial.suggest_categorical("variant", ["cnn", "mobilenet_v2"])
        trial.set_user_attr("reason", None)
        trial.report(0.25, 3)
        trial.report(loss, 1)
        study.tell(trial, loss)
    storage.add_slot_trials(1, [create_trial_with_a_history()])
    optunas = optuna_rdb.RDBStorage._get_trials(storage, 1, None, set(), -1)
    own = storage._get_trials(1, None, set(), -1)
    assert own == optunas
    assert [t.number for t in own] == [0, 1, 2]
    assert storage.get_all_trials(1, states=(TrialState.COMPLETE,)) == optunas[:2]


def create_trial_with_a_history() -> FrozenTrial:
    return create_trial(
        state=TrialState.WAITING,
        user_attrs={"slot": 2, "attempt": 1, "baseline": "cnn"},
        system_attrs={"fixed_params": {"lr": 1e-3}},
        intermediate_values={0: 0.7, 1: float("inf")},
    )


def test_a_trial_that_waits_is_read_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*seen: int, finished: int = -1) -> list[int]:
        return [trial._trial_id for trial in storage._get_trials(1, None, {*seen}, finished)]

    assert read(1, 2) == []
    storage.add_slot_trials(1, [slot_trial(slot) for slot in (2, 3)])
    monkeypatch.setattr(own_trials, "AT_ONCE", 1)
    assert read(1, 2) == [3, 4]
    storage.claim(1, "host:1", "token")
    assert read(1, 2, 3, 4) == [1]
    assert read(1, 2, 3, 4) == [1]  # as long as it runs, each time
    storage.set_trial_state_values(1, TrialState.COMPLETE, [0.5])
    assert read(1, 2, 3, 4) == [1]
    assert read(2, 3, 4, finished=1) == []


def test_a_slot_added_with_its_answer_lost_is_there_once(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    lose_answers(2)
    storage.add_slot_trials(1, [slot_trial(2)])
    storage.add_slot_trials(1, [slot_trial(1), slot_trial(1, attempt=1)])  # the first is there
    found = [(t.user_attrs["slot"], t.user_attrs["attempt"]) for t in storage.get_all_trials(1)]
    assert found == [(0, 0), (1, 0), (2, 0), (1, 1)]


def test_a_slot_appended_with_its_answer_lost_is_there_once_and_counted(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    lose_answers(2)
    assert storage.append_slot(1, slot_trial(7), "n_trials", "token") == 2  # behind 0 and 1
    assert storage.append_slot(1, slot_trial(7), "n_trials", "another token") == 3
    assert [t.user_attrs["slot"] for t in storage.get_all_trials(1)] == [0, 1, 2, 3]
    assert (storage.study_attr(1, "n_trials"), storage.study_attr(1, "none")) == (4, None)


def test_an_end_told_with_its_answer_lost_stands(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    storage.claim(1, "host:1", "token")
    lose_answers(1)
    assert storage.set_trial_state_values(1, TrialState.COMPLETE, [0.5])
    assert storage.get_trial(1).value == 0.5


def test_an_end_told_too_late_is_refused_though_an_answer_was_lost(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try never arrived, and before the second the slot was given up."""
    storage.claim(1, "host:1", "token")
    tell = optuna_rdb.RDBStorage.set_trial_state_values
    tries = iter([OperationalError("BEGIN", {}, Exception("connection refused"))])

    def first_lost(self: Storage, trial_id: int, state: TrialState, values: object = None) -> bool:
        if (error := next(tries, None)) is not None:
            tell(self, trial_id, TrialState.FAIL)  # by another worker
            raise error
        return tell(self, trial_id, state, values)  # type: ignore[arg-type]

    monkeypatch.setattr(optuna_rdb.RDBStorage, "set_trial_state_values", first_lost)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(1, TrialState.COMPLETE, [0.5])
    assert storage.get_trial(1).state == TrialState.FAIL


def test_reports_attributes_and_beats_may_lose_their_answers(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    storage.claim(1, "host:1", "token")
    for write in (
        lambda: storage.set_trial_intermediate_value(1, 0, 0.7),
        lambda: storage.set_trial_user_attr(1, "reason", "none"),
        lambda: storage.set_study_user_attr(1, "key", "value"),
        lambda: storage.set_study_attr_once(1, "id", "first"),
        lambda: storage.beat(1),
    ):
        lose_answers(1)
        write()
    assert storage.set_study_attr_once(1, "id", "second") == "first"
    trial = storage.get_trial(1)
    assert (trial.intermediate_values, trial.user_attrs["reason"]) == ({0: 0.7}, "none")
    assert storage.get_study_user_attrs(1) == {"key": "value", "id": "first"}


def test_a_study_created_with_its_answer_lost_is_there_once(
    storage: Storage, lose_answers: Callable[[int], None]
) -> None:
    lose_answers(1)
    optuna.create_study(study_name="other", storage=storage, load_if_exists=True)
    assert [study.study_name for study in storage.get_all_studies()] == ["sample", "other"]


def test_a_beat_for_a_trial_that_is_over_says_so(storage: Storage) -> None:
    storage.claim(1, "host:1", "token")
    assert storage.beat(1)
    storage.set_trial_state_values(1, TrialState.FAIL)
    assert not storage.beat(1)


@pytest.mark.slow
def test_a_session_keeps_utc_and_loses_a_transaction_that_hangs(
    make_config: MakeConfig, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    opened = open_storage(make_config(storage=postgres.new_database()).study)
    with opened.engine.connect() as connection:
        for setting, value in (
            ("timezone", "UTC"),
            ("idle_in_transaction_session_timeout", "1min"),
        ):
            assert connection.execute(text(f"SHOW {setting}")).scalar() == value
