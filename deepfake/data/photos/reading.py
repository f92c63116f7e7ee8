"""A photo's pixels in RGB of 8 bits, turned as its boxes see them."""

import math
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)

from deepfake.config import MAX_PHOTO_MEGAPIXELS
from deepfake.data.layouts import SIZE
from deepfake.errors import one_line

Size = tuple[int, int]  # width, height, px
Annotated = tuple[float, float]  # the same, as a JSON has it

# what photos come in, whatever the file's name says; not EPS, which runs programs, nor PCX, which
# decodes without its palette if its end is lost
PHOTO_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"),
    *("TGA", "QOI", "SGI", "PSD", "ICO", "ICNS", "DDS", "DIB", "SUN"),
)
BACKGROUND = 255  # white, behind what is transparent
_LARGE_PX = 50_000_000  # beyond, photos wait for one another
_LOCK = Path(tempfile.gettempdir(), f"deepfake-study-{os.getuid()}-large-photo.lock")
_STRIP_PX = 256

_TURN = {  # as ImageOps.exif_transpose, which takes no orientation that is not in the file
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # the others undo themselves
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
)


class UnfitPhoto(ValueError):
    """A whole picture that can't be taken as it was annotated; why, for behind the word photo."""


@dataclass(frozen=True)
class View:
    """How the boxes of a photo see its stored picture."""

    size: Size  # of the picture, turned if it is to be, px
    scale: tuple[float, float]  # from the boxes' px to the picture's, across and down
    turn: int  # EXIF's orientation where it is applied, else 1
    is_unclear: bool  # there is an orientation, and the annotated size does not tell

    def box(self, bbox: Sequence[float]) -> tuple[float, float, float, float]:
        """x, y, w, h in px of the picture."""
        x, y, w, h = bbox
        across, down = self.scale
        return x * across, y * down, w * across, h * down

    def departures(self) -> Iterator[str]:
        """What is to be said of the photo in a summary."""
        if self.scale != (1, 1):
            yield "photos of another size than annotated, boxes scaled"
        if self.turn != 1:
            yield "photos turned by their orientation tag, as annotated"
        if self.is_unclear:
            yield "photos cut as stored; their orientation tag may say otherwise"


@dataclass(frozen=True, eq=False)
class Picture:
    """A photo as it was annotated."""

    pixels: Image.Image  # RGB, of 8 bits; its format is the file's, its info empty
    view: View
    quantization: Mapping[int, Sequence[int]]  # a JPEG's tables, else none


def annotated_sizes(faces: pd.DataFrame) -> list[Annotated | None]:
    """Of each face's photo; None where its JSON has none."""
    pairs = zip(*(faces[key] for key in SIZE), strict=True)
    return [None if math.isnan(w + h) else (w, h) for w, h in pairs]


def view_of(
    stored: Size, orientation: int, annotated: Annotated | None, upright: bool = False
) -> View:
    """Turned by its orientation only if the annotated size is that of the turned picture.

    annotated: None if nobody knows. Of another size with the same shape, boxes are scaled. Where
    the size does not tell, as of a square, the picture stays as stored, unless upright. Raises
    UnfitPhoto for another shape.
    """
    turned = stored[::-1] if orientation >= 5 else stored
    fits = (True, True)
    if annotated is not None:
        for agree in (_equal, _of_one_shape):
            fits = (agree(annotated, stored), agree(annotated, turned))
            if any(fits):
                break
        else:
            sizes = (
                f"{stored[0]} x {stored[1]} px, annotated as {annotated[0]:g} x {annotated[1]:g}"
            )
            raise UnfitPhoto(f"size differs: {sizes}")
    as_stored, as_turned = fits
    is_turned = as_turned and (upright or not as_stored) and orientation != 1
    size = turned if is_turned else stored
    return View(
        size=size,
        scale=(size[0] / annotated[0], size[1] / annotated[1]) if annotated else (1.0, 1.0),
        turn=orientation if is_turned else 1,
        is_unclear=as_stored and as_turned and orientation != 1 and not upright,
    )


def _equal(annotated: Annotated, size: Size) -> bool:
    return annotated == size


def _of_one_shape(annotated: Annotated, size: Size) -> bool:
    """Whether one is the other resized: each side within the pixel that rounding takes or adds."""
    low = max((size[i] - 1) / annotated[i] for i in (0, 1))
    high = min((size[i] + 1) / annotated[i] for i in (0, 1))
    return low < high


def view_photo(file: Path | BinaryIO, annotated: Annotated | None, max_megapixels: int) -> View:
    """Without decoding it where its format tells all at its head; raises as open_photo does."""
    with _stored(file, max_megapixels) as stored:
        return view_of(_stored_size(stored), _orientation(stored), annotated)


@contextmanager
def open_photo(
    file: Path | BinaryIO,
    annotated: Annotated | None = None,
    max_megapixels: int = MAX_PHOTO_MEGAPIXELS,
    upright: bool = False,
) -> Iterator[Picture]:
    """A photo as it was annotated, see view_of; large ones one at a time on this machine.

    What is transparent lies on white. Raises one of UNREADABLE, whose cause_of() is one line.
    Takes at most eight bytes of memory a pixel, four once it is open.
    """
    with ExitStack() as held:
        with _stored(file, max_megapixels) as stored:
            if stored.width * stored.height > _LARGE_PX:
                held.enter_context(FileLock(_LOCK))
            is_tiff = isinstance(stored, TiffImageFile)
            if not is_tiff:
                stored.load()  # a PNG may have its orientation behind its pixels
            orientation = _orientation(stored)
            view = view_of(_stored_size(stored), orientation, annotated, upright)
            pixels, name = _as_rgb(stored), stored.format
            quantization = stored.quantization if isinstance(stored, JpegImageFile) else {}
        del stored  # its pixels, if they were not RGB
        if is_tiff and view.turn != orientation:  # decoded, a TIFF is turned already
            pixels = pixels.transpose(_BACK.get(orientation, _TURN[orientation]))
        elif not is_tiff and view.turn != 1:
            pixels = pixels.transpose(_TURN[view.turn])
        if pixels.size != view.size:
            raise ValueError(f"decodes to {pixels.size}, not to {view.size} px")
        pixels.info = {}  # a photo's comment would be written into its crops
        pixels.format = name
        yield Picture(pixels, view, quantization)


@contextmanager
def _stored(file: Path | BinaryIO, max_megapixels: int) -> Iterator[Image.Image]:
    """The picture as its file has it, not decoded yet; its size is checked."""
    limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_megapixels * 1_000_000
    try:
        with ExitStack() as opened:
            # of a path Pillow maps a raw TIFF into memory, and as if it were turned already
            content = opened.enter_context(file.open("rb")) if isinstance(file, Path) else file
            opened.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of odd EXIF, of palettes with transparency
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stored = opened.enter_context(Image.open(content, formats=PHOTO_FORMATS))
            _scale_transparent_value(stored)
            yield stored
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnfitPhoto(
            f"over {max_megapixels} megapixels: data.max_photo_megapixels is the limit"
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit_before


def _stored_size(stored: Image.Image) -> Size:
    if isinstance(stored, TiffImageFile):  # whose size is already the turned one
        return stored.tag_v2[IMAGEWIDTH], stored.tag_v2[IMAGELENGTH]
    return stored.size


def _orientation(stored: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where there is none."""
    try:
        value = stored.getexif().get(ExifTags.Base.Orientation, 1)
    except UNREADABLE:  # odd EXIF says nothing, and the pixels may be whole
        return 1
    return int(value) if value in _TURN else 1


def _as_rgb(stored: Image.Image) -> Image.Image:
    """Decoded; the values of more bits scaled, what is transparent on white."""
    stored.load()
    if stored.mode == "F" or (stored.mode == "I" and stored.format != "PPM"):  # PPM's has 16 bits
        raise UnfitPhoto(
            f"of numbers without a range: mode {stored.mode}; save it with 8 bits a channel"
        )
    if stored.mode.startswith("I"):
        levels = _levels(stored)
        return _in_strips(stored, lambda strip: Image.fromarray(levels[np.asarray(strip)]))
    if stored.has_transparency_data:
        return _in_strips(stored, _on_white)
    return stored if stored.mode == "RGB" else stored.convert("RGB")


def _levels(stored: Image.Image) -> NDArray[np.uint8]:
    """The 8-bit level of each value of 16 bits; of a TIFF's 12 bits, too."""
    tags = stored.tag_v2 if isinstance(stored, TiffImageFile) else {}
    top = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
    values = np.minimum(np.arange(65536), top)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero: Pillow leaves that as it is
        values = top - values
    levels = np.round(values * (255 / top)).astype(np.uint8)
    if isinstance(transparent := stored.info.get("transparency"), int):
        levels[transparent] = BACKGROUND
    return levels


def _on_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")  # the one step that Pillow knows
    strip = strip.convert("RGBA")
    ground = Image.new("RGB", strip.size, (BACKGROUND,) * 3)
    ground.paste(strip.convert("RGB"), mask=strip.getchannel("A"))
    return ground


def _in_strips(stored: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Changed to RGB in strips: a second whole copy would cost much memory."""
    pixels = Image.new("RGB", stored.size)
    for top in range(0, stored.height, _STRIP_PX):
        strip = stored.crop((0, top, stored.width, min(top + _STRIP_PX, stored.height)))
        pixels.paste(change(strip), (0, top))
    return pixels


def _scale_transparent_value(stored: Image.Image) -> None:
    """To 8 bits, as Pillow scales a PNG's pixels: it leaves the value as it is written."""
    value = stored.info.get("transparency")
    depth = stored.tile[0][3] if isinstance(stored, PngImageFile) and stored.tile else None
    match depth, value:
        case "L;2" | "L;4", int():
            stored.info["transparency"] = value * (85 if depth == "L;2" else 17)
        case "RGB;16B", tuple():
            stored.info["transparency"] = tuple(channel >> 8 for channel in value)
        case _:
            pass


def cause_of(error: Exception) -> str:
    """One line without a path: dropped.csv is the same on every machine."""
    match error:
        case UnidentifiedImageError():
            return "not a picture that Pillow can read"
        case _:
            return one_line(error, path=False)
