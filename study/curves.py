"""ROC, precision-recall and reliability of models on a split: what the charts are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from deepfake.metrics import confusion_matrix, fake_score, fit_temperature, reliability
from study.predictions import Finalist, SplitPredictions

MAX_POINTS = 300  # of a curve
DIGITS = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve of steps, the mean over seeds."""

    x: Floats
    y: Floats

    def as_dict(self) -> dict[str, list[float]]:
        return {"x": self.x.round(DIGITS).tolist(), "y": self.y.round(DIGITS).tolist()}


def curves(
    finalists: Sequence[Finalist], val: SplitPredictions, test: SplitPredictions
) -> list[dict[str, Any]]:
    """Of each finalist on test: roc, precision_recall, reliability before and after the
    temperature that validation chose, and where P(FAKE) = 0.5 lies on the first two."""
    val_labels, labels = torch.from_numpy(val.labels), torch.from_numpy(test.labels)
    found = []
    for finalist in finalists:
        of_seeds = torch.from_numpy(test.logits[finalist.model])
        temperatures = [
            fit_temperature(logits, val_labels)
            for logits in torch.from_numpy(val.logits[finalist.model])
        ]
        found.append(
            {
                "model": finalist.model,
                "role": finalist.role,
                "slot": finalist.slot,
                "seeds": len(finalist.seeds),
                "roc": roc(of_seeds, labels).as_dict(),
                "precision_recall": precision_recall(of_seeds, labels).as_dict(),
                "at_half": _at_half(of_seeds, labels),
                "reliability": {
                    "before": _reliability(of_seeds, labels, [1.0] * len(of_seeds)),
                    "after": _reliability(of_seeds, labels, temperatures),
                },
            }
        )
    return found


def roc(logits: torch.Tensor, labels: torch.Tensor) -> Curve:
    """x: false alarms, as a share of the reals; y: the share of fakes found with no more.

    logits: (seeds, N, 2). Between two points it is as high as at the left one.
    """
    of_seeds = [roc_curve(labels, fake_score(of_seed))[:2] for of_seed in logits]
    x = _thinned([false_alarms for false_alarms, _ in of_seeds])
    found = [y[np.searchsorted(of_x, x, "right") - 1] for of_x, y in of_seeds]
    return Curve(x, np.mean(found, axis=0))


def precision_recall(logits: torch.Tensor, labels: torch.Tensor) -> Curve:
    """x: recall of the fakes; y: precision at the highest threshold that reaches it.

    logits: (seeds, N, 2). Between two points it is as high as at the right one, so that the area
    is the average precision.
    """
    of_seeds = []
    for of_seed in logits:
        precision, recall, _ = precision_recall_curve(
            labels, fake_score(of_seed), drop_intermediate=True
        )
        of_seeds.append((recall[::-1], precision[::-1]))  # thresholds falling
    x = _thinned([recall for recall, _ in of_seeds])
    found = []
    for recall, precision in of_seeds:
        # the first point is scikit-learn's end, at no threshold: precision 1, recall 0
        found.append(precision[np.searchsorted(recall, x, "left")])
    return Curve(x, np.mean(found, axis=0))


def _thinned(of_seeds: Sequence[Floats]) -> Floats:
    """Where any seed's curve has a corner; of too many, every so-manieth, the ends always."""
    corners = np.unique(np.concatenate(of_seeds))
    if len(corners) <= MAX_POINTS:
        return corners
    chosen = np.linspace(0, len(corners) - 1, MAX_POINTS).round().astype(int)
    return np.asarray(corners[chosen])


def _at_half(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Means over seeds."""
    found = []
    for of_seed in logits:
        m = confusion_matrix(of_seed, labels)
        alarms = m.real_as_fake / (m.real_as_fake + m.real_as_real)
        recall = m.fake_as_fake / (m.fake_as_fake + m.fake_as_real)
        said = m.fake_as_fake + m.real_as_fake
        found.append((alarms, recall, m.fake_as_fake / said if said else 0.0))
    names = ("false_alarms", "recall", "precision")
    return dict(zip(names, np.mean(found, axis=0).round(DIGITS).tolist(), strict=True))


def _reliability(
    logits: torch.Tensor, labels: torch.Tensor, temperatures: Sequence[float]
) -> dict[str, list[float]]:
    """Each seed has bins of its own, of as many faces: the means of the first, second, ..."""
    of_seeds = [
        reliability(of_seed, labels, temperature)
        for of_seed, temperature in zip(logits, temperatures, strict=True)
    ]
    return Curve(*np.mean(of_seeds, axis=0)).as_dict()
