"""The search space: hyperparameters from a trial, and back. One flat space for all variants."""

from collections.abc import Mapping
from typing import Any, Literal

from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from deepfake.config import Hyperparameters
from deepfake.reproducibility import derive_seed
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


def sampler(
    study_seed: int, slot: int, attempt: int, kind: Literal["tpe", "random"] = "tpe"
) -> BaseSampler:
    """With a generator of this slot's attempt: no worker, restarted or late, repeats draws."""
    seed = derive_seed(study_seed, slot, attempt) % 2**32
    if kind == "random":
        return RandomSampler(seed)
    # Optuna's defaults. On scripts/benches/pruning.py's curves, seeds 0 to 19, 5 or 15 startup
    # trials, 12 or 100 candidates, independent dimensions and no constant liar moved the epochs
    # to near the best by -19 to +25 %, none of them down everywhere.
    return TPESampler(seed=seed)
