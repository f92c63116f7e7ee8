"""The search space: hyperparameters from a trial, and back. One flat space for all variants."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from deepfake.config import Hyperparameters
from study.config import Range, Space


def suggest(trial: Trial, space: Space) -> Hyperparameters:
    """What the trial draws, or what it was given when its slot was created.

    One flat space, not one a variant, so that TPE models all dimensions together.
    """
    drawn = {}
    for name, values in space.drawn().items():
        low, high, log = (
            (values.low, values.high, values.log)
            if isinstance(values, Range)
            else (values, values, False)
        )
        drawn[name] = trial.suggest_float(name, low, high, log=log)
    variant = trial.suggest_categorical("variant", space.variant)
    return Hyperparameters.model_validate({"variant": variant, **drawn})


def hyperparameters(params: Mapping[str, Any]) -> Hyperparameters | None:
    """The hyperparameters of a finished or waiting trial; None before all are drawn."""
    needed = {name for name, field in Hyperparameters.model_fields.items() if field.is_required()}
    if not needed <= params.keys():
        return None
    return Hyperparameters.model_validate(dict(params))
