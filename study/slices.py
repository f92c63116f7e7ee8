"""Where models err: error rates by what can be said of a face and of its photo."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepfake.config import FAKE, LABELS
from deepfake.metrics import group_means, predict
from study.predictions import Finalist, SplitPredictions

SIZES = (0, 32, 64, 128)  # px of the box's shorter side, each up to the next
CROWDS = (1, 2, 4, 8)  # faces of a photo, likewise


@dataclass(frozen=True, eq=False)
class Slice:
    """Some of a split's faces."""

    by: str
    name: str
    faces: NDArray[np.bool_]  # (N,) which


@dataclass(frozen=True)
class ErrorRate:
    """The share of faces taken for the other label, from P(FAKE) = 0.5: a mean over seeds."""

    value: float
    low: float  # 95 %, bootstrap over photos, for the seeds as they are
    high: float


def slices(
    split: SplitPredictions, finalists: Sequence[Finalist], draws: NDArray[np.uint16]
) -> list[dict[str, Any]]:
    """Each slice that has faces, with every model's error rate.

    draws: of draw_photos for this split. Where no resample changes the rate, as in a slice
    without an error, 3 / n is the interval's half width, n the slice's photos (the rule of
    three). A resample without a face of the slice does not count.
    """
    parts = list(slices_of(split))
    rates = {f.model: _rates(split, f.model, parts, draws) for f in finalists}
    return [
        {
            "by": part.by,
            "slice": part.name,
            "faces": int(part.faces.sum()),
            "photos": _photos(split, part),
            "error_rate": {model: asdict(of_model[at]) for model, of_model in rates.items()},
        }
        for at, part in enumerate(parts)
    ]


def slices_of(split: SplitPredictions) -> Iterator[Slice]:
    """Those that have faces. A photo's faces and labels are those of this split."""
    photos, labels = split.photos, split.labels
    face_px = split.faces["face_px"].to_numpy(np.float64)
    n_faces = np.bincount(photos)
    fakes = np.bincount(photos, labels == FAKE)
    both = ((fakes > 0) & (fakes < n_faces))[photos]
    parts = [
        *(Slice("face size", name, inside) for name, inside in _binned(face_px, SIZES, " px")),
        *(Slice("faces in the photo", *part) for part in _binned(n_faces[photos], CROWDS)),
        Slice("labels in the photo", "one", ~both),
        Slice("labels in the photo", "both", both),
        *(Slice("label", name, labels == label) for label, name in enumerate(LABELS)),
    ]
    yield from (part for part in parts if part.faces.any())


def _binned(
    values: NDArray[Any], edges: Sequence[int], unit: str = ""
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        if high is None:
            yield f"{low}{unit} or more", values >= low
        elif unit:  # a length: any number
            name = f"{low} to {high}{unit}" if low else f"under {high}{unit}"
            yield name, (low <= values) & (values < high)
        else:
            name = f"{low}" if high == low + 1 else f"{low} to {high - 1}"
            yield name, (low <= values) & (values < high)


def _photos(split: SplitPredictions, part: Slice) -> int:
    return len(np.unique(split.photos[part.faces]))


def _rates(
    split: SplitPredictions, model: str, parts: Sequence[Slice], draws: NDArray[np.uint16]
) -> list[ErrorRate]:
    of_seeds = (predict(torch.from_numpy(logits)).numpy() for logits in split.logits[model])
    wrong = np.mean([said != split.labels for said in of_seeds], axis=0)
    groups = np.stack([part.faces for part in parts])
    found = []
    for part, resampled in zip(
        parts, group_means(wrong, groups, split.photos, draws), strict=True
    ):
        value = float(wrong[part.faces].mean())
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
        margin = 3 / _photos(split, part) if low == high else 0.0
        low, high = min(low - margin, value), max(high + margin, value)
        found.append(ErrorRate(value, float(max(0.0, low)), float(min(1.0, high))))
    return found
