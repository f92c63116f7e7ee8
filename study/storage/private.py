"""Every private name of Optuna that is used: if an upgrade breaks one, it breaks here.

`models` are the SQLAlchemy tables of Optuna's RDB storage. The one exception is in rdb.py, which
overrides _get_trials and _set_trial_param, called by Optuna's cache of trials.
tests/study/storage/test_private.py checks that each is there and does what is needed.
"""

from contextlib import AbstractContextManager

from optuna.storages import RDBStorage
from optuna.storages._rdb import models, storage as optuna_rdb
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.orm import Session

__all__ = ["forget_history", "models", "transaction", "trial_id"]


def transaction(storage: RDBStorage) -> AbstractContextManager[Session]:
    """Committed if the block ends well, rolled back if not; its errors are Optuna's own."""
    return optuna_rdb._create_scoped_session(storage.scoped_session)


def trial_id(trial: Trial | FrozenTrial) -> int:
    """Of the database: a trial's public number counts within its study."""
    return int(trial._trial_id)


def forget_history(study: Study) -> None:
    """Read the trials anew when they are next asked for.

    Only ask() and tell() do so of themselves. Without this, TPE would draw at random for ever,
    from the trials of a worker's first claim.
    """
    study._thread_local.cached_all_trials = None
