"""The faces that a model takes for the other label, the most confident first, with pictures."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepfake.config import FAKE, LABELS, REAL
from deepfake.data import UNREADABLE
from deepfake.metrics import fake_probability, fake_score
from study.predictions import SplitPredictions

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
