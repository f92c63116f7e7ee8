"""Logits + labels -> losses, confusion matrix, figures per class, with intervals over photos."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.metrics import (
    confusion_matrix as count_outcomes,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)
from torch import Tensor
from torch.nn import functional

from deepfake.config import FAKE, REAL

MIN_REALS = 500  # 1 % of them is five faces


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts by truth and prediction; positive = fake."""

    real_as_real: int
    real_as_fake: int
    fake_as_real: int
    fake_as_fake: int

    def rows(self) -> list[list[int]]:
        """[[real as real, real as fake], [fake as real, fake as fake]]."""
        return [[self.real_as_real, self.real_as_fake], [self.fake_as_real, self.fake_as_fake]]


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one split, at threshold 0.5. 0 is real, 1 is fake."""

    accuracy: float
    precision_0: float
    precision_1: float
    recall_0: float
    recall_1: float
    f1_0: float
    f1_1: float
    auc: float
    nll: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """The mean over faces of -log softmax(logits)[label], in float64. logits: (N, 2)."""
    return float(functional.cross_entropy(logits.double(), labels))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((predict(logits) == labels).double().mean())


def predict(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """The labels (N,) that logits (N, 2) say: FAKE where P(FAKE) reaches threshold."""
    return torch.where(fake_probability(logits) >= threshold, FAKE, REAL)


def fake_probability(logits: Tensor) -> Tensor:
    """P(FAKE) = softmax(logits)[:, 1], float64."""
    return logits.double().softmax(dim=1)[:, FAKE]


def confusion_matrix(logits: Tensor, labels: Tensor, threshold: float = 0.5) -> ConfusionMatrix:
    """Count the four outcomes, FAKE being the positive class.

    logits: (N, 2); P(FAKE) = softmax[:, 1]. labels: (N,), 0 or 1. A probability equal to
    threshold is FAKE. Raises ValueError if the shapes differ.
    """
    if logits.shape != (len(labels), 2):
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    counts = count_outcomes(labels, predict(logits, threshold), labels=[REAL, FAKE])
    return ConfusionMatrix(*(int(count) for count in counts.ravel()))


def measure(logits: Tensor, labels: Tensor) -> Metrics:
    """All figures of one split, where both labels occur. A class never predicted: precision 0."""
    predicted = predict(logits)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=[REAL, FAKE], zero_division=0
    )
    return Metrics(
        accuracy=accuracy(logits, labels),
        precision_0=float(precision[REAL]),
        precision_1=float(precision[FAKE]),
        recall_0=float(recall[REAL]),
        recall_1=float(recall[FAKE]),
        f1_0=float(f1[REAL]),
        f1_1=float(f1[FAKE]),
        auc=float(roc_auc_score(labels, fake_score(logits))),
        nll=cross_entropy(logits, labels),
    )


def fake_score(logits: Tensor) -> Tensor:
    """A score (N,) that ranks as P(FAKE) does, without its ties at 0 and 1."""
    return logits.double()[:, FAKE] - logits.double()[:, REAL]


def equal_error_rate(logits: Tensor, labels: Tensor) -> float:
    """Where as large a share of reals is taken for fake as of fakes for real.

    The ROC curve's crossing with the line from (0, 1) to (1, 0), straight between its points.
    """
    false_alarms, found, _ = roc_curve(labels, fake_score(logits), drop_intermediate=False)
    gap = 1 - found - false_alarms  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float((1 - share) * false_alarms[after - 1] + share * false_alarms[after])


def recall_at_false_alarms(logits: Tensor, labels: Tensor, rate: float = 0.01) -> float | None:
    """The largest share of fakes found while at most rate of the reals is taken for fake.

    None under MIN_REALS real faces: so small a rate of them is a handful.
    """
    reals = int((labels == REAL).sum())
    if reals < MIN_REALS:
        return None
    false_alarms, found, _ = roc_curve(labels, fake_score(logits), drop_intermediate=False)
    return float(found[false_alarms * reals <= rate * reals + 1e-6].max())
