"""Resamples of the photos, and intervals from them: faces of one photo are drawn together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepfake.config import FAKE
from deepfake.metrics.figures import resample
from deepfake.metrics.weighting import Floats, weighted

if TYPE_CHECKING:  # as in classification.py
    from torch import Tensor

BOOTSTRAP_RESAMPLES = 2000


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


def percentiles(resampled: Floats, figure: float) -> Interval:
    """Of a figure's resamples; widened to hold the figure, for resampling adds to an ECE."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(min(float(low), figure), max(float(high), figure))


def intervals(
    logits: "Tensor",
    labels: "Tensor",
    photos: NDArray[np.int64],
    figures: Mapping[str, float],
    draws: NDArray[np.uint16] | None = None,
) -> dict[str, Interval]:
    """Of figures that measure gave for these faces. draws: of draw_photos, drawn here without."""
    if draws is None:
        draws = draw_photos(photos, labels.numpy())
    resampled = resample(logits, labels, photos, draws, figures)
    return {name: percentiles(resampled[name], figure) for name, figure in figures.items()}


def mean_losses(losses: Floats, photos: NDArray[np.int64], draws: NDArray[np.uint16]) -> Floats:
    """(resamples,): the mean of losses (N,) over the faces of each resample."""
    sums = [np.bincount(photos, losses), np.bincount(photos, np.ones(len(photos)))]
    total, faces = weighted(draws, sums)
    return np.asarray(total / faces)


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
    total = weighted(draws, [*sums, *faces])
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(total[: len(groups)] / total[len(groups) :])
