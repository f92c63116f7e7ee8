"""A study that has run for long: its slots are finished by a few statements of SQL."""

import json

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)

from study.config import StudyConfig, settings_of
from study.slots import Slots, create_or_join
from study.storage import open_storage

EPOCHS = 10
# spread over their ranges by the trial's id, each in its own order
_DRAWN: dict[str, tuple[BaseDistribution, str]] = {
    "lr": (FloatDistribution(1e-5, 1e-2, log=True), "1e-5 + (trial_id * 7919 % 9973) * 1e-6"),
    "weight_decay": (FloatDistribution(1e-7, 1e-3, log=True), "(1 + trial_id * 31 % 997) * 1e-6"),
    "dropout": (FloatDistribution(0, 0.7), "(trial_id * 101 % 701) * 1e-3"),
}
_END = """UPDATE trials SET state = 'COMPLETE', datetime_start = '2026-01-01 00:00:00.000000',
    datetime_complete = '2026-01-01 00:05:00.000000' WHERE number < :finished"""
_PARAM = """INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT trial_id, :name, {value}, :distribution FROM trials WHERE number < :finished"""
_LOSS = """INSERT INTO trial_intermediate_values
    (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, :epoch, (1 + trial_id * 17 % 11) * 0.1 / (:epoch + 1), 'FINITE'
    FROM trials WHERE number < :finished"""
_VALUE = """INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, (1 + trial_id * 17 % 11) * 0.1 / {epochs}, 'FINITE'
    FROM trials WHERE number < :finished"""
_RUN = """INSERT INTO study_user_attributes (study_id, key, value_json)
    SELECT study_id, 'run_id:' || number, :run FROM trials WHERE number < :finished"""


def filled_study(config: StudyConfig, finished: int) -> Slots:
    """The only study of its database, its first slots COMPLETE behind EPOCHS epochs each."""
    fingerprint = settings_of(config)
    create_or_join(config, fingerprint)
    variants = config.space.variant
    drawn = {
        **_DRAWN,
        "variant": (CategoricalDistribution(variants), f"trial_id % {len(variants)}"),
    }
    with open_storage(config.study).engine.begin() as connection:

        def run(statement: str, **values: object) -> None:
            connection.execute(sqlalchemy.text(statement), {"finished": finished, **values})

        run(_END)
        for name, (distribution, value) in drawn.items():
            as_json = distribution_to_json(distribution)
            run(_PARAM.format(value=value), name=name, distribution=as_json)
        for epoch in range(EPOCHS):
            run(_LOSS, epoch=epoch)
        run(_VALUE.format(epochs=EPOCHS))
        run(_RUN, run=json.dumps("0" * 32))
    return create_or_join(config, fingerprint)  # one that has read nothing yet
