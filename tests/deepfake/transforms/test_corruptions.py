"""Pictures under JPEG, blur, scaling, noise and light: as Pillow and SciPy have them."""

import io
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from torch import nn

from deepfake.config import ImageSize, TrainConfig
from deepfake.data.feed import Faces, normalise
from deepfake.training.loop import evaluate
from deepfake.transforms import corruptions
from deepfake.transforms.corruptions import (
    KINDS,
    SUITE,
    Corruption,
    Kind,
    blur,
    corruption_of,
    downscale,
    noise,
    robust_faces,
    suite_sha256,
    under,
)
from deepfake.transforms.jpeg import jpeg
from tests.support.photos import prepared_set

CPU = torch.device("cpu")
SIDE = 40
CONFIG = TrainConfig(
    variant="cnn",
    lr=1e-3,
    weight_decay=0,
    dropout=0.2,
    image_size=ImageSize(cnn=SIDE),
    batch_size=4,
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The 34 training faces of 48."""
    folder = tmp_path_factory.mktemp("made")
    work_dir = prepared_set(folder, [SIDE]).work_dir
    return Faces.load(work_dir, "train", SIDE)


def pictures(n=4, size=(64, 48)):
    """(n, H, W, 3) like photos: smooth colours with a little grain."""
    width, height = size
    made = []
    for seed in range(n):
        drawn = np.random.default_rng(seed)
        coarse = drawn.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        made.append(np.asarray(smooth) + drawn.normal(0, 5, (height, width, 3)))
    return torch.from_numpy(np.stack(made).clip(0, 255).astype(np.uint8))


def by_pillow(images, change):
    """Each picture through a function of Pillow's images."""
    changed = [np.asarray(change(Image.fromarray(picture.numpy()))) for picture in images]
    return torch.from_numpy(np.stack(changed))


def difference(one, another):
    return (one.int() - another.int()).abs().double()


def coded(quality):
    def change(picture):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


# measured on these pictures: 0.22, 0.19, 0.14, 0.14 of 255 levels. The codec's integers round some
# coefficients the other way, by a whole step
@pytest.mark.parametrize(("quality", "mean"), [(90, 0.3), (70, 0.25), (50, 0.2), (30, 0.2)])
@pytest.mark.parametrize("size", [(128, 128), (104, 88)])  # the second pads its last blocks
def test_jpeg_is_what_pillows_encoder_and_decoder_leave(quality, mean, size):
    images = pictures(6, size)
    real = by_pillow(images, coded(quality))
    off = difference(jpeg(images, quality), real)
    assert off.mean() < mean
    assert off.mean() < 0.1 * difference(images, real).mean()
    assert (off > 3).double().mean() < 0.02


@pytest.mark.parametrize("quality", [1, 100])
def test_jpeg_takes_the_ends_of_the_scale(quality):
    images = pictures(2)
    assert difference(jpeg(images, quality), by_pillow(images, coded(quality))).mean() < 0.5


def test_jpeg_of_one_colour_is_that_colour_and_of_no_colour_has_none():
    for level in (0, 77, 255):
        flat = torch.full((1, 24, 40, 3), level, dtype=torch.uint8)
        assert difference(jpeg(flat, 50), flat).max() <= 4  # a quarter of a DC step of 16
        assert jpeg(flat, 50).unique().numel() == 1


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_blur_is_scipys_gaussian(sigma):
    images = pictures()
    by_scipy = [
        gaussian_filter(
            picture.numpy().astype(float), (sigma, sigma, 0), mode="mirror", truncate=3
        )
        for picture in images
    ]
    assert np.abs(blur(images, sigma).numpy() - np.stack(by_scipy)).max() < 0.51


@pytest.mark.parametrize("factor", [0.75, 0.5, 0.25])
def test_downscale_is_pillows_bilinear_there_and_back(factor):
    images = pictures(size=(64, 48))
    small = (round(64 * factor), round(48 * factor))

    def there_and_back(picture):
        shrunk = picture.resize(small, Image.Resampling.BILINEAR)
        return shrunk.resize(picture.size, Image.Resampling.BILINEAR)

    assert difference(downscale(images, factor), by_pillow(images, there_and_back)).max() <= 1


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_brightness_and_contrast_are_pillows(factor):
    images = pictures()
    for kind, enhance in {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
    }.items():
        changed = Corruption(kind, factor)(images, torch.arange(len(images)))
        by_hand = by_pillow(images, lambda picture, e=enhance: e(picture).enhance(factor))
        assert difference(changed, by_hand).max() <= 1, kind


def test_noise_has_its_sigma_in_levels_and_its_generators_numbers():
    grey = torch.full((2, 64, 64, 3), 128, dtype=torch.uint8)
    noisy = noise(grey, 10, torch.Generator().manual_seed(4))
    by_hand = 128 + 10 * torch.randn(grey.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(noisy, by_hand.round().byte())
    assert noisy.double().std() == pytest.approx(10, rel=0.02)
    assert noisy.double().mean() == pytest.approx(128, abs=0.2)
    black = noise(torch.zeros_like(grey), 10, torch.Generator().manual_seed(4))
    assert black.max() < 60  # clipped, not wrapped


def test_the_suite_is_the_reports_with_stable_names():
    assert list(SUITE) == [
        *["jpeg_90", "jpeg_70", "jpeg_50", "jpeg_30"],
        *["blur_1", "blur_2", "blur_3"],
        *["downscale_0.75", "downscale_0.5", "downscale_0.25"],
        *["noise_5", "noise_10", "noise_20"],
        *["brightness_0.7", "brightness_1.3", "contrast_0.7", "contrast_1.3"],
    ]


@pytest.mark.parametrize("kind", ["jpeg", "blur", "downscale", "noise"])
def test_the_suite_grows_harsher_within_a_kind(kind):
    images, seeds = pictures(), torch.arange(4)
    changes = [
        difference(corruption(images, seeds), images).mean().item()
        for corruption in SUITE.values()
        if corruption.kind == kind
    ]
    assert len(changes) >= 3
    assert changes[0] > 1
    assert all(harsher > 1.1 * milder for milder, harsher in itertools.pairwise(changes))


@pytest.mark.parametrize("name", SUITE)
def test_a_corruption_leaves_the_pictures_it_was_given_and_their_shape(name):
    images = pictures(2, (40, 56))
    before = images.clone()
    changed = SUITE[name](images, torch.arange(2))
    assert torch.equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)


def seen(faces, batch_size, generator=None):
    """What a feed gives in one pass, in the faces' own order."""
    order = torch.arange(len(faces))
    if generator is not None:
        order = torch.randperm(len(faces), generator=generator.clone_state())
    batches = [images.clone() for images, _ in faces.batches(batch_size, CPU, generator)]
    given = torch.empty_like(torch.cat(batches))
    given[order] = torch.cat(batches)
    return given


@pytest.mark.parametrize("name", ["noise_10", "jpeg_50", "blur_2", "contrast_1.3"])
def test_a_face_is_corrupted_alike_in_every_batch_and_order(faces, name):
    corrupted = under(faces, SUITE[name])
    first = seen(corrupted, 4)
    assert torch.equal(seen(corrupted, 100), first)
    assert torch.equal(seen(corrupted, 7, torch.Generator().manual_seed(1)), first)
    assert torch.equal(seen(under(faces, SUITE[name]), 4), first)
    assert not torch.equal(first, normalise(faces.images))


def test_each_face_has_noise_of_its_own(faces):
    change = under(faces, Corruption("noise", 20)).change
    grey = torch.full((len(faces), SIDE, SIDE, 3), 128, dtype=torch.uint8)
    noisy = change(grey, torch.arange(len(faces)), None)
    assert len({picture.numpy().tobytes() for picture in noisy}) == len(faces)


def test_logits_of_faces_under_a_corruption_are_of_the_corrupted_pictures(faces):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    found = evaluate(model, under(faces, SUITE["jpeg_30"]), CONFIG, CPU)
    by_hand = model(normalise(jpeg(faces.images, 30))).detach()
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert (model(normalise(faces.images)) - found).abs().max() > 1e-2


def test_the_robust_set_has_every_face_once_under_what_its_name_says(faces):
    robust = robust_faces(faces)
    given = seen(robust, 8)
    assert torch.equal(seen(robust, 100), given)
    assert torch.equal(robust.labels, faces.labels)
    said = [corruption_of(name) for name in faces.table["cutted_name"]]
    assert len(set(said)) > 8
    for one in set(said):
        expected = normalise(faces.images) if one is None else seen(under(faces, one), 8)
        places = [number for number, other in enumerate(said) if other == one]
        assert torch.equal(given[places], expected[places]), one


def test_the_robust_set_gives_a_face_the_same_wherever_it_stands(faces):
    given = seen(robust_faces(faces), 8)
    some = torch.arange(len(faces) - 1, 3, -3)
    moved = robust_faces(replace(faces, table=faces.table.iloc[some.numpy()]))
    pixels = moved.change(faces.images[some].clone(), torch.arange(len(some)), None)
    assert torch.equal(normalise(pixels), given[some])


def test_the_corruptions_of_a_robust_set_have_equal_shares():
    """Of 18,000 names: 1,000 each, clean too, within four standard deviations."""
    names = [f"photo_{i}_{j}.jpg" for i in range(9000) for j in range(2)]
    counts = Counter(corruption_of(name) for name in names)
    assert counts.keys() == {None, *SUITE.values()}
    assert list(counts.values()) == pytest.approx([1000] * 18, abs=4 * (1000 * 17 / 18) ** 0.5)


def test_a_corruption_is_a_kind_and_its_levels_in_the_suite(faces, monkeypatch):
    before = suite_sha256()
    invert = Kind("inverted", lambda images, level, seeds: 255 - images)
    monkeypatch.setitem(KINDS, "invert", invert)
    assert suite_sha256() == before  # no face is under it
    monkeypatch.setitem(SUITE, "invert_1", Corruption("invert", 1))
    assert suite_sha256() != before

    said = [corruption_of(name) for name in faces.table["cutted_name"]]
    inverted = [number for number, one in enumerate(said) if one == SUITE["invert_1"]]
    assert inverted
    given = seen(robust_faces(faces), 8)
    assert torch.equal(given[inverted], normalise(255 - faces.images[inverted]))


def test_another_order_of_the_suite_is_another_suite(monkeypatch):
    before = suite_sha256()
    monkeypatch.setattr(corruptions, "SUITE", dict(reversed(SUITE.items())))
    assert suite_sha256() != before  # other faces are under each
