"""What a re-evaluation found."""

from dataclasses import dataclass, field
from typing import Any

from study.predictions import Role
from study.proof import Proof
from study.robustness import Row


@dataclass(frozen=True)
class SplitFigures:
    """One model measured on one split."""

    faces: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %, bootstrap over photos
    confusion: list[list[int]]  # rows: true real, true fake; columns: predicted


@dataclass(frozen=True)
class Evaluated:
    """One training, re-evaluated."""

    model: str  # the baseline's name, "slot N", or "incumbent N"
    role: Role
    slot: int  # of the search
    seed: int
    variant: str
    weights_sha256: str
    proof: Proof
    val: SplitFigures
    test: SplitFigures | None  # None unless these weights are in an opened list
    test_sets: dict[str, SplitFigures] = field(default_factory=dict)  # the further ones, by name


@dataclass(frozen=True)
class Evaluation:
    """What evaluate found, and under which opening of the test split."""

    finalists: list[Evaluated]  # candidates and baselines
    diagnostics: list[Evaluated]  # the search's incumbents
    opening: dict[str, Any] | None
    openings: int  # different lists the test split was opened for, so far
    left_out: list[str] = field(default_factory=list)  # trainings without weights, and why
    analysis: dict[str, Any] | None = None  # of the predictions: see study.analysis
    test_sets: dict[str, Any] = field(default_factory=dict)  # the same of further ones, by name
    predictions_sha256: str | None = None
    corruptions: list[Row] | None = None  # of study.robustness; None: not measured
