"""The search space: hyperparameters from a trial, and back. One flat space for all variants."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from deepfake.config import Hyperparameters
from study.config import Drawn, Range, Space, value_type


def suggest(trial: Trial, space: Space) -> Hyperparameters:
    """What the trial draws, or what it was given when its slot was created.

    One flat space, not one a variant, so that TPE models all dimensions together.
    """
    drawn = {
        name: _suggest(trial, name, values, whole=value_type(space.PARAMS, name) is int)
        for name, values in space.drawn().items()
    }
    variant = trial.suggest_categorical("variant", space.variant)
    return space.PARAMS.model_validate({"variant": variant, **drawn})


def _suggest(trial: Trial, name: str, values: Drawn, *, whole: bool) -> object:
    match values:
        case Range(low=low, high=high, log=log) if whole:
            return trial.suggest_int(name, int(low), int(high), log=log)
        case Range(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
        case float():  # fixed: a distribution of its own, as a range has
            return trial.suggest_float(name, values, values)
        case tuple():
            return trial.suggest_categorical(name, values)
        case _:
            return trial.suggest_categorical(name, (values,))


def hyperparameters(params: Mapping[str, Any]) -> Hyperparameters | None:
    """The hyperparameters of a finished or waiting trial; None before all are drawn."""
    needed = {name for name, field in Hyperparameters.model_fields.items() if field.is_required()}
    if not needed <= params.keys():
        return None
    return Hyperparameters.model_validate(dict(params))
