"""A photo becomes what its annotator saw, in 8-bit RGB, or is refused with the reason."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from deepfake.data.photos.reading import (
    BACKGROUND,
    UNREADABLE,
    UnfitPhoto,
    View,
    cause_of,
    open_photo,
    view_of,
    view_photo,
)

COLOURS = ((200, 40, 60), (30, 180, 90))  # left and right of a photo
SIZE = (48, 32)


def halves(size=SIZE):
    photo = Image.new("RGB", size, COLOURS[1])
    photo.paste(COLOURS[0], (0, 0, size[0] // 2, size[1]))
    return photo


def saved(picture, kind="PNG", **how):
    file = io.BytesIO()
    picture.save(file, kind, **how)
    file.seek(0)
    return file


def opened(file, **how):
    with open_photo(file, **how) as picture:
        assert picture.pixels.mode == "RGB"
        return picture.pixels


def tagged(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


# how boxes see a picture


@pytest.mark.parametrize(
    ("orientation", "annotated", "expected"),
    [
        (1, (48, 32), View(SIZE, (1, 1), 1, False)),
        (1, None, View(SIZE, (1, 1), 1, False)),
        (6, (32, 48), View((32, 48), (1, 1), 6, False)),  # annotated upright
        (6, (48, 32), View(SIZE, (1, 1), 1, False)),  # annotated as stored
        (8, (64, 96), View((32, 48), (0.5, 0.5), 8, False)),  # upright, and resized since
        (6, (96, 64), View(SIZE, (0.5, 0.5), 1, False)),
        (3, (48, 32), View(SIZE, (1, 1), 1, True)),  # upside down: of one size either way
        (6, None, View(SIZE, (1, 1), 1, True)),
        (1, (97, 64), View(SIZE, (48 / 97, 0.5), 1, False)),  # half of 97 is rounded
        (1, (24, 16), View(SIZE, (2, 2), 1, False)),
    ],
)
def test_the_annotated_size_tells_how_boxes_see_the_picture(orientation, annotated, expected):
    assert view_of(SIZE, orientation, annotated) == expected


@pytest.mark.parametrize("annotated", [(32, 48), (48, 36), (104, 64), (1, 1)])
def test_a_picture_of_another_shape_is_refused(annotated):
    with pytest.raises(UnfitPhoto, match=r"size differs: 48 x 32 px, annotated as \d+ x \d+$"):
        view_of(SIZE, 1, annotated)


def test_a_square_with_an_orientation_is_unclear_unless_it_is_wanted_upright():
    assert view_of((40, 40), 6, (40, 40)) == View((40, 40), (1, 1), 1, True)
    assert view_of((40, 40), 6, None, upright=True) == View((40, 40), (1, 1), 6, False)


def test_boxes_are_scaled_by_what_each_side_was():
    assert view_of((48, 33), 1, (96, 65)).box([10, 13, 20, 26]) == pytest.approx(
        (5, 6.6, 10, 13.2)
    )


# orientation, of every container that has one


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_only_if_it_was_annotated_turned(kind, orientation):
    how = {} if kind in ("PNG", "TIFF") else {"quality": 100}
    file = saved(halves(), kind, exif=tagged(orientation), **how)
    upright = ImageOps.exif_transpose(Image.open(saved(halves(), exif=tagged(orientation))))
    assert nearly(opened(file, upright=True), upright)
    assert nearly(opened(file, annotated=None), halves())
    if upright.size != SIZE:
        assert nearly(opened(file, annotated=upright.size), upright)
        assert view_photo(file, upright.size, 1).turn == orientation
        assert nearly(opened(file, annotated=SIZE), halves())
        assert view_photo(file, SIZE, 1).size == SIZE


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_a_tiff_that_is_not_compressed_is_turned_from_its_file_too(tmp_path, mode):
    """From its path Pillow would map it into memory with its sides exchanged."""
    halves().convert(mode).save(tmp_path / "a.tif", exif=tagged(6))
    upright = halves().convert(mode).transpose(Image.Transpose.ROTATE_270)
    assert nearly(opened(tmp_path / "a.tif", annotated=upright.size), upright)
    assert nearly(opened(tmp_path / "a.tif", annotated=SIZE), halves().convert(mode))


def nearly(one, other):
    if one.size != other.size:
        return False
    pixels = (np.asarray(picture.convert("RGB"), np.int16) for picture in (one, other))
    return np.median(np.abs(np.subtract(*pixels))) <= 4  # the seam is smeared by a JPEG


def test_odd_exif_turns_nothing_and_refuses_nothing():
    file = saved(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert nearly(opened(file, annotated=SIZE), halves())


# pixels


GREY = np.repeat(np.array([[0, 60, 128, 255]], np.uint8), 8, axis=0)


def grey_of(pixels):
    assert np.ptp(np.asarray(pixels), axis=2).max() == 0
    return np.asarray(pixels)[0, :, 0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bits_are_scaled_to_8(kind):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert grey_of(opened(saved(deep, kind))) == [0, 60, 128, 255]


def test_16_bits_of_a_portable_graymap_are_scaled_to_8():
    content = b"P5 4 1 65535\n" + (GREY[0].astype(">u2") * 257).tobytes()
    assert grey_of(opened(io.BytesIO(content))) == [0, 60, 128, 255]


def test_white_is_zero_in_a_tiff_of_16_bits_that_says_so():
    file = saved(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0})
    assert grey_of(opened(file)) == [255, 195, 127, 0]


def test_12_bits_of_a_tiff_are_scaled_to_8():
    values = [0, 963, 2056, 4095]  # 60 and 128 of 255
    packed = bytearray()
    for a, b in zip(values[::2], values[1::2], strict=True):
        packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    assert grey_of(opened(io.BytesIO(tiff_of(packed, bits=12)))) == [0, 60, 128, 255]


def tiff_of(pixels, bits, width=4):
    """A TIFF of one row."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, 1), (279, len(pixels))]
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags
    )
    head = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)
    return head.ljust(200, b"\0") + bytes(pixels)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused(dtype):
    file = saved(Image.fromarray(GREY.astype(dtype)), "TIFF")
    with pytest.raises(UnfitPhoto, match=r"without a range: mode [IF]; save it with 8 bits"):
        opened(file)


HIDDEN, SHOWN = (250, 10, 10), (20, 90, 160)


def half_hidden():
    picture = Image.new("RGBA", (8, 8), (*HIDDEN, 0))
    picture.paste((*SHOWN, 255), (4, 0, 8, 8))
    return picture


def of_palette():
    """And the index of the hidden colour."""
    picture = half_hidden().convert("RGB").quantize(2)
    return picture, picture.getpixel((0, 0))


def with_transparency(kind):
    colour, grey = half_hidden().convert("RGB"), half_hidden().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette, index = of_palette()
    return {
        "RGBA": lambda: saved(half_hidden()),
        "LA": lambda: saved(half_hidden().convert("LA")),
        "WEBP": lambda: saved(half_hidden(), "WEBP", lossless=True, exact=True),
        "TIFF": lambda: saved(half_hidden(), "TIFF"),
        "P": lambda: saved(palette, transparency=index),
        "GIF": lambda: saved(palette, "GIF", transparency=index),
        "RGB, value": lambda: saved(colour, transparency=HIDDEN),
        "L, value": lambda: saved(grey, transparency=grey.getpixel((0, 0))),
        "16 bits, value": lambda: saved(deep, transparency=deep.getpixel((0, 0))),
    }[kind]()


KINDS = ["RGBA", "LA", "WEBP", "TIFF", "P", "GIF", "RGB, value", "L, value"]


@pytest.mark.parametrize("kind", [*KINDS, "16 bits, value"])
def test_what_is_hidden_does_not_show(kind):
    pixels = opened(with_transparency(kind))
    assert pixels.getpixel((0, 0)) == (BACKGROUND,) * 3
    grey = Image.new("RGB", (1, 1), SHOWN).convert("L").getpixel((0, 0))
    shown = (grey,) * 3 if kind[0] == "L" or kind.startswith("16") else SHOWN
    assert pixels.getpixel((7, 0)) == shown


@pytest.mark.parametrize("depth", [2, 4])
def test_a_value_of_few_bits_hides_what_it_names(depth):
    """Pillow scales the pixels of such a PNG and leaves the value."""
    top, width = 2**depth - 1, 8 // depth
    row = bytes([0, int("".join(f"{v:0{depth}b}" for v in [top // 3, *[0] * (width - 1)]), 2)])
    file = io.BytesIO(png(width, 1, depth, row, trns=(top // 3).to_bytes(2, "big")))
    assert grey_of(opened(file))[:2] == [BACKGROUND, 0]


def test_a_colour_of_16_bits_hides_what_it_names():
    row = b"\0" + bytes([10, 10, 20, 20, 30, 30, 40, 40, 50, 50, 60, 60])
    file = io.BytesIO(png(2, 1, 16, row, colour=2, trns=bytes([10, 10, 20, 20, 30, 30])))
    pixels = opened(file)
    assert [pixels.getpixel((x, 0)) for x in (0, 1)] == [(BACKGROUND,) * 3, (40, 50, 60)]


def png(width, height, depth, rows, trns, colour=0):
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"tRNS", trns), chunk(b"IDAT", zlib.compress(rows)))
    return PngImagePlugin._MAGIC + b"".join(parts) + chunk(b"IEND", b"")


def test_an_opaque_picture_keeps_its_pixels():
    assert opened(saved(halves().convert("RGBA"))).tobytes() == halves().tobytes()


# files


@pytest.mark.parametrize(
    "kind", ["AVIF", "JPEG2000", "PPM", "TGA", "QOI", "SGI", "ICO", "DDS", "WEBP"]
)
def test_a_picture_is_known_by_its_content_not_by_its_name(tmp_path, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(halves((48, 48)), kind).read())
    assert nearly(opened(path), halves((48, 48)))


@pytest.mark.parametrize("kind", ["EPS", "PCX"])
def test_a_format_that_runs_programs_or_hides_its_damage_is_not_opened(kind):
    with pytest.raises(UNREADABLE) as caught:
        opened(saved(halves(), kind))
    assert cause_of(caught.value) == "not a picture that Pillow can read"


LARGE = """
import resource, sys
from deepfake.data.photos.reading import open_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_photo(sys.argv[1]) as picture:
    assert picture.pixels.size == (12000, 9000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 108e6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "I;16"])
def test_a_photo_of_108_megapixels_takes_at_most_eight_bytes_a_pixel(tmp_path, mode):
    picture = Image.new(mode, (12_000, 9_000))
    picture.save(tmp_path / "a.tif" if mode == "CMYK" else tmp_path / "a.png")
    command = [sys.executable, "-c", LARGE, tmp_path / ("a.tif" if mode == "CMYK" else "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8.5  # and a strip
