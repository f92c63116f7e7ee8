"""What one reading of every photo leaves for the audit: hashes of all, descriptions of some."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from deepfake.audit.perceptual_hash import perceptual_hash
from deepfake.audit.shortcuts import TRAITS, Face, Photo
from deepfake.config import SEEN, DataConfig
from deepfake.data import (
    UNREADABLE,
    Annotated,
    View,
    annotated_sizes,
    cause_of,
    crop_box,
    open_photo,
)
from deepfake.errors import DataError
from deepfake.parallel import Progress, in_parallel

_PHOTOS_A_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Traces:
    """Of N faces, in their table's order."""

    pixels_sha256: list[str]  # of each face's whole photo, size and decoded RGB
    photos: NDArray[np.uint8]  # (N, 32) perceptual hash of the whole photo
    faces: NDArray[np.uint8]  # (N, 32) perceptual hash of the crop
    numbers: dict[str, NDArray[np.float32]]  # (N, k) for each of TRAITS; NaN for test sets


@dataclass(frozen=True)
class _Task:
    """A photo and its faces."""

    path: Path
    annotated: Annotated | None  # its size, where the JSON says one
    rows: tuple[int, ...]
    bboxes: tuple[tuple[float, float, float, float], ...]
    described: tuple[bool, ...]  # not the faces of a test set


@dataclass(frozen=True, eq=False)
class _Read:
    rows: tuple[int, ...]
    pixels_sha256: str
    photo: NDArray[np.uint8]
    faces: list[NDArray[np.uint8]]
    numbers: list[list[NDArray[np.float32]] | None]  # of each face one array a trait


def read_traces(
    places: pd.DataFrame,
    photos: dict[str, Path],
    data: DataConfig,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Traces:
    """Read each photo once.

    places: faces with a crop, with SIZE; photos: of each of their file_names. Raises
    DataError for a photo that can no longer be read.
    """
    tasks = _plan(places, photos)
    chunks = [tasks[i : i + _PHOTOS_A_CHUNK] for i in range(0, len(tasks), _PHOTOS_A_CHUNK)]
    read = partial(_read_photos, data=data)
    found: list[_Read] = []
    with contextlib.closing(in_parallel(read, chunks, processes)) as results:
        for of_chunk in results:
            found += of_chunk
            if progress:
                progress("photos", len(found), len(tasks))
    return _in_order(found, len(places))


def _plan(places: pd.DataFrame, photos: dict[str, Path]) -> list[_Task]:
    by_file: dict[tuple[Path, Annotated | None], list[tuple[int, str, str]]] = {}
    columns = (places["file_name"], annotated_sizes(places), places["bbox"], places["split"])
    for row, (file_name, size, bbox, split) in enumerate(zip(*columns, strict=True)):
        by_file.setdefault((photos[file_name], size), []).append((row, bbox, split))
    return [
        _Task(
            *file,
            tuple(row for row, _, _ in faces),
            tuple(tuple(json.loads(bbox)) for _, bbox, _ in faces),
            tuple(split in SEEN for _, _, split in faces),
        )
        for file, faces in by_file.items()
    ]


def _read_photos(tasks: Iterable[_Task], data: DataConfig) -> list[_Read]:
    return [_read_one(task, data) for task in tasks]


def _read_one(task: _Task, data: DataConfig) -> _Read:
    with contextlib.ExitStack() as stack:
        try:
            n_bytes = task.path.stat().st_size
            opened = open_photo(task.path, task.annotated, data.max_photo_megapixels)
            picture = stack.enter_context(opened)
        except UNREADABLE as error:
            raise DataError(
                f"{task.path}: its faces were cut, and now it cannot be read: {cause_of(error)};"
                " put it back: the audit reads every photo"
            ) from None
        return _describe_photo(task, Photo.of(picture, n_bytes), picture.view, data.margin)


def _describe_photo(task: _Task, photo: Photo, view: View, margin: float) -> _Read:
    pixels = photo.pixels
    faces = [_face(photo, view.box(bbox), margin, task.path) for bbox in task.bboxes]
    described = zip(faces, task.described, strict=True)
    return _Read(
        rows=task.rows,
        pixels_sha256=_pixels_sha256(pixels),
        photo=perceptual_hash(pixels),
        faces=[perceptual_hash(pixels.crop(face.box)) for face in faces],
        numbers=[_describe(face) if is_seen else None for face, is_seen in described],
    )


def _face(photo: Photo, bbox: Sequence[float], margin: float, path: Path) -> Face:
    box = crop_box(bbox, photo.pixels.size, margin)
    if box is None:
        raise DataError(
            f"{path}: box {list(bbox)} lies outside its {photo.pixels.size} px, yet was cut: it is"
            " another photo now; put the first one back"
        )
    x, y, w, h = bbox
    return Face(photo, (x, y, w, h), box)


def _describe(face: Face) -> list[NDArray[np.float32]]:
    return [np.array(describe(face), np.float32) for describe in TRAITS.values()]


def _pixels_sha256(pixels: Image.Image) -> str:
    digest = hashlib.sha256(f"{pixels.width} x {pixels.height} ".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def _in_order(found: list[_Read], n: int) -> Traces:
    sha256 = [""] * n
    photos, faces = np.zeros((n, 32), np.uint8), np.zeros((n, 32), np.uint8)
    numbers: dict[str, NDArray[np.float32]] = {}
    for photo in found:
        for row, face, of_face in zip(photo.rows, photo.faces, photo.numbers, strict=True):
            sha256[row], photos[row], faces[row] = photo.pixels_sha256, photo.photo, face
            if of_face is None:
                continue
            for name, values in zip(TRAITS, of_face, strict=True):
                if name not in numbers:
                    numbers[name] = np.full((n, len(values)), np.nan, np.float32)
                numbers[name][row] = values
    return Traces(sha256, photos, faces, numbers)
