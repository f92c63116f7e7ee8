"""What a trial draws, and what a baseline is given instead."""

import warnings
from collections.abc import Callable

import optuna
import pytest
from optuna.search_space import intersection_search_space

from study.config.schema import StudyConfig
from study.search.space import hyperparameters, suggest
from study.slots.slots import Slots
from study.slots.study import create_or_join

MakeConfig = Callable[..., StudyConfig]
FINGERPRINT = {"study.seed": 0}
FLAT = {"lr", "weight_decay", "dropout", "variant"}
AUGMENT = "augment={jpeg: {p: 0.5}}"


def drawn(config: StudyConfig) -> Slots:
    """Every slot claimed, its parameters drawn, and finished."""
    slots = create_or_join(config, FINGERPRINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, of a value outside its range
        while (slot := slots.claim("host:1")) is not None:
            suggest(slot.trial, config.space)
            slots.complete(slot, 0.5 + slot.number / 100)
    return slots


def names(slots: Slots) -> list[set[str]]:
    return [set(trial.params) for trial in slots.study.get_trials()]


@pytest.mark.parametrize(
    "overrides", [(), (AUGMENT,), (AUGMENT, "space.augment_p=0.5")], ids=["plain", "on", "half"]
)
def test_a_study_that_does_not_draw_augment_p_has_the_four_parameters(
    overrides: tuple[str, ...], make_config: MakeConfig
) -> None:
    slots = drawn(make_config("study.n_trials=6", *overrides))
    assert names(slots) == [FLAT] * 6
    assert all(record.params and record.params.augment_p is None for record in slots.records())


def test_augment_p_is_one_more_dimension_of_the_flat_space_and_0_for_baselines(
    make_config: MakeConfig,
) -> None:
    config = make_config("study.n_trials=14", AUGMENT, "space.augment_p={low: 0, high: 0.8}")
    slots = drawn(config)
    assert names(slots) == [FLAT | {"augment_p"}] * 14
    # what TPE models jointly: a baseline without it would have taken it out
    joint = intersection_search_space(slots.study.get_trials())
    assert joint.keys() == FLAT | {"augment_p"}
    assert joint["augment_p"] == optuna.distributions.FloatDistribution(0.0, 0.8)
    values = [record.params.augment_p for record in slots.records() if record.params]
    assert values[:3] == [0.0] * 3
    assert len(set(values[3:])) == 11
    assert all(value is not None and 0 <= value <= 0.8 for value in values)


def test_parameters_are_none_until_all_are_drawn() -> None:
    whole = {"variant": "cnn", "lr": 1e-3, "weight_decay": 0.0, "dropout": 0.5}
    assert hyperparameters({}) is None
    for name in whole:
        assert hyperparameters({key: value for key, value in whole.items() if key != name}) is None
    params, augmented = hyperparameters(whole), hyperparameters({**whole, "augment_p": 0.2})
    assert params is not None
    assert augmented is not None
    assert (params.augment_p, augmented.augment_p) == (None, 0.2)
    assert params.model_dump() == whole
