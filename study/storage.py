"""The only module that opens the Optuna storage: SQLite made safe for many writers, PostgreSQL."""

import functools
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from study.config import SearchConfig, redact
from study.database import engine_kwargs, exclusive, has_tables, make_safe, reason_of
from study.outage import OUTAGE_S, Patience, StorageAway, StorageError, is_final, is_outage

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

    def claim(self, trial_id: int, worker: str, token: str) -> bool:
        """Make a waiting trial this worker's, with its first heartbeat; False if it is another's.

        One transaction: a worker killed at any moment leaves it waiting, or with its name on it.
        token: new for each claim; a second try recognises the first by it.
        """

        def write() -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                if trial.state == TrialState.RUNNING:
                    mine = models.TrialUserAttributeModel.find_by_trial_and_key(
                        trial, "claim", session
                    )
                    return mine is not None and str(mine.value_json) == json.dumps(token)
                if trial.state != TrialState.WAITING:
                    return False
                trial.state = TrialState.RUNNING
                trial.datetime_start = datetime.now()
                for key, value in (("worker", worker), ("claim", token)):
                    self._set_trial_attr_without_commit(
                        session, models.TrialUserAttributeModel, trial_id, key, value
                    )
                _beat(session, trial_id)
            return True

        return self._outlive(write)

    def beat(self, trial_id: int) -> bool:
        """Prolong the lease by the database's clock; False if the trial is over."""

        def write() -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
                if trial.state != TrialState.RUNNING:
                    return False
                _beat(session, trial_id)
            return True

        return self._outlive(write)

    def give_up(self, trial_id: int, *, if_silent: bool) -> None:
        """End a running trial for its worker; if_silent: unless it has beaten by now."""

        def write() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session, True)
                if trial.state != TrialState.RUNNING:
                    return
                if if_silent and beat is not None:
                    now = session.execute(sqlalchemy.func.now()).scalar_one().replace(tzinfo=None)
                    if now - beat.heartbeat <= timedelta(seconds=self.lease_s):
                        return
                trial.state = TrialState.FAIL
                trial.datetime_complete = datetime.now()

        self._outlive(write)

    def add_slot_trial(self, study_id: int, trial: FrozenTrial) -> None:
        """Add a waiting trial, unless one of the same slot and attempt is there."""
        wanted = {key: json.dumps(trial.user_attrs[key]) for key in ("slot", "attempt")}

        def write() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                same = session.query(models.TrialModel.trial_id).filter_by(study_id=study_id)
                for key, value in wanted.items():
                    attributes = models.TrialModel.user_attributes
                    same = same.filter(attributes.any(key=key, value_json=value))
                if same.first() is None:
                    self._get_prepared_new_trial(study_id, trial, session)

        self._outlive(write)

    def set_study_attr_once(self, study_id: int, key: str, value: Any) -> Any:
        """The study's attribute: value if it had none, else what it has."""

        def write() -> Any:
            with _create_scoped_session(self.scoped_session) as session:
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


def _beat(session: Session, trial_id: int) -> None:
    beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session, True)
    if beat is None:
        session.add(models.TrialHeartbeatModel(trial_id=trial_id))
    else:
        beat.heartbeat = sqlalchemy.func.current_timestamp()


def _outliving(name: str, *, reads: bool) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

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
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
)
# They may be repeated: they leave the same. create_new_study, too: Optuna loads a study that is
# there. Not create_new_trial: slots are added by add_slot_trial.
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
    try:
        if make_url(url).get_backend_name() == "sqlite":
            _check_sqlite_file(url, create)
        return waiting.call(
            lambda: _open(search, Patience(OUTAGE_S, hurried)), lambda error: reason_of(url, error)
        )
    except FileNotFoundError as error:
        if create:
            raise StorageError(_cannot_open(url, str(error))) from None
        raise StorageError(
            f"no study was started here yet: {redact(url)} is not there; start it with: "
            "deepfake-study run CONFIG"
        ) from None
    except StorageAway as error:
        raise StorageError(_cannot_open(url, str(error))) from None
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, OSError) as error:
        raise StorageError(_cannot_open(url, reason_of(url, error))) from None
    except RuntimeError as error:  # Optuna's: the schema is another release's
        raise StorageError(
            f"study.storage: {redact(url)}: {' '.join(str(error).split())}"
        ) from None


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


def _check_sqlite_file(url: str, create: bool) -> None:
    database = make_url(url).database
    if not database or database == ":memory:":
        raise ValueError("a study in memory can't be shared by workers; name a file")
    if create:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    elif not Path(database).exists():
        raise FileNotFoundError(database)


def _cannot_open(url: str, reason: str) -> str:
    if "driver is missing" in reason:
        return f"study.storage: {redact(url)} can't be opened: {reason}"
    return (
        f"study.storage: {redact(url)} can't be opened ({reason}); check that the server "
        "runs and that the URL is sqlite:///path or postgresql+psycopg://user@host/database"
    )
