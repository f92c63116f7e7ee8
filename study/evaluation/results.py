"""What an evaluation found, as the study's database holds it; read without what computes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from deepfake.config import VariantName
from deepfake.errors import UserError, explain
from study.slots import Role, Slots, Training

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]
Reproduction = Literal["reproduced", "not reproduced", "inconclusive"]
Row = Mapping[str, Any]  # of robustness.COLUMNS; level is None where nothing was done


# of one training


@dataclass(frozen=True)
class Proof:
    """A logged objective, and the same computed again from the logged weights."""

    logged: float
    recomputed: float
    same_hardware: bool  # then the two are equal, bit for bit
    objective: str  # which loss: that of the study


@dataclass(frozen=True)
class SplitFigures:
    """One model measured on one split."""

    faces: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %, bootstrap over photos
    confusion: list[list[int]]  # rows: true real, true fake; columns: predicted


@dataclass(frozen=True)
class Evaluated(Training):
    """One training, re-evaluated."""

    variant: VariantName
    weights_sha256: str
    proof: Proof
    val: SplitFigures
    test: SplitFigures | None  # None unless these weights are in an opened list
    test_sets: dict[str, SplitFigures] = field(default_factory=dict)  # the further ones, by name


# of one model, all its seeds


@dataclass(frozen=True)
class Figure:
    """One figure of one model: the mean over its seeds."""

    value: float
    low: float  # 95 %, bootstrap over photos, for the seeds as they are
    high: float
    sd_of_seeds: float | None  # None of one seed
    by_seed: list[float]


@dataclass(frozen=True)
class ModelFigures:
    """What one model is worth on the split."""

    model: str
    role: Role
    slot: int
    seeds: list[int]
    val_nll: float
    temperature: list[float]  # each seed's choice on validation, as its threshold
    threshold: list[float]
    figures: dict[str, Figure | None]  # by name in METRICS; None where there is none


# of all models of a split


@dataclass(frozen=True)
class Welch:
    """A value with its 95 % interval; None where there are too few seeds."""

    value: float
    low: float | None
    high: float | None
    df: float | None
    p: float | None  # two-sided, of a true value of 0


@dataclass(frozen=True)
class Sides:
    """One figure of both."""

    candidate: float
    baseline: float
    difference: Welch


@dataclass(frozen=True)
class Comparison:
    """The best candidate against one baseline."""

    candidate: str
    baseline: str
    seeds: tuple[int, int]
    verdict: Verdict
    p_adjusted: float | None
    nll: Sides
    auc: Sides
    error_rate: Sides
    error_reduction: float | None  # None: the baseline makes no error
    sentence: str = ""


@dataclass(frozen=True)
class ErrorRate:
    """The share of faces taken for the other label, from P(FAKE) = 0.5: a mean over seeds."""

    value: float
    low: float  # 95 %, bootstrap over photos, for the seeds as they are
    high: float


@dataclass(frozen=True)
class SliceRates:
    """The error rates of all models on one slice."""

    by: str
    slice: str
    faces: int
    photos: int
    error_rate: dict[str, ErrorRate]  # by model


@dataclass(frozen=True)
class Prior:
    """How far the shares of fakes lie apart, and what that moves."""

    val_fake_share: float
    test_fake_share: float
    sentence: str


@dataclass(frozen=True)
class Cell:
    """A figure that the report printed, beside ours with its interval over seeds and photos."""

    model: str
    figure: str
    printed: float
    ours: float
    low: float | None
    high: float | None
    verdict: Reproduction


@dataclass(frozen=True)
class Published:
    """What became of the report's figures."""

    source: str
    dataset: str
    cells: list[Cell]


@dataclass(frozen=True)
class Analysis:
    """Everything that a table of predictions says of one split."""

    split: str
    photos: int
    faces: int
    real: int
    fake: int
    prior: Prior
    resamples: int
    best: str | None  # the best candidate, by its NLL on validation
    models: list[ModelFigures]
    threshold_rule: str
    slices: list[SliceRates]
    comparisons: list[Comparison]
    published: Published


# of a study


@dataclass(frozen=True)
class Evaluation:
    """What evaluate found, and under which opening of the test split."""

    finalists: list[Evaluated]  # candidates and baselines
    diagnostics: list[Evaluated]  # the search's incumbents
    opening: dict[str, Any] | None
    openings: int  # different lists the test split was opened for, so far
    left_out: list[str] = field(default_factory=list)  # trainings without weights, and why
    analysis: Analysis | None = None  # of the predictions; None: of one slot alone
    test_sets: dict[str, Analysis] = field(default_factory=dict)  # of further ones, by name
    predictions_sha256: str | None = None
    corruptions: list[Row] | None = None  # of robustness.py; None: not measured


_EVALUATION = TypeAdapter(Evaluation)


def evaluation_of(slots: Slots) -> Evaluation | None:
    """What evaluate left of a study in its database; None before that.

    Raises UserError if another version of this program left it in another shape.
    """
    stored = slots.attribute("evaluation")
    try:
        return None if stored is None else _EVALUATION.validate_python(stored)
    except ValidationError as error:
        raise UserError(
            f"study '{slots.config.name}': its evaluation was stored by another version of "
            f"deepfake-study ({explain(error, ())}); evaluate it again with: deepfake-study "
            "evaluate CONFIG"
        ) from None
