"""Where finalists err: by what a face is like, by threshold, and their surest mistakes."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from deepfake.config import FAKE, LABELS, REAL
from deepfake.data import UNREADABLE
from deepfake.metrics import (
    Floats,
    confusion_matrix,
    fake_probability,
    fake_score,
    fit_temperature,
    group_means,
    predict,
    reliability,
)
from study.evaluation.predictions import Finalist, SplitPredictions
from study.evaluation.results import ErrorRate, SliceRates

SIZES = (0, 32, 64, 128)  # px of the box's shorter side, each up to the next
CROWDS = (1, 2, 4, 8)  # faces of a photo, likewise


@dataclass(frozen=True, eq=False)
class Slice:
    """Some of a split's faces."""

    by: str
    name: str
    faces: NDArray[np.bool_]  # (N,) which


def slices(
    split: SplitPredictions, finalists: Sequence[Finalist], draws: NDArray[np.uint16]
) -> list[SliceRates]:
    """Each slice that has faces, with every model's error rate.

    draws: of draw_photos for this split. Where no resample changes the rate, as in a slice
    without an error, 3 / n is the interval's half width, n the slice's photos (the rule of
    three). A resample without a face of the slice does not count.
    """
    parts = list(slices_of(split))
    rates = {f.model: _rates(split, f.model, parts, draws) for f in finalists}
    return [
        SliceRates(
            by=part.by,
            slice=part.name,
            faces=int(part.faces.sum()),
            photos=_photos(split, part),
            error_rate={model: of_model[at] for model, of_model in rates.items()},
        )
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


MAX_POINTS = 300  # of a curve
DIGITS = 6


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


PICTURES = 24  # of a gallery
TILE_PX = 96  # the longer side of a picture

KINDS = {REAL: "real_as_fake", FAKE: "fake_as_real"}  # by the truth


@dataclass(frozen=True)
class Mistaken:
    """A face that was taken for the other label."""

    cutted_name: str
    p_fake: float  # the mean over seeds
    face_px: float  # the box's shorter side, in the photo


@dataclass(frozen=True)
class Gallery:
    """Faces of one label that a model takes for the other."""

    model: str
    label: int  # the truth
    errors: int  # in all
    faces: list[Mistaken]  # the first of them

    @property
    def kind(self) -> str:
        return KINDS[self.label]

    @property
    def title(self) -> str:
        return f"{LABELS[self.label]} taken for {LABELS[1 - self.label]}"


def galleries(split: SplitPredictions, model: str) -> list[Gallery]:
    """Real taken for fake, and fake taken for real, by the mean of P(FAKE) over seeds.

    The most confident first; of equals, as where all P(FAKE) are 1, by the mean score, then by
    name. A mean of 0.5 is fake.
    """
    of_seeds = torch.from_numpy(split.logits[model])
    p_fake = np.mean([fake_probability(logits).numpy() for logits in of_seeds], axis=0)
    score = np.mean([fake_score(logits).numpy() for logits in of_seeds], axis=0)
    says_fake, labels = p_fake >= 0.5, split.labels
    names = split.faces["cutted_name"].astype(str).to_numpy()
    face_px = split.faces["face_px"].to_numpy(float)
    found = []
    for label in (REAL, FAKE):
        sign = 1 if label == REAL else -1
        order = np.lexsort((names, -sign * score, -sign * p_fake))
        wrong = order[((labels == label) & (says_fake != (label == FAKE)))[order]]
        faces = [
            Mistaken(str(names[at]), float(p_fake[at]), float(face_px[at]))
            for at in wrong[:PICTURES]
        ]
        found.append(Gallery(model, label, len(wrong), faces))
    return found


def picture_of(crop: Path) -> Image.Image | None:
    """A crop in the size that galleries show; None if it is gone or damaged."""
    try:
        with Image.open(crop, formats=("JPEG",)) as face:
            picture = face.convert("RGB")
            picture.thumbnail((TILE_PX, TILE_PX))
            return picture
    except UNREADABLE:
        return None  # the figures don't depend on it: they stand


def jpeg_base64(picture: Image.Image) -> str:
    """For a page's data URL."""
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    return base64.b64encode(jpeg.getvalue()).decode()


def as_json(gallery: Gallery, pictures: list[Image.Image | None]) -> dict[str, Any]:
    """For a page: its pictures are within, as JPEG in base64."""
    faces = [
        {
            "name": face.cutted_name,
            "p_fake": face.p_fake,
            "px": face.face_px,
            "jpeg": picture and jpeg_base64(picture),
            "size": picture and picture.size,
        }
        for face, picture in zip(gallery.faces, pictures, strict=True)
    ]
    return {
        "model": gallery.model,
        "kind": gallery.kind,
        "title": gallery.title,
        "errors": gallery.errors,
        "faces": faces,
    }
