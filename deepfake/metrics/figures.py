"""METRICS: every figure once, computed from faces of which each counts as often as it was drawn.

One compute serves the figure itself, where each face counts once, and every resample of it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from deepfake.config import FAKE
from deepfake.metrics.calibration import Chosen
from deepfake.metrics.weighting import Floats, Order, Ranking, Scored, Sums

if TYPE_CHECKING:  # as in classification.py
    from torch import Tensor

MIN_REALS = 500  # 1 % of them is five faces

Place = Literal["table", "page", "mlflow"]


def auc(ranking: Ranking) -> float:
    """P(a fake above a real) + P(a tie) / 2."""
    fakes, reals, upto = ranking.fakes, ranking.reals, ranking.reals_upto
    return float((fakes * (2 * upto - reals)).sum() / (2 * fakes.sum() * upto[-1]))


def average_precision(ranking: Ranking) -> float:
    """The mean of precision over the fakes, each score in turn the threshold."""
    fakes, reals = ranking.fakes, ranking.reals
    n_faces = ranking.n_fakes + ranking.n_reals
    fakes_up = ranking.n_fakes - ranking.fakes_upto + fakes  # from this score up
    faces_up = n_faces - ranking.faces_upto + fakes + reals
    return float((fakes * fakes_up / np.maximum(faces_up, 1)).sum() / ranking.n_fakes)


def equal_error_rate(ranking: Ranking) -> float:
    """Where as large a share of reals is taken for fake as of fakes for real.

    The ROC curve's crossing with the line from (0, 1) to (1, 0), straight between its points.
    """
    misses = ranking.fakes_upto / ranking.n_fakes  # rises to 1 behind each group
    alarms = 1 - ranking.reals_upto / ranking.n_reals  # falls from 1
    gap = misses - alarms
    after = int(np.searchsorted(gap, 0))
    before = (gap[after - 1], alarms[after - 1]) if after else (-1.0, 1.0)
    share = -before[0] / (gap[after] - before[0])
    return float((1 - share) * before[1] + share * alarms[after])


def recall_at_false_alarms(ranking: Ranking, rate: float = 0.01) -> float:
    """The largest share of fakes found while at most rate of the reals is taken for fake."""
    allowed = np.floor(ranking.n_reals * rate + 1e-6)
    missed = ranking.fakes_upto[np.searchsorted(ranking.reals_upto, ranking.n_reals - allowed)]
    return float(1 - missed / ranking.n_fakes)


@dataclass(frozen=True)
class Metric:
    """What is said of one figure, and where. 0 is real, 1 is fake, the positive class."""

    title: str
    column: str = ""  # its heading in a table that is printed; empty: the title
    lower_is_better: bool = False
    of_choice: bool = False  # takes the temperature or the threshold that validation chose
    min_reals: int = 0  # of so few real faces there is no such figure
    # compare's table of predictions, the report's page; MLflow has it of each training
    places: tuple[Place, ...] = ("table", "page")

    @property
    def heading(self) -> str:
        return self.column or self.title


@dataclass(frozen=True, kw_only=True)
class Summed(Metric):
    """A figure made of sums over faces: counts of outcomes, or a mean."""

    compute: Callable[[Sums], Floats]  # (draws,)


@dataclass(frozen=True, kw_only=True)
class Ranked(Metric):
    """A figure of the faces in the order of their scores."""

    compute: Callable[[Ranking], float]  # of one draw


_EVERYWHERE: tuple[Place, ...] = ("table", "page", "mlflow")

# in the order of tables and page; P(FAKE) = 0.5 is fake unless the figure is of a choice
METRICS: dict[str, Summed | Ranked] = {
    "accuracy": Summed(
        "accuracy", places=_EVERYWHERE, compute=lambda s: (s.passed + s.hits) / s.faces
    ),
    "balanced_accuracy": Summed(
        "balanced accuracy",
        "balanced acc",
        places=("page",),
        compute=lambda s: (s.passed / s.reals + s.hits / s.fakes) / 2,
    ),
    "precision_0": Summed(  # none said so: 0
        "precision (real)",
        "P(0)",
        places=("mlflow",),
        compute=lambda s: s.passed / np.maximum(s.passed + s.misses, 1),
    ),
    "precision_1": Summed(
        "precision (fake)",
        "P(1)",
        places=("mlflow",),
        compute=lambda s: s.hits / np.maximum(s.hits + s.alarms, 1),
    ),
    "recall_0": Summed(
        "recall (real)", "R(0)", places=("mlflow",), compute=lambda s: s.passed / s.reals
    ),
    "recall_1": Summed(
        "recall (fake)", "R(1)", places=("mlflow",), compute=lambda s: s.hits / s.fakes
    ),
    "f1_0": Summed(
        "F1 (real)",
        "F1(0)",
        places=("mlflow",),
        compute=lambda s: 2 * s.passed / (2 * s.passed + s.misses + s.alarms),
    ),
    "f1_1": Summed(
        "F1 (fake)",
        "F1(1)",
        places=("mlflow",),
        compute=lambda s: 2 * s.hits / (2 * s.hits + s.misses + s.alarms),
    ),
    "auc": Ranked("AUC", places=_EVERYWHERE, compute=auc),
    "average_precision": Ranked("average precision", places=("page",), compute=average_precision),
    "eer": Ranked("equal error rate", "EER", lower_is_better=True, compute=equal_error_rate),
    "nll": Summed(
        "cross-entropy (NLL)",
        "NLL",
        lower_is_better=True,
        places=_EVERYWHERE,
        compute=lambda s: s.mean(Scored.losses),
    ),
    "nll_scaled": Summed(
        "NLL after temperature",
        lower_is_better=True,
        of_choice=True,
        places=(),
        compute=lambda s: s.mean(Scored.losses_scaled),
    ),
    "brier": Summed(
        "Brier score",
        lower_is_better=True,
        places=("page",),
        compute=lambda s: s.mean(Scored.squared_errors),
    ),
    "ece": Ranked(
        "calibration error (ECE)",
        "ECE",
        lower_is_better=True,
        compute=lambda r: r.calibration_error(scaled=False),
    ),
    "ece_scaled": Ranked(
        "ECE after temperature",
        "ECE scaled",
        lower_is_better=True,
        of_choice=True,
        compute=lambda r: r.calibration_error(scaled=True),
    ),
    "recall_1_at_far_1pct": Ranked(
        "fakes found at 1 % false alarms",
        "R(1) at 1 % false",
        min_reals=MIN_REALS,
        compute=recall_at_false_alarms,
    ),
    "accuracy_at_threshold": Summed(
        "accuracy at the threshold",
        of_choice=True,
        places=(),
        compute=lambda s: s.mean(Scored.right_at_threshold),
    ),
}


def measure(
    logits: "Tensor",
    labels: "Tensor",
    names: Iterable[str] | None = None,
    chosen: Chosen | None = None,
) -> dict[str, float]:
    """The figures of METRICS by name, where both labels occur; one that has none is absent.

    logits: (N, 2), labels: (N,). names: without them all. chosen: on validation; figures of
    such a choice need it.
    """
    each, once = np.arange(len(labels)), np.ones((1, len(labels)), np.uint16)
    found = resample(logits, labels, each, once, names, chosen)
    return {name: float(value) for name, (value,) in found.items()}


def logged_figures(logits: "Tensor", labels: "Tensor") -> dict[str, float]:
    """Those that MLflow gets of every training."""
    return measure(logits, labels, [name for name, m in METRICS.items() if "mlflow" in m.places])


def resample(
    logits: "Tensor",
    labels: "Tensor",
    photos: NDArray[np.int64],
    draws: NDArray[np.uint16],
    names: Iterable[str] | None = None,
    chosen: Chosen | None = None,
) -> dict[str, Floats]:
    """The figures of measure, (draws,) each. draws: of draw_photos.

    What validation chose stays as it is: the resamples are of this split alone.
    """
    n_reals = int((labels != FAKE).sum())
    metrics = {name: METRICS[name] for name in (METRICS if names is None else names)}
    metrics = {name: metric for name, metric in metrics.items() if n_reals >= metric.min_reals}
    assert chosen is not None or not any(metric.of_choice for metric in metrics.values())
    scored = Scored(logits, labels, photos, chosen)
    sums, order = Sums(scored, draws), Order(scored)
    found = {name: m.compute(sums) for name, m in metrics.items() if isinstance(m, Summed)}
    ranked = {name: m.compute for name, m in metrics.items() if isinstance(m, Ranked)}
    if ranked:
        by_rank = [_ranked(Ranking(order, drawn), ranked.values()) for drawn in draws]
        found |= zip(ranked, np.array(by_rank).T, strict=True)
    return {name: found[name] for name in metrics}


def _ranked(ranking: Ranking, computes: Iterable[Callable[[Ranking], float]]) -> list[float]:
    return [compute(ranking) for compute in computes]
