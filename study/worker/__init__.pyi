from .inputs import Inputs as Inputs
from .objective import hardware as hardware
from .setup import (
    begin as begin,
    checkpoints_of as checkpoints_of,
    set_up as set_up,
    study_fingerprint as study_fingerprint,
    worker_name as worker_name,
)
from .worker import TooManyFailed as TooManyFailed, work as work
