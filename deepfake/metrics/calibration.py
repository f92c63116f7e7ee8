"""What validation chooses for a trained model: a temperature and a threshold; and the ECE."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepfake.metrics.classification import cross_entropy, fake_probability, fake_score, predict

if TYPE_CHECKING:  # as in classification.py
    from torch import Tensor

ECE_BINS = 15
HOTTEST = 100.0  # the temperature is sought between 1 / HOTTEST and HOTTEST


@dataclass(frozen=True)
class Chosen:
    """What validation chose for one training."""

    temperature: float  # logits / temperature have the lowest cross-entropy on validation
    threshold: float  # of the unscaled P(FAKE): a face that reaches it is called fake


def choose(logits: "Tensor", labels: "Tensor") -> Chosen:
    """logits: (N, 2), labels: (N,) of validation, both labels among them."""
    return Chosen(fit_temperature(logits, labels), choose_threshold(logits, labels))


def fit_temperature(logits: "Tensor", labels: "Tensor") -> float:
    """The T at which cross_entropy(logits / T) is lowest (Guo et al., 2017).

    1 where no face is on the wrong side: the cross-entropy then falls with T without end.
    """
    from scipy.optimize import minimize_scalar

    if bool((predict(logits) == labels).all()):
        return 1.0
    found = minimize_scalar(  # convex in 1 / T: one minimum
        lambda log_t: cross_entropy(logits.double() / math.exp(log_t), labels),
        bounds=(-math.log(HOTTEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


def choose_threshold(logits: "Tensor", labels: "Tensor") -> float:
    """The threshold of P(FAKE) with the highest balanced accuracy.

    Half-way between the two faces it parts; of several the nearest to 0.5.
    """
    from sklearn.metrics import roc_curve

    false_alarms, found, scores = roc_curve(
        labels, fake_probability(logits), drop_intermediate=False
    )
    scores = np.append(scores[1:], 0.0)  # scores[0] is infinite: nothing is called fake
    above, below = scores[:-1], scores[1:]
    middle = (above + below) / 2
    middle = np.where(middle > below, middle, above)  # neighbours among the float64
    gain = (found - false_alarms)[1:]
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(middle[best[np.argmin(np.abs(middle[best] - 0.5))]])


def reliability(
    logits: "Tensor", labels: "Tensor", temperature: float = 1.0, bins: int = ECE_BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bins,) the mean P(FAKE) and (bins,) the share of fakes of the ECE's bins."""
    from scipy.special import expit

    scores, group = np.unique(fake_score(logits).numpy(), return_inverse=True)
    mass = np.bincount(group)
    upto = np.cumsum(mass)
    borders = upto[-1] * np.arange(bins + 1) / bins

    def of_bins(sums: NDArray[Any]) -> NDArray[np.float64]:
        # straight within a group: each of its faces is shared out alike
        at_borders = np.interp(borders, np.append(0, upto), np.append(0, np.cumsum(sums)))
        return np.asarray(np.diff(at_borders) * bins / upto[-1])

    fakes = np.bincount(group, labels.numpy())
    return of_bins(mass * expit(scores / temperature)), of_bins(fakes)


def binned_error(upto: NDArray[Any], excess_upto: NDArray[Any], bins: int = ECE_BINS) -> float:
    """The ECE of groups of faces in ascending P(FAKE), those of one score together.

    |mean P(FAKE) - share of fakes| of equal-mass bins, averaged. Few faces have an ECE above 0
    however well calibrated they are, resamples of them more so.
    upto: faces up to and with each group; excess_upto: their sum of P(FAKE) - label. Every bin
    holds the same number: a group on a border is shared out, each of its faces alike.
    """
    borders = upto[-1] * np.arange(1, bins) / bins
    at = np.searchsorted(upto, borders)
    before = np.maximum(at - 1, 0)
    inside = at > 0  # else the group is the first
    mass = upto[at] - upto[before] * inside
    excess = excess_upto[at] - excess_upto[before] * inside
    beyond = (upto[at] - borders) / mass  # the share of the group that is in the next bin
    sums = np.diff(excess_upto[at] - beyond * excess, prepend=0.0, append=excess_upto[-1])
    return float(np.abs(sums).sum() / upto[-1])
