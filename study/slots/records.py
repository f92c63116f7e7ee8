"""What people see of a slot: one record, whatever attempts it took."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from deepfake.config import Hyperparameters
from study.search import best_until, hyperparameters
from study.slots.training import Training

State = Literal["waiting", "running", "complete", "pruned", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "complete", "pruned", "failed")
STATE_OF: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
}


DIVERGED = "the loss was not finite"  # how the reason of a slot begins that diverged


@dataclass(frozen=True)
class LastEpoch:
    """What a worker notes beside the loss it reports, for those who watch."""

    train_loss: float
    images_per_s: float


@dataclass(frozen=True)
class Stage:
    """What comes before a slot's first epoch: a frozen backbone's features."""

    done: int
    total: int
    seconds_left: float | None  # as the worker reckons; None at first


@dataclass(frozen=True)
class SlotRecord:
    """A slot as the database has it."""

    number: int
    state: State
    baseline: str | None
    attempt: int
    params: Hyperparameters | None  # None until drawn
    losses: dict[int, float]  # the objective by epoch
    reason: str | None  # why it was pruned or failed
    run_id: str | None  # MLflow's
    worker: str | None  # host:pid that has it, or had it last
    seconds: float | None  # from claim to end
    rerun: Training | None = None  # what it trains again, where slots are given
    objective: str = "val_loss"  # what the losses are
    last_epoch: LastEpoch | None = None  # of this attempt
    stage: Stage | None = None
    started: datetime | None = None  # claimed, by that machine's clock

    @property
    def best_loss(self) -> float | None:
        return best_until(self.losses, max(self.losses)) if self.losses else None

    @property
    def best_epoch(self) -> int | None:
        return min(self.losses, key=lambda epoch: (self.losses[epoch], epoch), default=None)

    @property
    def diverged(self) -> bool:
        """Ended by a loss that was not finite: pruned if it was drawn, failed if it was given."""
        return self.reason is not None and self.reason.startswith(DIVERGED)

    @property
    def finished(self) -> bool:
        return self.state in ("complete", "pruned", "failed")


def record_of(
    trials: Sequence[FrozenTrial], objective: str, *, failure: str | None, run_id: str | None
) -> SlotRecord:
    """The record of a slot from its attempts, oldest first. Between two attempts it is waiting."""
    last = trials[-1]
    attrs = last.user_attrs
    seconds = None
    if last.datetime_start is not None and last.datetime_complete is not None:
        seconds = (last.datetime_complete - last.datetime_start).total_seconds()
    return SlotRecord(
        number=attrs["slot"],
        state=STATE_OF.get(last.state, "failed" if failure else "waiting"),
        baseline=attrs["baseline"],
        attempt=attrs["attempt"],
        params=hyperparameters(last.system_attrs.get("fixed_params", {}) | last.params),
        losses=dict(last.intermediate_values),
        reason=failure or attrs.get("reason"),
        run_id=run_id,
        worker=attrs.get("worker"),
        seconds=seconds,
        rerun=rerun_of(attrs),
        objective=objective,
        last_epoch=LastEpoch(**attrs["last_epoch"]) if "last_epoch" in attrs else None,
        stage=Stage(**attrs["stage"]) if "stage" in attrs else None,
        started=last.datetime_start,
    )


def rerun_of(attrs: Mapping[str, Any]) -> Training | None:
    """As a trial's user attributes have it."""
    return Training(**attrs["rerun"]) if attrs.get("rerun") else None


def lost_in_a_row(trials: Sequence[FrozenTrial]) -> int:
    """The last attempts that ended with no word from their worker, and brought no epoch."""
    count = 0
    before = [0, *(len(trial.intermediate_values) for trial in trials)]
    for trial, epochs_before in zip(reversed(trials), reversed(before[:-1]), strict=True):
        if trial.state != TrialState.FAIL or "reason" in trial.user_attrs:
            break
        count += 1
        if len(trial.intermediate_values) > epochs_before:
            break
    return count


def ranked(records: Iterable[SlotRecord]) -> list[SlotRecord]:
    """The complete slots, the lowest objective first; of equals, the first."""
    complete = [record for record in records if record.state == "complete"]
    return sorted(complete, key=lambda record: (record.best_loss, record.number))


def best_of(records: Iterable[SlotRecord]) -> SlotRecord | None:
    return next(iter(ranked(records)), None)


def incumbents(records: Iterable[SlotRecord]) -> list[SlotRecord]:
    """Each complete slot whose objective is lower than those of all before it.

    records: by number.
    """
    found: list[SlotRecord] = []
    lowest = math.inf
    for record in records:
        loss = record.best_loss
        if record.state == "complete" and loss is not None and loss < lowest:
            lowest = loss
            found.append(record)
    return found


def summary(name: str, records: Sequence[SlotRecord]) -> dict[str, Any]:
    """What `status --json` prints: budget, slots by state, best so far, baselines."""
    states = Counter(record.state for record in records)
    best = best_of(records)
    return {
        "name": name,
        "n_trials": len(records),
        "slots": {state: states[state] for state in STATES},
        "best": best
        and {
            "slot": best.number,
            "value": best.best_loss,
            "params": best.params and best.params.model_dump(),
            "run_id": best.run_id,
        },
        "baselines": [
            {
                "name": record.baseline,
                "slot": record.number,
                "state": record.state,
                "value": record.best_loss,
            }
            for record in records
            if record.baseline
        ],
    }
