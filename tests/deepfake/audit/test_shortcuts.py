"""The traits of a face that are not the face, and the probes that read the label from them."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deepfake.audit.shortcuts import (
    Described,
    Face,
    Photo,
    Verdict,
    colours,
    encoding,
    geometry,
    probe,
    surroundings,
)
from deepfake.data.crops import crop_box
from deepfake.data.photos.reading import open_photo
from tests.support.photos import draw_photo

BBOX = (20.0, 10.0, 40.0, 30.0)


def in_photo(
    pixels: Image.Image, bbox: tuple[float, float, float, float] = BBOX, margin: float = 0.0
) -> Face:
    box = crop_box(bbox, pixels.size, margin)
    assert box is not None
    return Face(Photo(pixels, 1000, np.zeros(128, np.float32)), bbox, box)


@pytest.fixture
def pixels(tmp_path: Path) -> Image.Image:
    return draw_photo(tmp_path / "a.jpg", seed=1)


def test_geometry_is_the_box_and_the_photos_size(pixels: Image.Image) -> None:
    assert geometry(in_photo(pixels)) == pytest.approx(
        [20, 10, 40 / 96, 25 / 64, 40, 30, 4 / 3, 1200 / 6144, 96, 64]
    )


def test_colours_are_those_of_the_crop_alone() -> None:
    pixels = Image.new("RGB", (96, 64), "white")
    pixels.paste((255, 0, 51), (20, 10, 40, 40))  # the left half of the box
    pixels.paste((255, 0, 153), (40, 10, 60, 40))
    assert colours(in_photo(pixels)) == pytest.approx([1, 0, 0.4, 0, 0, 0.2], abs=1e-6)


def test_a_large_flat_crop_deviates_by_nothing() -> None:
    n = 372983  # pixels: Pillow's variance of them is -1e-11
    white = in_photo(Image.new("RGB", (n, 1), "white"), (0.0, 0.0, float(n), 1.0))
    assert colours(white) == [1, 1, 1, 0, 0, 0]


def encoded(kind: str, **how: int) -> tuple[bytes, Photo]:
    file = io.BytesIO()
    Image.effect_noise((96, 64), 30).save(file, kind, **how)
    content = file.getvalue()
    with open_photo(file) as picture:
        return content, Photo.of(picture, len(content))


def test_encoding_is_the_files_size_and_pillows_own_tables() -> None:
    content, photo = encoded("JPEG", quality=70)  # grey: one table
    face = Face(photo, BBOX, (20, 10, 60, 40))
    size, *tables = encoding(face)
    assert size == pytest.approx(np.log(len(content) / 6144))
    luminance = Image.open(io.BytesIO(content)).quantization[0]  # type: ignore[attr-defined]
    assert tables == [*luminance, *[0] * 64]


def test_a_photo_that_is_no_jpeg_has_no_tables() -> None:
    assert encoded("PNG")[1].tables.tolist() == [0] * 128


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_surroundings_do_not_see_the_face(pixels: Image.Image, margin: float) -> None:
    before = surroundings(in_photo(pixels, margin=margin))
    repainted = pixels.copy()
    ImageDraw.Draw(repainted).ellipse((21, 11, 58, 38), fill="red")  # a pixel inside the ellipse
    assert repainted.tobytes() != pixels.tobytes()
    assert surroundings(in_photo(repainted, margin=margin)) == before
    assert len(before) == 28


def test_surroundings_see_each_corner_by_itself(pixels: Image.Image) -> None:
    before = np.array(surroundings(in_photo(pixels)))
    pixels.putpixel((59, 10), (255, 255, 255))  # above, right
    pixels.putpixel((60, 10), (0, 0, 0))  # outside the box
    assert set(np.flatnonzero(surroundings(in_photo(pixels)) != before) // 7) == {1}


def test_a_flat_corner_has_its_colour_and_no_detail() -> None:
    flat = Image.new("RGB", (96, 64), (51, 102, 255))
    assert surroundings(in_photo(flat)) == pytest.approx([0.2, 0.4, 1, 0, 0, 0, 0] * 4, abs=1e-6)


def test_a_corner_outside_the_photo_is_nan(pixels: Image.Image) -> None:
    found = surroundings(in_photo(pixels, (-30.0, 10.0, 40.0, 30.0)))
    assert np.isnan(found).reshape(4, 7).all(axis=1).tolist() == [True, False, True, False]


def described(numbers: NDArray[np.float64], labels: NDArray[np.int64]) -> Described:
    photos = np.arange(len(labels)) // 2
    return Described(numbers.astype(np.float32), labels, photos)


def verdict(name: str, numbers: NDArray[np.float64], labels: NDArray[np.int64]) -> Verdict:
    """Trained on the first two thirds."""
    cut = 2 * len(labels) // 3
    train, val = (described(numbers[part], labels[part]) for part in (np.s_[:cut], np.s_[cut:]))
    return probe(name, train, val)


def test_a_trait_that_is_noise_is_not_flagged() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900)
    found = verdict("surroundings", rng.normal(size=(900, 28)), labels)
    assert not found.flagged
    assert found.interval[0] < 0.5 < found.interval[1]


@pytest.mark.parametrize("name", ["geometry", "encoding"])
def test_a_trait_that_is_larger_for_fakes_is_flagged(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900)
    found = verdict(name, rng.normal(size=(900, 10)) + labels[:, None], labels)
    assert found.flagged
    assert found.interval[0] > 0.9


def test_fakes_of_middle_size_are_flagged() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900)
    size = np.where(labels == 1, rng.normal(100, 10, 900), rng.normal(100, 60, 900))
    found = verdict("geometry", np.column_stack([size, rng.normal(size=(900, 5))]), labels)
    assert found.flagged


def test_missing_numbers_and_constant_ones_are_taken() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    numbers = rng.normal(size=(300, 3)) + labels[:, None]
    numbers[::7, 0], numbers[:, 1], numbers[:, 2] = np.nan, np.nan, 5.0
    assert 0.6 < verdict("surroundings", numbers, labels).auc < 0.85


def test_the_same_descriptions_give_the_same_verdict() -> None:
    rng = np.random.default_rng(2)
    labels, numbers = rng.integers(0, 2, 300), rng.normal(size=(300, 28))
    assert verdict("surroundings", numbers, labels) == verdict("surroundings", numbers, labels)
