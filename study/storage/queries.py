"""The statements on an Optuna database that must stay cheap with thousands of trials.

For rdb.py alone, which has the sessions. Optuna's own reading makes an object of each row,
parses each distribution twice, and reads what waits anew each time.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Integer, cast, func, insert, select
from sqlalchemy.orm import Session, aliased

from study.storage.private import models

AT_ONCE = 500  # trials: SQLite takes a limited number of values in one statement


def changed_trials(
    session: Session, study_id: int, seen_unfinished: Collection[int], newest_finished: int
) -> list[FrozenTrial]:
    """The trials that are not as the caller has seen them, by id.

    seen_unfinished: ids of those that it saw waiting or running. newest_finished: the highest id
    that it saw finished; -1 if none. A trial is written whole before it waits and no trial comes
    back to wait, so one that waits and was seen is as it was.
    """
    trial = models.TrialModel
    of_study = select(trial.trial_id).where(trial.study_id == study_id)
    waiting = session.scalars(of_study.where(trial.state == TrialState.WAITING))
    others = session.scalars(
        of_study.where(trial.state != TrialState.WAITING, trial.trial_id > newest_finished)
    )
    # those that began to wait, or wait no more
    ids = sorted(set(seen_unfinished).symmetric_difference(waiting).union(others))
    parts = (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
    return [found for part in parts for found in _read(session, part)]


def claimed_with(session: Session, study_id: int, token: str) -> Any:
    """The running trial that was claimed with token, if any."""
    mine = models.TrialModel.user_attributes.any(key="claim", value_json=json.dumps(token))
    running = session.query(models.TrialModel).filter_by(
        study_id=study_id, state=TrialState.RUNNING
    )
    return running.filter(mine).one_or_none()


def first_waiting(session: Session, study_id: int) -> Any:
    """The trial of the lowest slot that waits, locked, without those that are locked already."""
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    slots = session.query(trial).join(attribute).filter(attribute.key == "slot")
    waiting = slots.filter(trial.study_id == study_id, trial.state == TrialState.WAITING)
    order = (cast(attribute.value_json, Integer), trial.trial_id)
    # another claims them at this moment; SQLite has one lock, and ours is taken
    return waiting.order_by(*order).limit(1).with_for_update(of=trial, skip_locked=True).first()


def attempts_of(session: Session, study_id: int, slots: Sequence[int]) -> set[tuple[int, int]]:
    """Slot and attempt of each trial of these slots."""
    slot, attempt = (aliased(models.TrialUserAttributeModel) for _ in range(2))
    query = session.query(slot.value_json, attempt.value_json).select_from(models.TrialModel)
    query = query.join(slot, slot.trial_id == models.TrialModel.trial_id)
    query = query.join(attempt, attempt.trial_id == slot.trial_id)
    query = query.filter(models.TrialModel.study_id == study_id)
    query = query.filter(slot.key == "slot", slot.value_json.in_(map(json.dumps, slots)))
    return {(int(s), int(a)) for s, a in query.filter(attempt.key == "attempt")}


def add_waiting(session: Session, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Add waiting trials, behind all of their study's. Its row must be locked."""
    trial, loss = models.TrialModel, models.TrialIntermediateValueModel
    # as Optuna numbers its own: by how many there are
    first = session.query(trial.trial_id).filter_by(study_id=study_id).count()
    new = [
        {"study_id": study_id, "number": number, "state": TrialState.WAITING}
        for number in range(first, first + len(trials))
    ]
    ids = insert(trial).returning(trial.trial_id, sort_by_parameter_order=True)
    with_ids = list(zip(session.scalars(ids, new), trials, strict=True))
    for model, kind in (
        (models.TrialUserAttributeModel, "user_attrs"),
        (models.TrialSystemAttributeModel, "system_attrs"),
    ):
        _add(
            session,
            model,
            (
                {"trial_id": i, "key": key, "value_json": json.dumps(value)}
                for i, trial in with_ids
                for key, value in getattr(trial, kind).items()
            ),
        )
    _add(
        session,
        loss,
        (
            {
                "trial_id": i,
                "step": step,
                "intermediate_value": stored,
                "intermediate_value_type": kind,
            }
            for i, trial in with_ids
            for step, value in trial.intermediate_values.items()
            for stored, kind in [loss.intermediate_value_to_stored_repr(value)]
        ),
    )


def next_slot(session: Session, study_id: int) -> int:
    """The number behind the study's last slot. Its row must be locked."""
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    number = func.max(cast(attribute.value_json, Integer))
    slots = select(number).join(trial, trial.trial_id == attribute.trial_id)
    last = session.scalar(slots.where(trial.study_id == study_id, attribute.key == "slot"))
    return 0 if last is None else int(last) + 1


def slot_with(session: Session, study_id: int, key: str, value: Any) -> int | None:
    """The number of the slot that has a trial with this attribute."""
    slot, other = (aliased(models.TrialUserAttributeModel) for _ in range(2))
    found = select(slot.value_json).join(other, other.trial_id == slot.trial_id)
    found = found.join(models.TrialModel, models.TrialModel.trial_id == slot.trial_id)
    found = found.where(models.TrialModel.study_id == study_id, slot.key == "slot")
    number = session.scalar(found.where(other.key == key, other.value_json == json.dumps(value)))
    return None if number is None else int(number)


def study_attributes(session: Session, study_id: int) -> dict[str, Any]:
    """What the study's user attributes say: a run a slot is among them."""
    model = models.StudyUserAttributeModel
    rows = session.execute(select(model.key, model.value_json).where(model.study_id == study_id))
    return {key: json.loads(as_json) for key, as_json in rows}


def _add(session: Session, model: Any, rows: Iterable[dict[str, Any]]) -> None:
    if listed := list(rows):  # no rows would be one of defaults
        session.execute(insert(model), listed)


def _read(session: Session, ids: Sequence[int]) -> list[FrozenTrial]:
    # the trials first: of one that is finished by then, nothing changes any more
    wanted: Any = session.query(models.TrialModel).filter(models.TrialModel.trial_id.in_(ids))
    trials = wanted.order_by(models.TrialModel.trial_id).all()
    rows = functools.partial(_rows_by_trial, session, ids)
    value, loss = models.TrialValueModel, models.TrialIntermediateValueModel
    values = rows(value, "objective", "value", "value_type")
    losses = rows(loss, "step", "intermediate_value", "intermediate_value_type")
    params = rows(
        models.TrialParamModel, "param_id", "param_name", "param_value", "distribution_json"
    )
    user_attrs = rows(models.TrialUserAttributeModel, "key", "value_json")
    system_attrs = rows(models.TrialSystemAttributeModel, "key", "value_json")
    return [
        FrozenTrial(
            number=trial.number,
            state=trial.state,
            value=None,
            values=[value.stored_repr_to_value(v, kind) for _, v, kind in values[i]] or None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params={
                name: _distribution(as_json).to_external_repr(stored)
                for _, name, stored, as_json in params[i]
            },
            distributions={name: _distribution(as_json) for _, name, _, as_json in params[i]},
            user_attrs={key: json.loads(as_json) for key, as_json in user_attrs[i]},
            system_attrs={key: json.loads(as_json) for key, as_json in system_attrs[i]},
            intermediate_values={
                step: loss.stored_repr_to_intermediate_value(stored, kind)
                for step, stored, kind in losses[i]
            },
            trial_id=i,
        )
        for trial in trials
        for i in [trial.trial_id]
    ]


def _rows_by_trial(
    session: Session, ids: Sequence[int], model: Any, *columns: str
) -> dict[int, list[Sequence[Any]]]:
    """The columns of each trial's rows, in the order of the first."""
    wanted = [getattr(model, column) for column in columns]
    query = select(model.trial_id, *wanted).where(model.trial_id.in_(ids)).order_by(wanted[0])
    found: dict[int, list[Sequence[Any]]] = defaultdict(list)
    for trial_id, *row in session.execute(query):
        found[trial_id].append(row)
    return found


@functools.lru_cache(64)  # a study has one a dimension
def _distribution(as_json: str) -> BaseDistribution:
    return json_to_distribution(as_json)


def count_slots(session: Session, study_id: int, counted_by: str, n: int) -> None:
    """Have the study's attribute counted_by say n slots at least. Its row must be locked."""
    attribute = models.StudyUserAttributeModel
    query = session.query(attribute).filter_by(study_id=study_id, key=counted_by)
    if (known := query.one_or_none()) is None:
        session.add(attribute(study_id=study_id, key=counted_by, value_json=json.dumps(n)))
    else:
        known.value_json = json.dumps(max(json.loads(str(known.value_json)), n))
