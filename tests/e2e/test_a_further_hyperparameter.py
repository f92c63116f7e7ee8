"""A hyperparameter is its field, and what a space says of it: all else loops over the fields."""

from typing import Literal

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, ValidationError

from deepfake.config import Hyperparameters, TrainSettings
from deepfake.errors import explain
from study.cli.live import trial_line
from study.config.fingerprint import flattened
from study.config.schema import space_of
from study.report.search_plots import hovers, importances, parallel_figure, slice_figures
from study.search import space as search_space
from study.search.space import suggest
from study.slots.budget import given_params
from study.slots.records import SlotRecord


class More(Hyperparameters):
    """With four that are no part of the house."""

    label_smoothing: float = Field(ge=0, lt=1, title="ls", json_schema_extra={"format": ".3f"})
    hidden: int = Field(ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    warmup: int | None = Field(default=None, ge=1)


class Train(TrainSettings, More):
    """TrainConfig, had More been Hyperparameters."""


WIDE = {
    "variant": ["cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned"],
    "lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "weight_decay": 1e-5,
    "dropout": [0.2, 0.5],
    "label_smoothing": {"low": 0.0, "high": 0.2},
    "hidden": {"low": 16, "high": 64},
    "optimizer": ["adam", "sgd"],
}
SPACE = space_of(More).model_validate(WIDE)


@pytest.fixture
def records(monkeypatch):
    """Of 40 slots that the space drew; the more label smoothing, the lower their loss."""
    monkeypatch.setattr(search_space, "Hyperparameters", More)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for number in range(40):
        trial = study.ask()
        suggest(trial, SPACE)
        loss = 1 - trial.params["label_smoothing"]
        study.tell(trial, loss)
        record = SlotRecord(
            number=number,
            state="complete",
            baseline=None,
            attempt=0,
            params=search_space.hyperparameters(trial.params),  # as they come back
            losses={0: loss},
            reason=None,
            run_id=None,
            worker=None,
            seconds=None,
        )
        found.append(record)
    return study, found


def test_each_is_drawn_as_the_space_says(records):
    study, found = records
    assert study.trials[0].distributions == {
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "weight_decay": FloatDistribution(1e-5, 1e-5),
        "dropout": CategoricalDistribution((0.2, 0.5)),
        "label_smoothing": FloatDistribution(0.0, 0.2),
        "hidden": IntDistribution(16, 64),
        "optimizer": CategoricalDistribution(("adam", "sgd")),
        "variant": CategoricalDistribution(WIDE["variant"]),
    }
    assert {record.params.optimizer for record in found} == {"adam", "sgd"}
    assert {record.params.dropout for record in found} == {0.2, 0.5}


def test_a_run_has_it_among_its_parameters(records, make_config, monkeypatch):
    monkeypatch.setattr("study.config.schema.TrainConfig", Train)
    params = records[1][0].params
    train = make_config().model_copy(update={"space": SPACE}).train_config(params, fixed=False)
    logged = dict(flattened(train.model_dump(mode="json")))
    assert logged["label_smoothing"] == params.label_smoothing
    assert logged["optimizer"] == params.optimizer


def test_tables_show_it_in_its_format(records):
    record = records[1][0]
    smoothing, optimizer = record.params.label_smoothing, record.params.optimizer
    line = trial_line(record, 2).plain
    assert f"ls {smoothing:.3f}  hidden {record.params.hidden}  optimizer {optimizer}" in line
    assert f"label_smoothing {smoothing:.3f}, hidden" in hovers([record], 2)[0]


def test_charts_draw_it(records):
    study, found = records
    slices = slice_figures(found, SPACE)
    assert [*slices] == ["lr", "dropout", "label_smoothing", "hidden", "optimizer", "variant"]
    assert slices["optimizer"].layout.xaxis.categoryarray == ("adam", "sgd")
    axes = parallel_figure(found, SPACE).layout
    assert axes.xaxis.ticktext[:-1] == ("lr", "dropout", "label_smoothing", "hidden", "optimizer")
    ends = {(note.x, note.y): note.text for note in axes.annotations}
    assert (ends[1, 0], ends[1, 1], ends[4, 0], ends[4, 1]) == ("0.2", "0.5", "adam", "sgd")
    shares = importances(study, SPACE)
    assert max(shares, key=shares.get) == "label_smoothing"


def test_one_with_a_default_may_be_left_out_and_is_then_no_part_of_a_study():
    space = space_of(More).model_validate({k: v for k, v in WIDE.items() if k != "optimizer"})
    assert "optimizer" not in space.drawn()
    assert "optimizer" not in space.model_dump()
    fixed = space_of(More).model_validate({**WIDE, "optimizer": "sgd"})
    assert fixed.drawn()["optimizer"] == "sgd"
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert suggest(study.ask(), fixed).optimizer == "sgd"


def test_one_that_may_be_none_is_drawn_as_what_it_is_else():
    space = space_of(More).model_validate({**WIDE, "warmup": {"low": 1, "high": 4}})
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert suggest(trial, space).warmup in range(1, 5)
    assert trial.distributions["warmup"] == IntDistribution(1, 4)
    assert suggest(optuna.create_study().ask(), SPACE).warmup is None
    fixed = space_of(More).model_validate({**WIDE, "warmup": None})
    assert fixed.drawn() == SPACE.drawn()


def test_a_trial_of_ones_own_is_given_it():
    given = "variant=cnn,lr=3e-4,dropout=0.5,label_smoothing=0.1,hidden=32,optimizer=sgd"
    params = given_params(given, SPACE)
    assert (params.hidden, params.optimizer) == (32, "sgd")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer", ["adam", "sdg"], "'optimizer.1': Input should be 'adam' or 'sgd', not"),
        ("optimizer", "sdg", "'optimizer': Input should be 'adam' or 'sgd', not \"sdg\""),
        ("optimizer", ["adam", "adam"], "'optimizer': ['adam', 'adam'] names one twice"),
        ("dropout", [0.2, 1.5], "'dropout': Input should be less than 1, not 1.5"),
        ("dropout", [0.2, "much"], "'dropout.1': Input should be a number, not \"much\""),
        ("dropout", [], "'dropout': Input should be a list of one or more, not []"),
        ("hidden", {"low": 0.5, "high": 8}, "'hidden': Input should be a valid integer"),
    ],
)
def test_what_no_training_takes_is_refused_by_name(key, value, said):
    with pytest.raises(ValidationError) as caught:
        space_of(More).model_validate({**WIDE, key: value})
    message = explain(caught.value, WIDE)
    assert message.startswith(said)
    assert "\n" not in message


def test_what_a_choice_has_not_is_outside_the_space(records):
    params = records[1][0].params.model_copy(update={"dropout": 0.3})
    assert SPACE.problem_with(params) == "dropout 0.3 is not among 0.2, 0.5"
