"""What a user does to a study that is there: a larger budget, a trial of his own, its end."""

import re
from typing import Any

from pydantic import ValidationError

from deepfake.config import Hyperparameters
from deepfake.errors import ConfigError, explain
from study.config import (
    Space,
    StudyConfig,
    StudyMismatch,
    flattened,
    key_value,
    refuse_other,
)
from study.signals import Stopped
from study.slots.slots import Slots

MOST_SLOTS = 100_000
_STOPPED = "stopped"  # a study attribute: whether `stop` ended it and no `run` began since


class StudyStopped(Stopped):
    """`stop` ended the study, on every machine, behind the epochs that were under way."""


def check_trials(trials: str, config: StudyConfig) -> None:
    """Before data is touched. Raises ConfigError for what `--trials` can't be."""
    if not re.fullmatch(r"\+?\d{1,9}", trials):
        raise ConfigError(f"--trials {trials}: must be a number of slots, such as 40, or +20")
    if int(trials) > MOST_SLOTS:
        raise ConfigError(f"--trials {trials}: {MOST_SLOTS:,} are the most; a smaller number")
    if int(trials) == 0:
        raise ConfigError(f"--trials {trials}: must be a number of slots, such as 40, or +20")
    if not trials.startswith("+") and int(trials) < config.study.n_trials:
        raise ConfigError(
            f"--trials {trials}: study.n_trials says {config.study.n_trials} and the larger one "
            f"rules; write +{trials} for so many more"
        )


def grow(slots: Slots, trials: str) -> int:
    """Give a study the slots of `--trials`: 40, or +20 on top of those that are there; how many
    there are then. Raises StudyMismatch if there are more already.
    """

    def wanted(there: int) -> int:
        n_trials = int(trials) + (there if trials.startswith("+") else 0)
        if n_trials < there:
            raise StudyMismatch(
                f"--trials {trials}: study '{slots.config.name}' has {there} slots already: a "
                "budget can grow but not shrink; say more, or +N for N on top"
            )
        return n_trials

    return slots.grow(wanted)


def given_params(text: str, space: Space) -> Hyperparameters:
    """What `--params variant=cnn,lr=3e-4` says; what the space fixes may be left out.

    Raises ConfigError, one line, for what is unknown, missing, no value or outside the space.
    """
    drawn, varied = space.drawn(), space.varied()
    fixed: dict[str, Any] = {name: drawn[name] for name in drawn if name not in varied}
    if len(space.variant) == 1:
        fixed["variant"] = space.variant[0]
    known = ["variant", *drawn]
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, value = key_value("--params", part, "lr=3e-4", known)
        if key in given:
            raise ConfigError(f"--params: '{key}' is named twice")
        given[key] = value
    values = {**fixed, **given}
    if missing := [name for name in known if name not in values]:
        raise ConfigError(f"--params: {', '.join(missing)} missing; a trial needs all of them")
    try:
        params = space.PARAMS.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--params: {explain(error, known)}") from None
    if problem := space.problem_with(params):
        raise ConfigError(f"--params: outside the space: {problem}")
    return params


def enqueue(slots: Slots, params: Hyperparameters) -> int:
    """One more slot, with these parameters; its number. Raises StudyMismatch if the study's space
    is not that of its configuration here.
    """
    name, theirs = slots.config.name, slots.attributes()["fingerprint"]
    ours = dict(flattened({"space": slots.config.space.model_dump(mode="json")}))
    refuse_other(name, {k: v for k, v in theirs.items() if k.startswith("space.")}, ours)
    return slots.append(params)


def stop_study(slots: Slots) -> int | None:
    """Workers, wherever they are, end behind their epochs, and those that start end at once.

    How many slots run; None if all are finished, where nothing is stopped.
    """
    records = slots.records()
    if all(record.finished for record in records):
        return None
    slots.set_attribute(_STOPPED, True)
    return sum(record.state == "running" for record in records)


def lift_stop(slots: Slots) -> bool:
    """Let workers run again; whether the study was stopped."""
    stopped = is_stopped(slots)
    if stopped:
        slots.set_attribute(_STOPPED, False)
    return stopped


def is_stopped(slots: Slots) -> bool:
    return bool(slots.attribute(_STOPPED))


def check_stopped(slots: Slots) -> None:
    """Raises StudyStopped."""
    if is_stopped(slots):
        raise StudyStopped(f"study '{slots.config.name}' was stopped by `stop`")
