"""What tells the label without the face: traits of crop and photo, and a probe of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from deepfake.data import Picture

if TYPE_CHECKING:  # a process that only reads photos needs none of it: see probe
    from sklearn.pipeline import Pipeline

_TABLE = 64  # entries of a JPEG quantisation table

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as its file has it."""

    pixels: Image.Image  # RGB
    n_bytes: int  # of the file
    tables: _Floats  # (128,) luminance, chrominance; zeros where it is no JPEG

    @classmethod
    def of(cls, picture: Picture, n_bytes: int) -> "Photo":
        """n_bytes: of the picture's file."""
        tables = np.zeros((2, _TABLE), np.float32)
        for number in picture.quantization.keys() & {0, 1}:
            tables[number] = picture.quantization[number]
        return cls(picture.pixels, n_bytes, tables.ravel())


@dataclass(frozen=True, eq=False)
class Face:
    """A face in its photo."""

    photo: Photo
    bbox: tuple[float, float, float, float]  # x, y, w, h, px of the photo
    box: tuple[int, int, int, int]  # left, top, right, bottom of its crop, margin included

    def crop(self) -> Image.Image:
        return self.photo.pixels.crop(self.box)


def geometry(face: Face) -> list[float]:
    """Where the box is, how large, and in how large a photo."""
    x, y, w, h = face.bbox
    width, height = face.photo.pixels.size
    place = [x, y, (x + w / 2) / width, (y + h / 2) / height]
    return [*place, w, h, w / h, w * h / (width * height), width, height]


def colours(face: Face) -> list[float]:
    """Mean and deviation of each channel of the crop, 0 to 1."""
    return _means_and_deviations(face.crop())


def encoding(face: Face) -> list[float]:
    """The file's bytes per pixel, in logarithm, and its JPEG quantisation tables."""
    width, height = face.photo.pixels.size
    return [float(np.log(face.photo.n_bytes / (width * height))), *face.photo.tables]


def surroundings(face: Face) -> list[float]:
    """Colour and detail of the crop's four corners, outside the ellipse that fills the box.

    28 numbers: of each corner mean and deviation of the channels, and the mean step from pixel to
    pixel. Taken at full size: a resized crop would carry the face into its surroundings. NaN for
    a corner the crop lacks.
    """
    x, y, w, h = face.bbox
    left, top, right, bottom = face.box
    across = (np.arange(left, right) + 0.5 - x - w / 2) / (w / 2)  # -1 to 1 in the box
    down = (np.arange(top, bottom) + 0.5 - y - h / 2)[:, None] / (h / 2)
    crop, outside = face.crop(), across**2 + down**2 > 1
    grey = np.asarray(crop.convert("L"), np.int16)
    found: list[float] = []
    for is_above in (True, False):
        for is_left in (True, False):
            corner = outside & ((down < 0) == is_above) & ((across < 0) == is_left)
            step = _mean_step(grey, corner)
            if np.isnan(step):
                found += [np.nan] * 7
            else:
                found += [*_means_and_deviations(crop, corner), step]
    return found


def _means_and_deviations(
    crop: Image.Image, where: NDArray[np.bool_] | None = None
) -> list[float]:
    stat = ImageStat.Stat(crop, None if where is None else Image.fromarray(where))
    deviations = np.sqrt(np.maximum(stat.var, 0))  # rounding puts a flat crop's below zero
    return [float(value) / 255 for value in (*stat.mean, *deviations)]


def _mean_step(grey: NDArray[np.int16], where: NDArray[np.bool_]) -> float:
    """Between neighbours that both lie there, 0 to 1; NaN where there are none."""
    across = np.abs(np.diff(grey, axis=1))[where[:, 1:] & where[:, :-1]]
    down = np.abs(np.diff(grey, axis=0))[where[1:] & where[:-1]]
    n = len(across) + len(down)
    return float((across.sum() + down.sum()) / (255 * n)) if n else np.nan


ENCODING = "encoding"
TRAITS: dict[str, Callable[[Face], list[float]]] = {
    "geometry": geometry,
    "colours": colours,
    ENCODING: encoding,
    "surroundings": surroundings,
}

FLAGGED_ABOVE = 0.55  # the interval's lower end


@dataclass(frozen=True)
class Verdict:
    """How well a probe tells fake from real on val."""

    probe: str  # of TRAITS
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
    import torch
    from sklearn.metrics import roc_auc_score

    from deepfake.metrics import intervals

    model = _model(name)
    model.fit(train.numbers, train.labels)
    scores = model.decision_function(val.numbers)
    logits = torch.from_numpy(np.stack([np.zeros_like(scores), scores], axis=1))
    auc = float(roc_auc_score(val.labels, scores))
    interval = intervals(logits, torch.tensor(val.labels), val.photos, {"auc": auc})["auc"]
    return Verdict(
        probe=name,
        auc=auc,
        interval=(interval.low, interval.high),
        flagged=interval.low > FLAGGED_ABOVE,
    )


def _model(name: str) -> "Pipeline":
    """A logistic regression, on splines: it sees fakes of middle size among other real faces.

    The tables of `encoding` bend by themselves. Boosted trees told no more of 20,000 faces, and
    less of 1,300.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer, StandardScaler

    splines = [] if name == ENCODING else [SplineTransformer(n_knots=4, knots="quantile")]
    return make_pipeline(
        SimpleImputer(keep_empty_features=True),
        *splines,
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=1000),
    )
