"""Shortcuts: how well a plain model predicts the label without looking at the face.

Each probe is fitted on a few numbers of the faces of train, and scored on val.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from deepfake.metrics import intervals
from deepfake.traits import ENCODING

FLAGGED_ABOVE = 0.55  # the interval's lower end


@dataclass(frozen=True)
class Verdict:
    """How well a probe tells fake from real on val."""

    probe: str  # of traits.TRAITS
    auc: float
    interval: tuple[float, float]  # 95 %, bootstrap over photos
    flagged: bool


@dataclass(frozen=True, eq=False)
class Described:
    """One trait of the faces of one split."""

    numbers: NDArray[np.float32]  # (N, as many as it has), NaN where there is none
    labels: NDArray[np.int64]  # (N,)
    photos: NDArray[np.int64]  # (N,) numbered from 0


def probe(name: str, train: Described, val: Described) -> Verdict:
    """The same descriptions give the same verdict."""
    model = _model(name)
    model.fit(train.numbers, train.labels)
    scores = model.decision_function(val.numbers)
    logits = torch.from_numpy(np.stack([np.zeros_like(scores), scores], axis=1))
    interval = intervals(logits, torch.tensor(val.labels), val.photos)["auc"]
    return Verdict(
        probe=name,
        auc=float(roc_auc_score(val.labels, scores)),
        interval=(interval.low, interval.high),
        flagged=interval.low > FLAGGED_ABOVE,
    )


def _model(name: str) -> Pipeline:
    """A logistic regression, on splines: it sees fakes of middle size among other real faces.

    The tables of `encoding` bend by themselves. Boosted trees told no more of 20,000 faces, and
    less of 1,300.
    """
    splines = [] if name == ENCODING else [SplineTransformer(n_knots=4, knots="quantile")]
    return make_pipeline(
        SimpleImputer(keep_empty_features=True),
        *splines,
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=1000),
    )
