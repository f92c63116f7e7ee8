"""The only module that opens the Optuna storage: SQLite made safe for many writers, PostgreSQL."""

import functools
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from deepfake.errors import one_line
from study.config import SearchConfig, redact
from study.storage.connection import engine_kwargs, exclusive, has_tables, make_safe, reason_of
from study.storage.private import models, transaction
from study.storage.queries import (
    AT_ONCE,
    add_waiting,
    attempts_of,
    changed_trials,
    claimed_with,
    count_slots,
    first_waiting,
    next_slot,
    slot_with,
    study_attributes,
)
from study.storage.retry import (
    OUTAGE_S,
    NoDatabase,
    Patience,
    StorageAway,
    StorageError,
    is_final,
    is_outage,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is the live view's job
warnings.filterwarnings("ignore", message="Argument ``heartbeat_interval`` is an experimental")

T = TypeVar("T")


class _Reading(threading.local):
    """Whether this thread is in a call that only reads."""

    on = False


class Storage(RDBStorage):
    """Optuna's storage, each of whose calls outlives an outage of the database.

    A call whose answer was lost is settled, not repeated blindly: claims carry a token, a slot's
    trial is added only if it is not there, a state that was told is recognised; everything else
    writes the same value again. After OUTAGE_S a call raises StorageAway.
    """

    def __init__(
        self, search: SearchConfig, patience: Patience, *, skip_table_creation: bool
    ) -> None:
        url = search.storage.get_secret_value()
        super().__init__(
            url,
            engine_kwargs=engine_kwargs(url),
            heartbeat_interval=search.heartbeat_s,
            grace_period=search.lease_s,
            skip_table_creation=skip_table_creation,
        )
        self.patience = patience
        self.lease_s = search.lease_s
        self.reading = _Reading()
        make_safe(self.engine, lambda: self.reading.on)  # here: RDBStorage made the engine

    def claim(self, study_id: int, worker: str, token: str) -> int | None:
        """Make the study's first waiting slot this worker's, with its first heartbeat.

        Its trial's id, or None if no slot waits. One transaction: a worker killed at any moment
        leaves it waiting, or with its name on it. token: new for each claim; a second try
        recognises the first by it.
        """
        tries = itertools.count()

        def write() -> int | None:
            with transaction(self) as session:
                if next(tries) and (mine := claimed_with(session, study_id, token)):
                    return int(mine.trial_id)
                trial = first_waiting(session, study_id)
                if trial is None:
                    return None
                trial_id = int(trial.trial_id)
                trial.state = TrialState.RUNNING
                trial.datetime_start = datetime.now()
                attribute = models.TrialUserAttributeModel
                for key, value in (("worker", worker), ("claim", token)):
                    said = json.dumps(value)
                    session.add(attribute(trial_id=trial_id, key=key, value_json=said))
                _beat(session, trial_id)
            return trial_id

        return self._outlive(write)

    def beat(self, trial_id: int) -> bool:
        """Prolong the lease by the database's clock; False if the trial is over."""

        def write() -> bool:
            with transaction(self) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
                if trial.state != TrialState.RUNNING:
                    return False
                _beat(session, trial_id)
            return True

        return self._outlive(write)

    def give_up(self, trial_id: int, *, if_silent: bool) -> None:
        """End a running trial for its worker; if_silent: unless it has beaten by now."""

        def write() -> None:
            with transaction(self) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                if trial.state != TrialState.RUNNING:
                    return
                beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session, True)
                if if_silent and beat is not None and not self._is_over(beat, _now(session)):
                    return
                trial.state = TrialState.FAIL
                trial.datetime_complete = datetime.now()

        self._outlive(write)

    def stale_trials(self, study_id: int) -> list[int]:
        """Running trials whose lease is over, by the database's clock."""
        trial, beat = models.TrialModel, models.TrialHeartbeatModel
        with transaction(self) as session:
            running = session.query(beat).join(trial, trial.trial_id == beat.trial_id)
            running = running.filter(trial.study_id == study_id, trial.state == TrialState.RUNNING)
            now = _now(session)
            beats = running.order_by(beat.trial_id)
            return [int(beat.trial_id) for beat in beats if self._is_over(beat, now)]

    def _is_over(self, beat: models.TrialHeartbeatModel, now: datetime) -> bool:
        return bool(now - beat.heartbeat > timedelta(seconds=self.lease_s))

    def add_slot_trials(
        self, study_id: int, trials: Sequence[FrozenTrial], counted_by: str | None = None
    ) -> None:
        """Add waiting trials, but none of a slot and attempt that is there.

        counted_by: as append_slot has it, in the same transactions as the slots.
        """
        for start in range(0, len(trials), AT_ONCE):
            part = trials[start : start + AT_ONCE]
            self._outlive(functools.partial(self._add_slot_trials, study_id, part, counted_by))

    def _add_slot_trials(
        self, study_id: int, trials: Sequence[FrozenTrial], counted_by: str | None
    ) -> None:
        with transaction(self) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            slots = [trial.user_attrs["slot"] for trial in trials]
            there = attempts_of(session, study_id, slots)
            missing = [
                trial
                for trial in trials
                if (trial.user_attrs["slot"], trial.user_attrs["attempt"]) not in there
            ]
            if missing:
                add_waiting(session, study_id, missing)
            if counted_by is not None:
                count_slots(session, study_id, counted_by, max(slots) + 1)

    def append_slot(self, study_id: int, trial: FrozenTrial, counted_by: str, token: str) -> int:
        """Add a waiting trial as the study's next slot; its number.

        counted_by: the study's attribute that then says at least so many slots, in the same
        transaction: a worker that saw one without the other would fill that slot itself, or
        refuse the study. token: new for each slot; a second try recognises the first by it.
        """
        tries = itertools.count()

        def write() -> int:
            with transaction(self) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                mine = slot_with(session, study_id, "token", token) if next(tries) else None
                if mine is not None:
                    return mine
                number = next_slot(session, study_id)
                trial.user_attrs |= {"slot": number, "token": token}
                add_waiting(session, study_id, [trial])
                count_slots(session, study_id, counted_by, number + 1)
            return number

        return self._outlive(write)

    def study_attr(self, study_id: int, key: str) -> Any:
        """One attribute of the study, without the run of every slot; None if it has none."""
        with transaction(self) as session:
            study = models.StudyModel.find_or_raise_by_id(study_id, session)
            known = models.StudyUserAttributeModel.find_by_study_and_key(study, key, session)
            return None if known is None else json.loads(str(known.value_json))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        with transaction(self) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            return study_attributes(session, study_id)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """As Optuna's, but without included trials that wait: they are as they were."""
        with transaction(self) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            found = changed_trials(session, study_id, included_trial_ids, trial_id_greater_than)
        return [trial for trial in found if states is None or trial.state in states]

    def set_study_attr_once(self, study_id: int, key: str, value: Any) -> Any:
        """The study's attribute: value if it had none, else what it has."""

        def write() -> Any:
            with transaction(self) as session:
                model = models.StudyUserAttributeModel
                study = models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                known = model.find_by_study_and_key(study, key, session)
                if known is not None:
                    return json.loads(str(known.value_json))
                session.add(model(study_id=study_id, key=key, value_json=json.dumps(value)))
            return value

        return self._outlive(write)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        tries = itertools.count()

        def write() -> bool:
            again = next(tries) > 0
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                # a trial is one worker's: if it ended as we told, the answer to a try was lost
                if again and RDBStorage.get_trial(self, trial_id).state == state:
                    return True
                raise

        return self._outlive(write)

    def _outlive(self, call: Callable[[], T]) -> T:
        try:
            return self.patience.call(call, lambda error: reason_of(self.url, error))
        except StorageAway as error:
            raise StorageAway(
                f"study.storage: {redact(self.url)}: {error}; start the command again when it is "
                "back: nothing is lost"
            ) from None


def _now(session: Session) -> datetime:
    """By the database's clock, as heartbeats are written."""
    now: datetime = session.execute(sqlalchemy.func.now()).scalar_one()
    return now.replace(tzinfo=None)  # PostgreSQL's has one


def _beat(session: Session, trial_id: int) -> None:
    beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session, True)
    if beat is None:
        session.add(models.TrialHeartbeatModel(trial_id=trial_id))
    else:
        beat.heartbeat = sqlalchemy.func.current_timestamp()


def _outliving(name: str, *, reads: bool) -> Callable[..., Any]:
    method = getattr(Storage, name)  # RDBStorage's, or our own in its place

    @functools.wraps(method)
    def outliving(self: Storage, *arguments: Any, **more: Any) -> Any:
        self.reading.on = reads
        try:
            return self._outlive(lambda: method(self, *arguments, **more))
        finally:
            self.reading.on = False

    return outliving


_READS = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "study_attr",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "_get_trials",
    "stale_trials",
)
# They may be repeated: they leave the same. create_new_study, too: Optuna loads a study that is
# there. Not create_new_trial: slots are added by add_slot_trials.
_WRITES = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)
for _name in (*_READS, *_WRITES):
    setattr(Storage, _name, _outliving(_name, reads=_name in _READS))


def open_storage(
    search: SearchConfig,
    *,
    create: bool = True,
    patient: bool = False,
    hurried: Callable[[], bool] = lambda: False,
) -> Storage:
    """The storage of study.storage, its tables created by one process however many open it.

    create=False: an SQLite file must be there. patient: wait for a database that is away, as
    calls do later; else say so at once. hurried: see Patience. Raises StorageError, which never
    shows a password.
    """
    url = search.storage.get_secret_value()
    waiting = Patience(OUTAGE_S if patient else 0.0, hurried)
    with _opening(url, create):
        if make_url(url).get_backend_name() == "sqlite":
            _check_sqlite_file(url, create)
        return waiting.call(
            lambda: _open(search, Patience(OUTAGE_S, hurried)), lambda error: reason_of(url, error)
        )


def check_storage(search: SearchConfig) -> None:
    """Before hours of work: raises StorageError as open_storage would. Creates no tables."""
    url = search.storage.get_secret_value()
    with _opening(url, create=True):
        if make_url(url).get_backend_name() == "sqlite":
            file = _check_sqlite_file(url, create=True)
            if not file.exists():  # asking SQLite would create it
                TemporaryFile(dir=file.parent).close()
                return
        has_tables(url)


@contextmanager
def _opening(url: str, create: bool) -> Iterator[None]:
    """Whatever a database can't be opened for is a StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        if create:
            raise StorageError(_cannot_open(url, str(error))) from None
        raise NoDatabase(
            f"no study was started here yet: {redact(url)} is not there; start it with: "
            "deepfake-study run CONFIG"
        ) from None
    except StorageAway as error:
        raise StorageError(_cannot_open(url, str(error))) from None
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, OSError) as error:
        raise StorageError(_cannot_open(url, reason_of(url, error))) from None
    except RuntimeError as error:  # Optuna's: the schema is another release's
        raise StorageError(f"study.storage: {redact(url)}: {one_line(error)}") from None


def _open(search: SearchConfig, patience: Patience) -> Storage:
    try:
        if has_tables(search.storage.get_secret_value()):
            return Storage(search, patience, skip_table_creation=True)
        with exclusive(search.storage.get_secret_value()):
            return Storage(search, patience, skip_table_creation=False)
    except (SQLAlchemyError, StorageInternalError) as error:
        if not is_outage(error) or is_final(error):
            raise ValueError(reason_of(search.storage.get_secret_value(), error)) from None
        raise


def _check_sqlite_file(url: str, create: bool) -> Path:
    database = make_url(url).database
    if not database or database == ":memory:":
        raise ValueError("a study in memory can't be shared by workers; name a file")
    file = Path(database)
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        raise FileNotFoundError(database)
    return file


def _cannot_open(url: str, reason: str) -> str:
    opened = f"study.storage: {redact(url)} can't be opened"
    if "driver is missing" in reason:
        return f"{opened}: {reason}"
    if url.startswith("sqlite"):
        return f"{opened} ({reason}); give sqlite:///path of a file that can be written"
    return (
        f"{opened} ({reason}); check that the server runs and that the URL is sqlite:///path or "
        "postgresql+psycopg://user@host/database"
    )
