from .checkpoint import KEPT as KEPT, Checkpoints as Checkpoints, check_writable as check_writable
from .loop import (
    EVAL_BATCHES as EVAL_BATCHES,
    EpochStats as EpochStats,
    Feed as Feed,
    FitResult as FitResult,
    evaluate as evaluate,
    fit as fit,
    train_one_epoch as train_one_epoch,
)
