"""How a call to the study database outlives an outage: tried again, up to a limit."""

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from deepfake.errors import UserError

log = logging.getLogger(__name__)

OUTAGE_S = 300.0  # a database may be away for this long, and no worker dies of it
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
_SLICE_S = 0.2  # of a wait: a stop signal is heard this soon
# what no waiting mends, in the words of libpq and the resolver: connecting has no error codes
_FINAL = (
    "unable to open database file",
    "no such table",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",  # the database, the user
    "definition of service",
    "Name or service not known",
)

T = TypeVar("T")


class StorageError(UserError):
    """The study database can't be opened."""


class NoDatabase(StorageError):
    """It is not there yet, and the first study creates it."""


class StorageAway(StorageError):
    """The study database was away for longer than a call waits."""


class Patience:
    """Tries a call again while the database is away. Threads of a process may share one."""

    def __init__(self, limit_s: float, hurried: Callable[[], bool]) -> None:
        """hurried: once it says True (a stop signal), no call waits any longer."""
        self.limit_s = limit_s
        self.outages = 0  # failed tries so far, of all calls
        self._hurried = hurried

    def call(self, function: Callable[[], T], explain: Callable[[BaseException], str]) -> T:
        """function(), which may run more than once. Raises StorageAway when patience ends."""

        def give_up(state: RetryCallState) -> bool:
            return self._hurried() or (state.seconds_since_start or 0.0) >= self.limit_s

        def note(state: RetryCallState) -> None:
            self.outages += 1
            if state.attempt_number == 1 and state.outcome is not None:
                error = state.outcome.exception()
                assert error is not None
                log.warning("the study database is away (%s): trying again", explain(error))

        started = time.monotonic()
        tries = Retrying(
            retry=retry_if_exception(is_outage),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=give_up,
            sleep=self._sleep,
            before_sleep=note,
            reraise=True,
        )
        try:
            result = tries(function)
        except Exception as error:
            if not is_outage(error):
                raise
            self.outages += 1
            waited = f"away for {time.monotonic() - started:.0f} s: " if self.limit_s else ""
            raise StorageAway(f"{waited}{explain(error)}") from None
        if tries.statistics["attempt_number"] > 1:
            log.info("the study database is back after %.1f s", time.monotonic() - started)
        return result

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._hurried() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))


def is_outage(error: BaseException) -> bool:
    """Whether a later try may succeed: the connection was lost, refused, or waited too long."""
    if isinstance(error, StorageInternalError):
        return error.__cause__ is None or is_outage(error.__cause__)
    if isinstance(error, PendingRollbackError):  # the connection was lost within a transaction
        return True
    if isinstance(error, sqlite3.OperationalError):  # before SQLAlchemy could wrap it
        return True
    return isinstance(error, OperationalError | InterfaceError | InternalError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def is_final(error: BaseException) -> bool:
    """An outage that is none: no waiting lets this user into this database."""
    said = f"{error} {error.__cause__}"  # Optuna's own errors have the driver's behind them
    return any(words in said for words in _FINAL)
