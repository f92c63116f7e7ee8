from .connection import (
    exclusive as exclusive,
    has_tables as has_tables,
    weights_lock as weights_lock,
)
from .private import forget_history as forget_history, trial_id as trial_id
from .rdb import Storage as Storage, check_storage as check_storage, open_storage as open_storage
from .retry import (
    LONGEST_WAIT_S as LONGEST_WAIT_S,
    OUTAGE_S as OUTAGE_S,
    NoDatabase as NoDatabase,
    StorageAway as StorageAway,
    StorageError as StorageError,
)
