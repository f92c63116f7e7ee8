"""What is one picture under another file's bytes, and what only looks a little alike."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance
from scipy.spatial.distance import cdist

from deepfake.audit import perceptual_hash as likeness
from deepfake.audit.perceptual_hash import NEAR_BITS, nearest, perceptual_hash
from deepfake.sample.dataset import draw_sample

Change = Callable[[Image.Image], Image.Image]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    annotations = draw_sample(tmp_path_factory.mktemp("drawn"), 12, seed=3)
    return [Image.open(path) for path in sorted((annotations.parent / "Images/Train").iterdir())]


def saved(photo: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return Image.open(file)


def scaled(photo: Image.Image, by: float) -> Image.Image:
    size = round(photo.width * by), round(photo.height * by)
    return photo.resize(size, Image.Resampling.BICUBIC)


def noisy(photo: Image.Image) -> Image.Image:
    pixels = np.asarray(photo, float)
    noise = np.random.default_rng(0).normal(0, 10, (*pixels.shape[:2], 1))
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def bits_between(a: Image.Image, b: Image.Image) -> int:
    return int(np.bitwise_count(perceptual_hash(a) ^ perceptual_hash(b)).sum())


CHANGES: dict[str, Change] = {
    "saved at quality 30": lambda photo: saved(photo, 30),
    "made smaller by a tenth and saved": lambda photo: saved(scaled(photo, 0.9), 60),
    "halved and saved": lambda photo: saved(scaled(photo, 0.5), 50),
    "made larger by half": lambda photo: scaled(photo, 1.5),
    "made brighter by a fifth": lambda photo: ImageEnhance.Brightness(photo).enhance(1.2),
    "made grey": lambda photo: photo.convert("L"),
    "noisy": noisy,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_stays_near_its_photo(change: str, photos: list[Image.Image]) -> None:
    assert max(bits_between(photo, CHANGES[change](photo)) for photo in photos) <= NEAR_BITS


def test_other_photos_are_far_from_it(photos: list[Image.Image]) -> None:
    pairs = [(a, b) for i, a in enumerate(photos) for b in photos[:i]]
    assert min(bits_between(a, b) for a, b in pairs) > 2 * NEAR_BITS


def test_the_waves_are_those_of_a_cosine_transform() -> None:
    grey = np.random.default_rng(0).uniform(0, 255, (64, 64))
    ours = likeness._DCT @ grey @ likeness._DCT.T
    assert ours == pytest.approx(scipy.fft.dctn(grey)[:16, :16] / 4, abs=1e-6)  # DCT-II, unscaled


def test_half_of_the_waves_are_above_the_median_and_brightness_is_no_wave(
    photos: list[Image.Image],
) -> None:
    bits = np.unpackbits(perceptual_hash(photos[0]))
    assert (len(bits), bits[0], bits.sum()) == (256, 0, 127)  # of 255


def test_flat_pictures_are_alike_whatever_their_grey() -> None:
    black, white = Image.new("RGB", (90, 70)), Image.new("RGB", (50, 50), "white")
    assert bits_between(black, white) == 0


def test_the_nearest_is_the_one_that_a_comparison_bit_by_bit_finds() -> None:
    rng = np.random.default_rng(1)
    hashes, others = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (600, 70))
    others[33] = hashes[550] ^ np.eye(1, 32, 7, dtype=np.uint8)[0]  # one bit apart
    told: list[tuple[str, int, int]] = []
    row, bits = nearest(hashes, others, lambda *now: told.append(now), "photos")
    apart = 256 * cdist(np.unpackbits(hashes, axis=1), np.unpackbits(others, axis=1), "hamming")
    assert bits.tolist() == apart.min(axis=1).round().astype(int).tolist()
    assert row.tolist() == apart.round().argmin(axis=1).tolist()
    assert (row[550], bits[550]) == (33, 1)
    assert told == [("photos", 256, 600), ("photos", 512, 600), ("photos", 600, 600)]


def test_nothing_is_near_where_nothing_is_asked_for() -> None:
    row, bits = nearest(np.zeros((0, 32), np.uint8), np.zeros((3, 32), np.uint8))
    assert (len(row), len(bits)) == (0, 0)
