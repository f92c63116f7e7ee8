"""Pictures -> a probability a face, by an exported model and by nothing else."""

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepfake.config import FAKE, LABELS, REAL
from deepfake.data import UNREADABLE, cause_of, crop_box, encoded, read_faces, read_photo, resized
from deepfake.errors import DataError
from deepfake.export import ExportedModel, ModelInfo

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
    model: ExportedModel, pictures: Sequence[Path], boxes: Path | None = None
) -> Iterator[Prediction | Refused]:
    """One of the two for each face, in the pictures' order; of a picture without boxes the whole.

    A face goes the way of training: cut, compressed once, resized; a whole JPEG is taken for a
    crop, compressed already. boxes: an OpenForensics JSON; its labels don't count. Raises
    DataError for a wrong one.
    """
    boxes_of = None if boxes is None else _Boxes(boxes)
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
    name, prepared = str(picture), info.preparation
    try:
        found = [None] if boxes is None else boxes.of(picture)
        photo = read_photo(picture)
    except DataError as error:
        yield Refused(name, str(error))
        return
    except UNREADABLE as error:
        yield Refused(name, cause_of(error))
        return
    for box in found:
        inner = (0, 0, *photo.size) if box is None else crop_box(box, photo.size, margin=0)
        if inner is None:
            yield Refused(name, f"box {list(box or ())} is outside the picture")
            continue
        small = min(inner[2] - inner[0], inner[3] - inner[1]) < prepared.min_face_px
        note = f"under {prepared.min_face_px} px: training saw no face so small" if small else None
        face = _as_crop(photo, box, prepared.margin)
        yield _Face(name, box, resized(face, info.side_px), note)


def _as_crop(photo: Image.Image, box: Box | None, margin: float) -> Image.Image:
    """The face as training reads it from its crop's file."""
    if box is None and photo.format in ("JPEG", "MPO"):  # prepare's crops themselves are such
        return photo
    face = photo if box is None else photo.crop(crop_box(box, photo.size, margin))
    return Image.open(io.BytesIO(encoded(face)))


class _Boxes:
    """The boxes of an OpenForensics JSON, by picture."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is no such JSON."""
        self.path = path
        self._boxes: dict[str, list[Box]] = defaultdict(list)
        faces = read_faces([path])
        for file_name, bbox in zip(faces["file_name"], faces["bbox"], strict=True):
            x, y, w, h = json.loads(bbox)
            self._boxes[file_name].append((x, y, w, h))
        self._by_base_name: dict[str, list[str]] = defaultdict(list)
        for file_name in sorted(self._boxes, key=len):
            self._by_base_name[Path(file_name).name].append(file_name)

    def of(self, picture: Path) -> list[Box]:
        """Of the longest file_name that the path ends in, or of the only one of its base name."""
        parts = picture.absolute().parts
        named = self._by_base_name.get(picture.name, [])
        ends = [name for name in named if parts[-len(Path(name).parts) :] == Path(name).parts]
        match ends[-1:] or named:
            case []:
                raise DataError(f"{self.path} lists no face in this picture")
            case [name]:
                return self._boxes[name]
            case several:
                raise DataError(
                    f"{self.path} lists several pictures of this name; give a path that ends in "
                    f"one of them: {', '.join(several)}"
                )
