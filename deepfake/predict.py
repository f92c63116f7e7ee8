"""Pictures -> a probability a face, by an exported model and by nothing else."""

import io
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepfake.config import FAKE, LABELS, REAL, BoxFormat
from deepfake.data import (
    UNREADABLE,
    Annotated,
    Picture,
    annotated_sizes,
    cause_of,
    crop_box,
    encoded,
    name_pictures,
    open_photo,
    read_boxes,
    resized,
)
from deepfake.errors import DataError
from deepfake.export import ExportedModel, ModelInfo

log = logging.getLogger(__name__)

BATCH_FACES = 64

Box = tuple[float, float, float, float]  # x, y, w, h in px


@dataclass(frozen=True)
class Prediction:
    """What the model says of one face."""

    picture: str
    box: Box | None  # None: the whole picture
    probability: float  # of FAKE, after the temperature
    verdict: str  # real or fake, by the model's threshold
    note: str | None  # why not to trust it


@dataclass(frozen=True)
class Refused:
    """A picture, or a box of it, that can't be judged."""

    picture: str
    reason: str


@dataclass(frozen=True)
class _Face:
    picture: str
    box: Box | None
    pixels: bytes  # (side, side, 3)
    note: str | None


def predict(
    model: ExportedModel,
    pictures: Sequence[Path],
    boxes: Path | None = None,
    box_format: BoxFormat | None = None,
) -> Iterator[Prediction | Refused]:
    """One of the two for each face, in the pictures' order; of a picture without boxes the whole.

    A face goes the way of training: cut, compressed once, resized; a whole JPEG is taken for a
    crop, compressed already. boxes: an OpenForensics JSON or a detector's; labels don't count.
    box_format: as data.box.
    A whole picture is turned as its orientation tag says, one with boxes if the JSON's width and
    height are those of the turned one. Raises DataError for a wrong JSON.
    """
    boxes_of = None if boxes is None else _Boxes(boxes, pictures, box_format)
    faces = (face for picture in pictures for face in _faces(picture, boxes_of, model.info))
    while chunk := list(islice(faces, BATCH_FACES)):
        whole = [face for face in chunk if isinstance(face, _Face)]
        probabilities = iter(_probabilities(model, whole))
        for face in chunk:
            if isinstance(face, Refused):
                yield face
                continue
            p = next(probabilities)
            verdict = LABELS[FAKE if p >= model.info.threshold else REAL]
            yield Prediction(face.picture, face.box, p, verdict, face.note)


def _probabilities(model: ExportedModel, faces: Sequence[_Face]) -> list[float]:
    if not faces:
        return []
    side = model.info.side_px
    pixels = np.frombuffer(b"".join(face.pixels for face in faces), np.uint8).copy()
    found: list[float] = model.probabilities(
        torch.from_numpy(pixels).view(-1, side, side, 3)
    ).tolist()
    return found


def _faces(picture: Path, boxes: "_Boxes | None", info: ModelInfo) -> Iterator[_Face | Refused]:
    name = str(picture)
    try:
        listed = _WHOLE if boxes is None else boxes.of(picture)
        with open_photo(picture, listed.annotated, upright=boxes is None) as photo:
            faces = [_face(name, box, listed, photo, info) for box in listed.boxes]
    except DataError as error:
        yield Refused(name, str(error))
    except UNREADABLE as error:
        yield Refused(name, cause_of(error))
    else:
        yield from faces


def _face(
    name: str, box: Box | None, listed: "_Listed", photo: Picture, info: ModelInfo
) -> _Face | Refused:
    view, prepared = photo.view, info.preparation
    bbox = (0, 0, *view.size) if box is None else view.box(box)
    inner = crop_box(bbox, view.size, margin=0)
    if inner is None:
        return Refused(name, f"box {list(box or ())} is outside the picture")
    notes = [*listed.notes]
    if view.scale != (1, 1):
        notes.append("of another size than its boxes, which are scaled")
    if view.is_unclear and box is not None:
        notes.append("has an orientation tag: its boxes are taken for those of the stored picture")
    if min(inner[2] - inner[0], inner[3] - inner[1]) < prepared.min_face_px:
        notes.append(f"under {prepared.min_face_px} px: training saw no face so small")
    cut = None if box is None else crop_box(bbox, view.size, prepared.margin)
    face = _as_crop(photo.pixels, cut)
    return _Face(name, box, resized(face, info.side_px), "; ".join(notes) or None)


def _as_crop(photo: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image:
    """The face as training reads it from its crop's file; without a box the whole photo."""
    if box is None and photo.format in ("JPEG", "MPO"):  # prepare's crops themselves are such
        return photo
    return Image.open(io.BytesIO(encoded(photo if box is None else photo.crop(box))))


@dataclass(frozen=True)
class _Listed:
    """What is to be judged of a picture."""

    boxes: tuple[Box | None, ...]  # None: the whole picture
    annotated: Annotated | None  # the size that its boxes are of
    notes: tuple[str, ...] = ()


_WHOLE = _Listed((None,), None)


class _Boxes:
    """The boxes of an OpenForensics JSON, by picture."""

    def __init__(self, path: Path, pictures: Sequence[Path], box_format: BoxFormat | None) -> None:
        """Raises DataError if it is no such JSON."""
        self.path = path
        annotations = read_boxes(path, box_format)
        for warning in annotations.warnings:
            log.warning("%s", warning)
        self._boxes: dict[str, list[Box]] = defaultdict(list)
        self._sizes: dict[str, Annotated | None] = {}
        faces = annotations.faces
        columns = (faces["file_name"], faces["bbox"], annotated_sizes(faces))
        for file_name, bbox, size in zip(*columns, strict=True):
            x, y, w, h = json.loads(bbox)
            self._boxes[file_name].append((x, y, w, h))
            self._sizes[file_name] = size
        self._names_of = name_pictures(pictures, annotations.file_names)

    def of(self, picture: Path) -> _Listed:
        """Raises DataError if there are none, or those of several pictures."""
        named = self._names_of[picture]
        match named.file_names:
            case [name] if name in self._boxes and not named.is_contested:
                note = f"its boxes are those of {name}, by the base name alone"
                boxes, size = tuple(self._boxes[name]), self._sizes[name]
                return _Listed(boxes, size, (note,) if named.by_base_name else ())
            case [] | [_] if not named.is_contested:
                raise DataError(f"{self.path} lists no face in this picture")
            case [name]:
                raise DataError(
                    f"{self.path} lists {name}, which several of the pictures could be; give a"
                    " path that ends in it"
                )
            case several:
                raise DataError(
                    f"{self.path} lists several pictures of this name; give a path that ends in "
                    f"one of them: {', '.join(several)}"
                )
