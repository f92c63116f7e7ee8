"""The scorecard of every resample of the photos: faces of one photo are drawn together."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from deepfake.config import FAKE
from deepfake.metrics.calibration import Chosen, binned_error
from deepfake.metrics.classification import (
    MIN_REALS,
    fake_probability,
    fake_score,
    measure,
    predict,
)

BOOTSTRAP_RESAMPLES = 2000
_CHUNK = 250  # resamples at once: their draws as float64 stay small
_ONE = 2**40  # 1 in fixed point: running sums of integers take a seventh of the time of floats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def draw_photos(
    photos: NDArray[np.int64],
    labels: NDArray[np.int64],
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = 0,
) -> NDArray[np.uint16]:
    """(resamples, photos): how often each photo was drawn, as many draws as photos.

    photos, labels: (N,) of each face; photos numbered from 0, both labels among the faces. A
    resample with one label alone has no AUC: it is drawn again.
    """
    n_photos = int(photos.max()) + 1
    fakes = np.bincount(photos, labels == FAKE, minlength=n_photos)
    reals = np.bincount(photos, labels != FAKE, minlength=n_photos)
    assert fakes.any()
    assert reals.any()
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, n_photos), np.uint16)
    row = 0
    while row < resamples:
        counts = np.bincount(rng.integers(0, n_photos, n_photos), minlength=n_photos)
        if counts @ fakes and counts @ reals:
            drawn[row] = counts
            row += 1
    return drawn


def resample(
    logits: Tensor,
    labels: Tensor,
    photos: NDArray[np.int64],
    draws: NDArray[np.uint16],
    chosen: Chosen,
) -> dict[str, Floats]:
    """The figures of scorecard, each (resamples,); a figure that is None there is absent.

    What validation chose stays as it is: the resamples are of this split alone.
    """
    found = _of_sums(_photo_sums(logits, labels, photos, chosen), draws)
    ranking = _Ranking(logits, labels, photos, chosen)
    by_rank = np.array([ranking.figures(row) for row in draws])
    found |= dict(zip(_Ranking.FIGURES, by_rank.T, strict=True))
    if int((labels != FAKE).sum()) < MIN_REALS:
        del found["recall_1_at_far_1pct"]
    return found


def percentiles(resampled: Floats, figure: float) -> Interval:
    """Of a figure's resamples; widened to hold the figure, for resampling adds to an ECE."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(min(float(low), figure), max(float(high), figure))


def intervals(logits: Tensor, labels: Tensor, photos: NDArray[np.int64]) -> dict[str, Interval]:
    """Of accuracy and AUC, as resample has them."""
    draws = draw_photos(photos, labels.numpy())
    correct = (predict(logits) == labels).numpy().astype(np.float64)
    resampled = {
        "accuracy": mean_losses(correct, photos, draws),
        "auc": auc_of_resamples(logits, labels, photos, draws),
    }
    figures = measure(logits, labels).as_dict()
    return {name: percentiles(values, figures[name]) for name, values in resampled.items()}


def mean_losses(losses: Floats, photos: NDArray[np.int64], draws: NDArray[np.uint16]) -> Floats:
    """(resamples,): the mean of losses (N,) over the faces of each resample."""
    sums = [np.bincount(photos, losses), np.bincount(photos, np.ones(len(photos)))]
    total, faces = _weighted(draws, np.stack(sums, axis=1))
    return np.asarray(total / faces)


def auc_of_resamples(
    logits: Tensor, labels: Tensor, photos: NDArray[np.int64], draws: NDArray[np.uint16]
) -> Floats:
    """(resamples,): the AUC alone, as resample has it."""
    scores = fake_score(logits).numpy()
    order = np.argsort(scores, kind="stable")
    fake, photos = (labels.numpy() == FAKE)[order].astype(np.int64), photos[order]
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each group of equals
    found = np.empty(len(draws))
    for at, drawn in enumerate(draws):
        times = drawn.astype(np.int64)[photos]
        fakes, both = times * fake, times
        if len(starts) < len(order):
            fakes, both = np.add.reduceat(fakes, starts), np.add.reduceat(both, starts)
        reals = both - fakes
        upto = np.cumsum(reals)
        found[at] = (fakes * (2 * upto - reals)).sum() / (2 * fakes.sum() * upto[-1])
    return found


def group_means(
    values: Floats,
    groups: NDArray[np.bool_],
    photos: NDArray[np.int64],
    draws: NDArray[np.uint16],
) -> Floats:
    """(groups, resamples): the mean of values (N,) over the faces of each group (groups, N).

    NaN where a resample has none of the group's faces.
    """
    sums = [np.bincount(photos, values * group, len(draws[0])) for group in groups]
    faces = [np.bincount(photos, group, len(draws[0])) for group in groups]
    total = _weighted(draws, np.stack([*sums, *faces], axis=1))
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(total[: len(groups)] / total[len(groups) :])


def _weighted(draws: NDArray[np.uint16], sums: Floats) -> Floats:
    """(columns, resamples): sums (photos, columns) of the photos of each resample."""
    parts = [draws[at : at + _CHUNK] @ sums for at in range(0, len(draws), _CHUNK)]
    return np.concatenate(parts).T


def _photo_sums(
    logits: Tensor, labels: Tensor, photos: NDArray[np.int64], chosen: Chosen
) -> dict[str, Floats]:
    """(photos,) each: what the figures that need no ranking are made of."""
    fake = labels == FAKE
    says, says_at_threshold = (predict(logits, t) == FAKE for t in (0.5, chosen.threshold))
    nll, nll_scaled = (
        functional.cross_entropy(logits.double() / t, labels, reduction="none")
        for t in (1.0, chosen.temperature)
    )
    of_faces = {
        "faces": torch.ones(len(labels)),
        "fakes": fake,
        "hits": fake & says,
        "alarms": ~fake & says,
        "right_at_threshold": fake == says_at_threshold,
        "nll": nll,
        "nll_scaled": nll_scaled,
        "brier": (fake_probability(logits) - labels) ** 2,
    }
    return {
        name: np.asarray(np.bincount(photos, values.numpy().astype(np.float64)), np.float64)
        for name, values in of_faces.items()
    }


def _of_sums(sums: dict[str, Floats], draws: NDArray[np.uint16]) -> dict[str, Floats]:
    drawn = _weighted(draws, np.stack(list(sums.values()), axis=1))
    s = dict(zip(sums, drawn, strict=True))
    faces, fakes, hits, alarms = s["faces"], s["fakes"], s["hits"], s["alarms"]
    reals, misses = faces - fakes, fakes - hits
    passed = reals - alarms
    recall_0, recall_1 = passed / reals, hits / fakes
    return {
        "accuracy": (passed + hits) / faces,
        "balanced_accuracy": (recall_0 + recall_1) / 2,
        "precision_0": passed / np.maximum(passed + misses, 1),  # none said so: 0
        "precision_1": hits / np.maximum(hits + alarms, 1),
        "recall_0": recall_0,
        "recall_1": recall_1,
        "f1_0": 2 * passed / (2 * passed + misses + alarms),
        "f1_1": 2 * hits / (2 * hits + misses + alarms),
        "accuracy_at_threshold": s["right_at_threshold"] / faces,
        **{name: s[name] / faces for name in ("nll", "nll_scaled", "brier")},
    }


class _Ranking:
    """Faces in ascending score, those of one score together, to be weighted in many ways."""

    FIGURES = ("auc", "average_precision", "eer", "recall_1_at_far_1pct", "ece", "ece_scaled")

    def __init__(
        self, logits: Tensor, labels: Tensor, photos: NDArray[np.int64], chosen: Chosen
    ) -> None:
        scores = fake_score(logits).numpy()
        order = np.argsort(scores, kind="stable")
        fake = (labels.numpy() == FAKE)[order]
        scaled = (scores[order] / t for t in (1.0, chosen.temperature))
        excess = (np.rint((expit(score) - fake) * _ONE) for score in scaled)
        self.photos = photos[order]
        self.values = np.stack([fake, ~fake, *excess]).astype(np.int64)
        ends = np.flatnonzero(np.diff(scores[order], append=np.inf))
        self.ends = None if len(ends) == len(order) else ends  # None: no two scores are equal

    def figures(self, drawn: NDArray[np.uint16]) -> tuple[float, ...]:
        """Of one resample: how often each photo was drawn -> FIGURES."""
        upto = np.cumsum(drawn.astype(np.int64)[self.photos] * self.values, axis=1)
        if self.ends is not None:
            upto = upto.take(self.ends, axis=1, mode="clip")  # three times as fast as [...]
        fakes_upto, reals_upto, *excess_upto = upto
        n_fakes, n_reals = fakes_upto[-1], reals_upto[-1]
        fakes, reals = np.diff(upto[:2], prepend=0)
        auc = (fakes * (2 * reals_upto - reals)).sum() / (2 * n_fakes * n_reals)
        # from here up: at this score as the threshold
        fakes_up = n_fakes - fakes_upto + fakes
        mass_up = fakes_up + n_reals - reals_upto + reals
        average_precision = (fakes * fakes_up / np.maximum(mass_up, 1)).sum() / n_fakes
        allowed = np.floor(n_reals * 0.01 + 1e-6)
        recall = 1 - fakes_upto[np.searchsorted(reals_upto, n_reals - allowed)] / n_fakes
        eer = _crossing(fakes_upto / n_fakes, 1 - reals_upto / n_reals)
        mass_upto = fakes_upto + reals_upto
        eces = (binned_error(mass_upto, excess) / _ONE for excess in excess_upto)
        return (auc, average_precision, eer, recall, *eces)


def _crossing(misses: Floats, alarms: Floats) -> float:
    """The equal error rate: misses rises from 0 to 1, alarms falls from 1 to 0, behind each
    group; straight between two groups."""
    gap = misses - alarms
    after = int(np.searchsorted(gap, 0))
    before = (gap[after - 1], alarms[after - 1]) if after else (-1.0, 1.0)
    share = -before[0] / (gap[after] - before[0])
    return float((1 - share) * before[1] + share * alarms[after])
