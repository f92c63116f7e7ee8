"""A photo as it was annotated: its file found by name, its pixels read as 8-bit RGB."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from PIL import Image, UnidentifiedImageError

from deepfake.errors import DataError, one_line

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # not EPS: it runs programs
UNREADABLE = (  # what Pillow's decoders raise on damaged bytes; MemoryError is the machine's
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def find_photos(faces: pd.DataFrame, photos_dir: Path) -> dict[str, Path | str]:
    """Each file_name's photo, or the reason it has none; DataError if no photo at all is found."""
    photos = resolve_photos(faces["file_name"], photos_dir)
    if not any(isinstance(photo, Path) for photo in photos.values()):
        name, reason = next(iter(photos.items()))
        raise DataError(
            f"{photos_dir}: none of {len(photos)} photos found ({name!r} is {reason});"
            " set data.photos_dir to the folder that holds them"
        )
    return photos


def resolve_photos(file_names: Iterable[str], photos_dir: Path) -> dict[str, Path | str]:
    """For each name its photo's real path, or the reason there is none.

    Tried in turn: the name under photos_dir; the same without its leading `Images/` (the
    archives unpack so); the base name anywhere under photos_dir. Reasons: 'absent',
    'ambiguous: a, b'. Raises DataError where a photo really lies outside photos_dir.
    """
    root = photos_dir.resolve()
    if not root.is_dir():
        raise DataError(f"{photos_dir}: no such folder; set data.photos_dir to the photos' folder")
    found: dict[str, Path | str | None] = {
        name: _by_name(root, name) for name in dict.fromkeys(file_names)
    }
    lost = {Path(name).name for name, photo in found.items() if photo is None}
    index = _index(root, lost) if lost else {}  # only if needed: walking a big folder takes long
    return {
        name: photo if photo is not None else _by_base_name(root, name, index[Path(name).name])
        for name, photo in found.items()
    }


def _by_name(root: Path, name: str) -> Path | None:
    for candidate in (root / name, root / name.removeprefix("Images/")):
        if _is_file(candidate):
            return _inside(candidate, root, name)
    return None


def _index(root: Path, wanted: set[str]) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = {name: [] for name in wanted}
    for folder, _, files in os.walk(root):
        for name in wanted.intersection(files):
            index[name].append(Path(folder, name))
    return index


def _by_base_name(root: Path, name: str, candidates: list[Path]) -> Path | str:
    match sorted(path for path in candidates if _is_file(path)):
        case []:
            return "absent"
        case [photo]:
            return _inside(photo, root, name)
        case several:
            return "ambiguous: " + ", ".join(str(path.relative_to(root)) for path in several)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system, a folder that may not be entered
        return False


def _inside(photo: Path, root: Path, name: str) -> Path:
    real = photo.resolve()
    if not real.is_relative_to(root):
        raise DataError(
            f"{photo}: file_name {name!r} points outside the photo folder: a link leads to {real};"
            " copy the photo, or set data.photos_dir to a folder that holds both"
        )
    return real


def read_photo(file: Path | BinaryIO, decode: bool = True) -> Image.Image:
    """The photo in RGB as it is stored: OpenForensics' boxes know no EXIF orientation.

    Raises one of UNREADABLE, whose cause_of() is one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF, of palettes with transparency
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=PHOTO_FORMATS) as photo:  # the header: size is checked here
            if not decode:
                return photo
            photo.load()
            pixels = photo if photo.mode == "RGB" else photo.convert("RGB")
            pixels.info = {}  # a photo's comment would be written into its crops
            pixels.format = photo.format
            return pixels


def cause_of(error: Exception) -> str:
    """One line without a path: dropped.csv is the same on every machine."""
    match error:
        case UnidentifiedImageError():
            return "not an image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"over {Image.MAX_IMAGE_PIXELS} pixels"
        case _:
            return one_line(error, path=False)
