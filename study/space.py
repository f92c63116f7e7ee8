"""The search space: hyperparameters from a trial, and back. One flat space for all variants."""

from collections.abc import Mapping
from typing import Any

from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial

from deepfake.config import Hyperparameters
from deepfake.seeds import derive_seed
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
    """The hyperparameters of a finished or waiting trial; None before all four are drawn."""
    if params.keys() < Hyperparameters.model_fields.keys():
        return None
    return Hyperparameters.model_validate(dict(params))


def sampler(study_seed: int, slot: int, attempt: int) -> BaseSampler:
    """TPE with a generator of this slot's attempt: no worker, restarted or late, repeats draws."""
    return TPESampler(seed=derive_seed(study_seed, slot, attempt) % 2**32)
