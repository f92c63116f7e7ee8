"""What logits say of faces: a probability, a label; and how right they are of all of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepfake.config import FAKE, REAL

# torch, scipy and sklearn take seconds to load: this room imports them where it computes, for
# a table wants no more of it than the headings in METRICS
if TYPE_CHECKING:
    from torch import Tensor


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


def cross_entropy(logits: "Tensor", labels: "Tensor") -> float:
    """The mean over faces of -log softmax(logits)[label], in float64. logits: (N, 2)."""
    from torch.nn import functional

    return float(functional.cross_entropy(logits.double(), labels))


def accuracy(logits: "Tensor", labels: "Tensor") -> float:
    return float((predict(logits) == labels).double().mean())


def predict(logits: "Tensor", threshold: float = 0.5) -> "Tensor":
    """The labels (N,) that logits (N, 2) say: FAKE where P(FAKE) reaches threshold."""
    import torch

    return torch.where(fake_probability(logits) >= threshold, FAKE, REAL)


def fake_probability(logits: "Tensor") -> "Tensor":
    """P(FAKE) = softmax(logits)[:, 1], float64."""
    return logits.double().softmax(dim=1)[:, FAKE]


def confusion_matrix(
    logits: "Tensor", labels: "Tensor", threshold: float = 0.5
) -> ConfusionMatrix:
    """Count the four outcomes, FAKE being the positive class.

    logits: (N, 2); P(FAKE) = softmax[:, 1]. labels: (N,), 0 or 1. A probability equal to
    threshold is FAKE. Raises ValueError if the shapes differ.
    """
    import torch

    if logits.shape != (len(labels), 2):
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    outcomes = 2 * labels + predict(logits, threshold)  # in the order of the fields
    return ConfusionMatrix(*torch.bincount(outcomes, minlength=4).tolist())


def fake_score(logits: "Tensor") -> "Tensor":
    """A score (N,) that ranks as P(FAKE) does, without its ties at 0 and 1."""
    return logits.double()[:, FAKE] - logits.double()[:, REAL]
