"""Faces table + photos -> one small JPEG a face; each photo is decoded once, in parallel."""

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pandas as pd
from PIL import Image

from deepfake.config import DataConfig
from deepfake.data.layouts import DROPPED_COLUMNS
from deepfake.data.photos.reading import (
    UNREADABLE,
    Annotated,
    UnfitPhoto,
    View,
    annotated_sizes,
    cause_of,
    open_photo,
    view_photo,
)
from deepfake.errors import DataError, writing_data
from deepfake.files import write_whole
from deepfake.parallel import Progress, in_parallel

JPEG_QUALITY: Final = 95

_PHOTOS_A_CHUNK = 16


@dataclass(frozen=True)
class CutResult:
    """What did not become a crop, and how many crops lost a part of their box."""

    dropped: pd.DataFrame  # DROPPED_COLUMNS, in the faces' order
    clamped: int  # crops whose box, margin included, reached out of the photo
    mended: dict[str, int]  # photos that were not as their boxes see them: how many


@dataclass(frozen=True)
class _Face:
    row: int
    bbox: tuple[float, float, float, float]
    cutted_name: str
    is_cut: bool  # by an earlier, interrupted run


@dataclass(frozen=True)
class _Photo:
    path: Path
    annotated: Annotated | None  # its size, where the JSON says one
    faces: tuple[_Face, ...]


@dataclass(frozen=True)
class _Outcome:
    row: int
    reason: str | None  # why there is no crop
    clamped: bool = False


@dataclass(frozen=True)
class _CutPhoto:
    outcomes: list[_Outcome]
    view: View | None = None  # none of a photo that can't be taken


def crop_box(
    bbox: Sequence[float], photo_size: tuple[int, int], margin: float
) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the face in the photo, or None where they don't overlap.

    bbox: [x, y, w, h] in px. margin: share of w and h added on each side before clamping.
    """
    width, height = photo_size
    left, top, right, bottom = _with_margin(bbox, margin)
    box = (
        round(min(max(left, 0), width)),
        round(min(max(top, 0), height)),
        round(min(max(right, 0), width)),
        round(min(max(bottom, 0), height)),
    )
    return box if box[0] < box[2] and box[1] < box[3] else None


def _with_margin(bbox: Sequence[float], margin: float) -> tuple[float, float, float, float]:
    x, y, w, h = bbox
    return x - margin * w, y - margin * h, x + w + margin * w, y + h + margin * h


def cut_faces(
    faces: pd.DataFrame,
    photos: Mapping[str, Path | str],
    data: DataConfig,
    crops_dir: Path,
    processes: int | None = None,
    progress: Progress | None = None,
) -> CutResult:
    """Save every face that can be cut as crops_dir/cutted_name; crops that exist are kept.

    photos: of each file_name, as find_photos gives them. A photo that is missing or unreadable,
    or a box that can't be cut, is named in the result and stops nothing. Raises DataError if a
    crop can't be written.
    """
    crops_dir.mkdir(parents=True, exist_ok=True)
    mended: Counter[str] = Counter()
    todo, outcomes = _plan(faces, photos, _existing(crops_dir))
    chunks = [todo[i : i + _PHOTOS_A_CHUNK] for i in range(0, len(todo), _PHOTOS_A_CHUNK)]
    cut = partial(_cut_photos, crops_dir=crops_dir, data=data)
    done = 0
    with contextlib.closing(in_parallel(cut, chunks, processes)) as results:
        for of_chunk, chunk in zip(results, chunks, strict=True):
            for photo in of_chunk:
                outcomes += photo.outcomes
                mended.update(photo.view.departures() if photo.view else ())
            done += len(chunk)
            if progress:
                progress("crops", done, len(todo))
    reasons = {outcome.row: outcome.reason for outcome in outcomes if outcome.reason}
    dropped = faces.iloc[sorted(reasons)].copy()
    dropped["reason"] = pd.Series([reasons[row] for row in sorted(reasons)], dropped.index, str)
    return CutResult(
        dropped=dropped[list(DROPPED_COLUMNS)].reset_index(drop=True),
        clamped=sum(outcome.clamped for outcome in outcomes),
        mended=dict(mended),
    )


def _existing(crops_dir: Path) -> set[str]:
    """Names of whole crops; a killed run's half-written ones are removed."""
    names = set()
    for entry in os.scandir(crops_dir):
        if entry.name.endswith(".tmp"):
            Path(entry).unlink(missing_ok=True)
        elif entry.stat().st_size:  # a power cut can leave a renamed file empty
            names.add(entry.name)
    return names


def _plan(
    faces: pd.DataFrame, photos: Mapping[str, Path | str], existing: set[str]
) -> tuple[list[_Photo], list[_Outcome]]:
    """The photos to open, each once with all its faces, and the faces without a photo."""
    by_file: dict[tuple[Path, Annotated | None], list[_Face]] = {}
    lost = []
    columns = (faces["file_name"], faces["bbox"], faces["cutted_name"], annotated_sizes(faces))
    for row, (file_name, bbox, cutted_name, size) in enumerate(zip(*columns, strict=True)):
        photo = photos[file_name]
        if isinstance(photo, str):
            lost.append(_Outcome(row, f"photo {photo}"))
            continue
        face = _Face(row, tuple(json.loads(bbox)), cutted_name, cutted_name in existing)
        by_file.setdefault((photo, size), []).append(face)
    return [_Photo(*file, tuple(of_photo)) for file, of_photo in by_file.items()], lost


def _cut_photos(photos: Iterable[_Photo], crops_dir: Path, data: DataConfig) -> list[_CutPhoto]:
    return [_cut_photo(photo, crops_dir, data) for photo in photos]


def _cut_photo(photo: _Photo, crops_dir: Path, data: DataConfig) -> _CutPhoto:
    with contextlib.ExitStack() as stack:
        try:
            if all(face.is_cut for face in photo.faces):  # its size decides what was dropped
                pixels = None
                view = view_photo(photo.path, photo.annotated, data.max_photo_megapixels)
            else:
                opened = open_photo(photo.path, photo.annotated, data.max_photo_megapixels)
                picture = stack.enter_context(opened)
                pixels, view = picture.pixels, picture.view
        except UNREADABLE as error:
            what = "photo" if isinstance(error, UnfitPhoto) else "photo unreadable:"
            reason = f"{what} {cause_of(error)}"
            return _CutPhoto([_Outcome(face.row, reason) for face in photo.faces])
        outcomes = [_cut_face(face, pixels, view, crops_dir, data) for face in photo.faces]
    return _CutPhoto(outcomes, view)


def _cut_face(
    face: _Face, pixels: Image.Image | None, view: View, crops_dir: Path, data: DataConfig
) -> _Outcome:
    """pixels: None where the face is cut already."""
    bbox = view.box(face.bbox)
    inner = crop_box(bbox, view.size, margin=0)
    if inner is None:
        return _Outcome(face.row, "box outside the photo")
    if min(inner[2] - inner[0], inner[3] - inner[1]) < data.min_face_px:
        return _Outcome(face.row, "box under min_face_px")
    if not face.is_cut:
        assert pixels is not None
        box = crop_box(bbox, view.size, data.margin)
        _save(pixels.crop(box), crops_dir / face.cutted_name)
    return _Outcome(face.row, None, _reaches_out(bbox, view.size, data.margin))


def _reaches_out(bbox: Sequence[float], size: tuple[int, int], margin: float) -> bool:
    left, top, right, bottom = _with_margin(bbox, margin)
    return left < 0 or top < 0 or right > size[0] or bottom > size[1]


def encoded(face: Image.Image) -> bytes:
    """A face as its crop's file holds it."""
    jpeg = io.BytesIO()  # Pillow writing to the disk itself hides why that failed
    face.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return jpeg.getvalue()


def _save(face: Image.Image, path: Path) -> None:
    content = encoded(face)
    with writing_data(path):
        # not durable: 100,000 waits for the disk, where an empty crop is cut again (_existing).
        # shared: a process of a killed run lives a moment longer
        write_whole(path, content, durable=False, shared=True)


def pixels_of(crop: Path, side: int) -> bytes:
    """A crop's row of the store; DataError if it is damaged."""
    try:
        with Image.open(crop) as face:
            return resized(face, side)
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"{crop}: not a whole crop ({error}); delete it and run deepfake-study prepare CONFIG"
        ) from None


def resized(face: Image.Image, side: int) -> bytes:
    """(side, side, 3) uint8."""
    return face.convert("RGB").resize((side, side), Image.Resampling.BILINEAR).tobytes()
