"""Whether boxes are what they are said to be, found over all boxes of a file at once.

Four numbers alone don't tell whether they are a corner and a size, two corners, or shares of the
photo. What else a file says of its faces does: the photos' sizes, the areas, the outlines.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.config import BOX_FORMATS as FORMATS, LABELS, BoxFormat
from deepfake.errors import DataError

_NUMBERS = {
    "xywh": "x, y, width, height",
    "xyxy": "two corners x1, y1, x2, y2",
    "cxcywh": "centre x, centre y, width, height",
}
_LONGEST = 2.5  # times the shorter side of a face's box
_SLACK = 0.1  # of a box's side, that it may reach out of its photo: annotators are generous
_FILLED = (0.3, 1.05)  # share of its box that a face's outline covers, roughly
_ALIKE = 0.8  # intersection over union of a box and the outline's own
_USABLE = 0.5  # of the boxes: what fits fewer, whatever the format, tells nothing
_EXCEPTIONS = 0.02  # of the boxes: a format that can't be is one that fits no more
_UNLIKELY, _REFUTED = 0.1, 0.5  # of the boxes can't be in the format nobody chose, that was chosen
_FITS = 0.5  # of the boxes: what is named instead fits so many
_NEARLY = 0.1  # of the boxes: a format that fits so many fewer may be meant as well
_MANY = 20  # boxes
_MANY_OUTSIDE = 0.1  # of the boxes: past it, it is no matter of single ones

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]
_Fits = dict[BoxFormat, _Bools]  # of each format, the boxes that can be in it


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a file says of N faces; NaN where it says nothing."""

    numbers: list[list[float]]  # N of four, as they are written
    sizes: _Floats  # (N, 2) width and height of the photo, px
    areas: _Floats  # (N,) px
    outlines: _Floats  # (N, 4) left, top, right, bottom of the polygon; px, or shares


@np.errstate(all="ignore")  # a box may be of no size, or beyond all numbers
def check_boxes(path: Path, boxes: Boxes, ids: Sequence[int], box: BoxFormat | None) -> list[str]:
    """Warnings, a line each.

    ids: what each annotation is called. box: the format that was chosen, if one was; without it
    boxes are xywh. Raises DataError where they are in another format, which it names.
    """
    said = box or "xywh"
    fits = _fits(boxes)
    inside = {name: _inside(_corners(boxes, name), boxes.sizes, name) for name in FORMATS}
    bounded = {name: fits[name] & inside[name] for name in FORMATS}
    # who chose a format may have boxes that reach out of their photos
    if box is None:
        _refuse_another(path, boxes, ids, said, bounded, least=_UNLIKELY)
    else:
        _refuse_another(path, boxes, ids, said, fits, least=_REFUTED)
    return [
        *(_undecided(path, boxes, bounded) if box is None else ()),
        *_of_two_tools(path, boxes, ids, said, fits),
        *_outside(path, boxes, inside[said]),
    ]


def _refuse_another(
    path: Path, boxes: Boxes, ids: Sequence[int], said: BoxFormat, fits: _Fits, least: float
) -> None:
    """least: share of the boxes that must be impossible in the format that is said."""
    best = max(FORMATS, key=lambda name: (fits[name].mean(), name == said))
    against, in_favour = _contrast(fits, said, best)
    refuted = against >= least and in_favour <= _EXCEPTIONS and fits[best].mean() >= _FITS
    if not refuted and not (best.endswith("_shares") and not fits[said].any()):
        return
    first = int(np.argmax(fits[best] & ~fits[said]))
    alike = [
        name
        for name in FORMATS
        if name != best and fits[name].mean() >= fits[best].mean() - _NEARLY
    ]
    others = f" (or {', '.join(alike)}: nearly as many can be that)" if alike else ""
    raise DataError(
        f"{path}: boxes are not {described(said)}: {_count(fits[said])} can be that,"
        f" {_count(fits[best])} can be {described(best)}; annotation {ids[first]}, for one, is"
        f" {boxes.numbers[first]}; set data.box: {best} (predict: --box-format {best}){others}"
    )


def _of_two_tools(
    path: Path, boxes: Boxes, ids: Sequence[int], said: BoxFormat, fits: _Fits
) -> Iterator[str]:
    """What areas and outlines tell; bounds have a warning of their own."""
    other = max(FORMATS, key=lambda name: _contrast(fits, said, name)[0])
    only_other = fits[other] & ~fits[said]
    if only_other.mean() >= _UNLIKELY:
        first = int(np.argmax(only_other))
        yield (
            f"{path}: {_count(only_other)} boxes can't be {described(said)}, as all were taken,"
            f" but can be {described(other)}, such as {boxes.numbers[first]} of annotation"
            f" {ids[first]}; if the file is of two tools, make it of one"
        )


def _undecided(path: Path, boxes: Boxes, fits: _Fits) -> Iterator[str]:
    """Few boxes may be both by chance; many are not."""
    _, in_favour = _contrast(fits, "xywh", "xyxy")
    differ = np.any(_corners(boxes, "xywh") != _corners(boxes, "xyxy"), axis=1)  # not at 0, 0
    if in_favour > _EXCEPTIONS or not (fits["xyxy"] & differ).any():
        return
    line = (
        f"{path}: nothing tells whether boxes are {described('xywh')} or {described('xyxy')}: all"
        " of them can be both, and there are no areas or polygons; set data.box (predict:"
        " --box-format) to xywh or xyxy"
    )
    if len(boxes.numbers) >= _MANY:
        raise DataError(line)
    yield f"{line}; they were taken as xywh"


def _count(which: _Bools) -> str:
    return f"{which.sum()} of {len(which)}"


def described(box: BoxFormat) -> str:
    numbers, _, shares = box.partition("_")
    return f"{_NUMBERS[numbers]} in {'shares of the photo' if shares else 'px'}"


def _contrast(fits: _Fits, said: BoxFormat, other: BoxFormat) -> tuple[float, float]:
    """Shares of the boxes that only the other format fits, and only the one that is said."""
    against, in_favour = fits[other] & ~fits[said], fits[said] & ~fits[other]
    return float(against.mean()), float(in_favour.mean())


def _fits(boxes: Boxes) -> _Fits:
    """Which boxes can be in each format, by their shapes, areas and outlines."""
    corners = {name: _corners(boxes, name) for name in FORMATS}
    in_px = {name: _in_px(corners[name], boxes.sizes, name) for name in FORMATS}
    fits = {name: _formed(corners[name], in_px[name], name) for name in FORMATS}
    outlined = {name: _outlined(in_px[name], boxes) for name in FORMATS}
    for told in (_filled(in_px, boxes.areas), outlined):
        if max(told[name].mean() for name in FORMATS) >= _USABLE:
            fits = {name: fits[name] & told[name] for name in FORMATS}
    return fits


def _corners(boxes: Boxes, box: BoxFormat) -> _Floats:
    """(N, 4) left, top, right, bottom, in px or shares as the format is."""
    numbers = np.array(boxes.numbers, np.float64).reshape(-1, 4)
    first, second = numbers[:, :2], numbers[:, 2:]
    match box.partition("_")[0]:
        case "xywh":
            return np.hstack([first, first + second])
        case "xyxy":
            return numbers
        case _:
            return np.hstack([first - second / 2, first + second / 2])


def _sides(corners: _Floats) -> _Floats:
    sides: _Floats = corners[:, 2:] - corners[:, :2]
    return sides


def _formed(corners: _Floats, in_px: _Floats, box: BoxFormat) -> _Bools:
    """Where the box has a size, and a face's shape."""
    low, high = (0, 1 + _SLACK) if box.endswith("_shares") else (1 + _SLACK, np.inf)
    sized = np.all((low < _sides(corners)) & (_sides(corners) <= high), axis=1)
    too_long = _sides(in_px).max(axis=1) > _LONGEST * _sides(in_px).min(axis=1)
    formed: _Bools = sized & ~too_long
    return formed


def _inside(corners: _Floats, sizes: _Floats, box: BoxFormat) -> _Bools:
    """Of a photo whose size is unknown, right and below there is room."""
    ends = np.ones_like(sizes) if box.endswith("_shares") else sizes
    slack = _SLACK * np.abs(_sides(corners))
    begins = corners[:, :2] >= -slack
    stops = (corners[:, 2:] <= ends + slack) | np.isnan(ends)
    inside: _Bools = np.all(begins & stops, axis=1)
    return inside


def _in_px(corners: _Floats, sizes: _Floats, box: BoxFormat) -> _Floats:
    return corners * np.hstack([sizes, sizes]) if box.endswith("_shares") else corners


def _filled(in_px: dict[BoxFormat, _Floats], areas: _Floats) -> _Fits:
    """Where the area is that of a face in the box: the box's own, or its outline's."""
    shares = {name: areas / np.prod(_sides(corners), axis=1) for name, corners in in_px.items()}
    own = {name: np.abs(share - 1) < 0.05 for name, share in shares.items()}
    known = areas > 1  # an area of 0 or of a share tells nothing
    is_own = known.any() and max(of[known].mean() for of in own.values()) >= _USABLE
    low, high = _FILLED
    return {
        name: ~known | np.isnan(share) | (own[name] if is_own else (low < share) & (share < high))
        for name, share in shares.items()
    }


def _outlined(in_px: _Floats, boxes: Boxes) -> _Bools:
    """Where the box is that of the outline."""
    outlines = boxes.outlines
    if np.nanmax(outlines, initial=0) <= 1.5:
        outlines = outlines * np.hstack([boxes.sizes, boxes.sizes])
    shared = np.hstack(
        [np.maximum(in_px[:, :2], outlines[:, :2]), np.minimum(in_px[:, 2:], outlines[:, 2:])]
    )
    common = np.prod(np.maximum(_sides(shared), 0), axis=1)
    either = np.prod(_sides(in_px), axis=1) + np.prod(_sides(outlines), axis=1) - common
    alike: _Bools = np.isnan(common) | (common >= _ALIKE * either)
    return alike


def _outside(path: Path, boxes: Boxes, inside: _Bools) -> Iterator[str]:
    known = ~np.isnan(boxes.sizes).any(axis=1)
    outside = ~inside[known]
    if outside.sum() > _MANY_OUTSIDE * len(outside):
        yield (
            f"{path}: {_count(outside)} boxes reach out of their photos: most likely they are of"
            " photos of another size than 'images' says"
        )


@np.errstate(all="ignore")
def as_xywh(
    path: Path, boxes: Boxes, ids: Sequence[int], box: BoxFormat | None
) -> list[list[float]]:
    """x, y, width, height in px of each box; as they are written where they are that already.

    Raises DataError for a share of a photo whose size is unknown.
    """
    if box is None or box == "xywh":
        return boxes.numbers
    if box.endswith("_shares") and (unknown := np.isnan(boxes.sizes).any(axis=1)).any():
        raise DataError(
            f"{path}: annotation {ids[int(np.argmax(unknown))]}: its photo has no width and height"
            f" in 'images', which data.box: {box} needs; add them"
        )
    corners = _in_px(_corners(boxes, box), boxes.sizes, box)
    if (beyond := ~np.isfinite(corners).all(axis=1)).any():
        at = int(np.argmax(beyond))
        raise DataError(
            f"{path}: annotation {ids[at]}: bbox {boxes.numbers[at]} is beyond all photos; correct"
            " or remove the annotation"
        )
    # to a thousandth: 0.05 of 200 is 10, not 10.000000000000002
    found: list[list[float]] = np.hstack([corners[:, :2], _sides(corners)]).round(3).tolist()
    return found


def check_labels(faces: pd.DataFrame, pictures: Sequence[str]) -> None:
    """Raise DataError for one box of a photo that is both real and fake.

    pictures: what tells a face's photo from others, for each face.
    """
    numbers = np.array(faces["bbox"].map(json.loads).tolist(), np.float64).reshape(-1, 4)
    first_of: dict[tuple[float | str, ...], int] = {}
    torn = []
    labels = faces["category_id"].tolist()
    corners = np.hstack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]]).round().tolist()
    for row, (picture, pixels) in enumerate(zip(pictures, corners, strict=True)):
        first = first_of.setdefault((picture, *pixels), row)
        if labels[first] != labels[row]:
            torn.append((first, row))
    if not torn:
        return
    names = [
        f"annotation {face['id_x']} of {face['source']} is {LABELS[face['category_id']]}"
        f" ({face['file_name']})"
        for face in faces.iloc[list(torn[0])].to_dict("records")
    ]
    raise DataError(
        f"one box of one picture, {faces['bbox'].iloc[torn[0][0]]}, has two labels:"
        f" {', '.join(names)}; remove one (there are {len(torn)} such boxes)"
    )
