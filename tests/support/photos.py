"""Draws a handful of small photos with an OpenForensics JSON, for tests of the data's flow."""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfake.config import DataConfig
from deepfake.data.prepare import Prepared, prepare_data

CATEGORIES = [{"id": 0, "name": "Real"}, {"id": 1, "name": "Fake"}]
SIZE = (96, 64)  # of every photo, px


def draw_photo(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Coarse coloured noise: no two crops are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    photo.save(path, quality=90)
    return photo


def face(number: int, image: int, label: int, bbox: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": label, "bbox": bbox, **more}


def write_json(path: Path, file_names: list[str], faces: list[dict[str, Any]]) -> Path:
    """Image ids count from 0."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(file_names)]
    content = {"categories": CATEGORIES, "images": images, "annotations": faces}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def draw_set(
    folder: Path,
    n_photos: int = 12,
    stem: str = "Train_poly",
    seed: int = 0,
    n_real: int | None = None,
) -> Path:
    """n photos with a real and a fake face each, 24 and 30 px, and their JSON.

    n_real: so many of the photos have a real face, without it all of them.
    """
    names = [f"Images/Train/{stem}{i}.jpg" for i in range(n_photos)]
    for i, name in enumerate(names):
        draw_photo(folder / name, seed=seed + i)
    faces = []
    for i in range(n_photos):
        if n_real is None or i < n_real:
            faces.append(face(2 * i, i, 0, [2 + i % 5, 3, 24, 24]))
        faces.append(face(2 * i + 1, i, 1, [50, 20 + i % 5, 30, 30]))
    return write_json(folder / f"{stem}.json", names, faces)


def huge_png(path: Path, width: int = 21_000, height: int = 10_000) -> Path:
    """210 megapixels of black in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def prepared_set(folder: Path, sides: Sequence[int], n_photos: int = 24) -> Prepared:
    """The faces of draw_set cut, split and stored in folder/work: of 24 photos, 48 faces."""
    path = draw_set(folder, n_photos)
    data = DataConfig(annotations=(path,), photos_dir=folder, work_dir=folder / "work")
    return prepare_data(data, sides=sides, processes=1)
