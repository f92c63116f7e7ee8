from .budget import (
    StudyStopped as StudyStopped,
    check_stopped as check_stopped,
    check_trials as check_trials,
    enqueue as enqueue,
    given_params as given_params,
    grow as grow,
    is_stopped as is_stopped,
    lift_stop as lift_stop,
    stop_study as stop_study,
)
from .lease import (
    Lease as Lease,
    Slot as Slot,
    SlotLost as SlotLost,
    lost_if_finished as lost_if_finished,
)
from .records import (
    DIVERGED as DIVERGED,
    STATES as STATES,
    LastEpoch as LastEpoch,
    SlotRecord as SlotRecord,
    Stage as Stage,
    State as State,
    best_of as best_of,
    incumbents as incumbents,
    ranked as ranked,
    summary as summary,
)
from .slots import Slots as Slots
from .study import (
    NoStudy as NoStudy,
    create_or_join as create_or_join,
    free_name as free_name,
    join as join,
)
from .training import ROLES as ROLES, Role as Role, Training as Training
