"""Draws data sets whose crops prove themselves: face n is a flat colour that no other has."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfake.config import DataConfig
from tests.support.photos import CATEGORIES

SIZE = (200, 120)  # of a photo, px
GREY = (90, 90, 90)  # around the faces
Box = tuple[int, int, int, int]  # x, y, w, h


def colour_of(number: int) -> tuple[int, int, int]:
    return (60 + number * 37 % 190, 60 + number * 91 % 190, 60 + number * 53 % 190)


def photo_of(faces: Sequence[tuple[Box, int]], size: tuple[int, int] = SIZE) -> Image.Image:
    photo = Image.new("RGB", size, GREY)
    for (x, y, w, h), number in faces:
        photo.paste(colour_of(number), (x, y, x + w, y + h))
    return photo


def draw_case(folder: Path, n_photos: int = 12, faces: int = 2) -> dict[str, Any]:
    """The photos p000.jpg and so on, below Images/Train, and the JSON's content."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image in range(n_photos):
        name, size = f"Images/Train/p{image:03d}.jpg", {"width": SIZE[0], "height": SIZE[1]}
        content["images"].append({"id": image, "file_name": name, **size})
        boxes = [(10 + 60 * k, 30, 40, 40) for k in range(faces)]
        numbers = [faces * image + k for k in range(faces)]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo_of(list(zip(boxes, numbers, strict=True))).save(folder / name, quality=95)
        for k, (number, box) in enumerate(zip(numbers, boxes, strict=True)):
            face = {"id": number, "image_id": image, "category_id": (image + k) % 2}
            content["annotations"].append({**face, "bbox": list(box)})
    return content


def case_config(folder: Path, content: dict[str, Any], **changes: Any) -> DataConfig:
    """Of a JSON with this content."""
    path = folder / "Train_poly.json"
    path.write_text(json.dumps(content, ensure_ascii=False))
    settings = {"annotations": (path,), "photos_dir": folder, "work_dir": folder / "work"}
    return DataConfig(**{**settings, **changes})


def number_of(crop: Path) -> int:
    """Of the face whose crop this is, by its name."""
    return int(crop.stem.rpartition("_")[2])


def wrong_crops(work_dir: Path) -> list[str]:
    """Names of crops that do not have their face's colour."""
    return [
        crop.name
        for crop in sorted((work_dir / "crops").iterdir())
        if not has_colour(crop, colour_of(number_of(crop)))
    ]


def has_colour(crop: Path, colour: Sequence[int], tolerance: float = 4) -> bool:
    """By the median: a JPEG smears the edge, and nothing else."""
    with Image.open(crop) as picture:
        median = np.median(np.asarray(picture, np.float64), axis=(0, 1))
    return bool(np.abs(median - colour).max() <= tolerance)
