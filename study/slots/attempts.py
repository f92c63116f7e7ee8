"""Which Optuna trials stand for a slot: its attempts, why they ended, and those still to add."""

from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from study.config import SearchConfig, StudyConfig
from study.slots.records import lost_in_a_row


def by_slot(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """The attempts at each slot, oldest first; by the slots' numbers."""
    slots: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if "slot" in trial.user_attrs:  # others were added from outside: no slots of ours
            slots.setdefault(trial.user_attrs["slot"], []).append(trial)
    return [sorted(slots[n], key=lambda t: t.user_attrs["attempt"]) for n in sorted(slots)]


def failure(attempts: Sequence[FrozenTrial], search: SearchConfig) -> str | None:
    """Why a slot has failed for good; None if it may be tried again, or has not failed."""
    raised = [trial for trial in attempts if trial.user_attrs.get("raised")]
    final = any(trial.user_attrs.get("final") for trial in raised)
    if final or len(raised) >= search.max_attempts:
        return str(raised[-1].user_attrs["reason"])
    if lost_in_a_row(attempts) >= (lost := search.max_lost):
        return f"its worker died {lost} times in a row without one more epoch"
    return None


def waiting(
    attrs: dict[str, Any], params: dict[str, Any], losses: dict[int, float] | None = None
) -> FrozenTrial:
    """A trial that a worker may claim, with these parameters where any are given."""
    return create_trial(
        state=TrialState.WAITING,
        user_attrs=attrs,
        system_attrs={"fixed_params": params} if params else {},
        intermediate_values=losses or {},
    )


def new_slots(
    slots: Sequence[Sequence[FrozenTrial]], budget: int, config: StudyConfig
) -> Iterator[FrozenTrial]:
    """The first attempt at each slot of the budget that there is none at; baselines first."""
    known = {attempts[-1].user_attrs["slot"] for attempts in slots}
    baselines = config.baselines.baselines
    for number in sorted(set(range(budget)) - known):
        baseline = baselines[number] if number < len(baselines) else None
        attrs = {"slot": number, "attempt": 0, "baseline": baseline and baseline.name}
        yield waiting(attrs, config.baseline_params(baseline).model_dump() if baseline else {})


def next_attempts(
    slots: Sequence[Sequence[FrozenTrial]], search: SearchConfig
) -> Iterator[FrozenTrial]:
    """One at each slot whose last attempt ended unfinished: it goes on with what that drew."""
    for attempts in slots:
        last = attempts[-1]
        if last.state == TrialState.FAIL and failure(attempts, search) is None:
            kept = ("slot", "baseline", "rerun")
            attrs = {key: last.user_attrs[key] for key in kept if key in last.user_attrs}
            attrs["attempt"] = last.user_attrs["attempt"] + 1
            params = last.system_attrs.get("fixed_params", {}) | last.params
            yield waiting(attrs, params, last.intermediate_values)
