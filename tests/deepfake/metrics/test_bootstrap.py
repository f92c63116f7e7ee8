import numpy as np
import pytest
import torch

from deepfake.metrics.bootstrap import draw_photos, mean_losses, percentiles, resample
from deepfake.metrics.calibration import Chosen, choose
from deepfake.metrics.classification import intervals
from deepfake.metrics.scorecard import compute_scorecard
from tests.deepfake.metrics.test_classification import random_faces

CHOSEN = Chosen(temperature=1.7, threshold=0.4)


def with_photos(n, seed, levels=None):
    """About three faces a photo, not in the photos' order."""
    logits, labels = random_faces(n, seed, levels)
    photos = np.random.default_rng(seed).integers(0, n // 3, n)
    return logits, labels, np.unique(photos, return_inverse=True)[1]


def copies(photos, drawn):
    """The faces of each photo as often as it was drawn."""
    return np.repeat(np.arange(len(photos)), drawn[photos])


@pytest.mark.parametrize("levels", [None, 4])
def test_each_resamples_figures_are_those_of_scikit_learn_on_copies_of_its_faces(levels):
    # enough reals for the recall at 1 % false alarms, in each resample too
    logits, labels, photos = with_photos(1400, seed=1, levels=levels)
    draws = draw_photos(photos, labels.numpy(), resamples=8, seed=2)
    found = resample(logits, labels, photos, draws, CHOSEN)
    for row, drawn in enumerate(draws):
        faces = copies(photos, drawn)
        whole = compute_scorecard(logits[faces], labels[faces], CHOSEN)
        assert {name: values[row] for name, values in found.items()} == pytest.approx(
            whole, abs=1e-9
        )


def test_every_photo_drawn_once_gives_the_scorecard():
    logits, labels, photos = with_photos(90, seed=3)
    chosen = choose(logits, labels)
    once = np.ones((1, photos.max() + 1), np.uint16)
    found = resample(logits, labels, photos, once, chosen)
    whole = compute_scorecard(logits, labels, chosen)
    assert whole.pop("recall_1_at_far_1pct") is None  # too few reals: absent from resamples
    assert {name: values[0] for name, values in found.items()} == pytest.approx(whole, abs=1e-9)


def test_a_class_never_predicted_has_precision_0():
    logits = torch.tensor([[0.0, 1.0]] * 4)
    labels, photos = torch.tensor((0, 1, 1, 0)), np.array((0, 0, 1, 1))
    found = resample(logits, labels, photos, np.array([[1, 1]], np.uint16), CHOSEN)
    assert (found["precision_0"][0], found["f1_0"][0]) == (0, 0)
    assert found["precision_1"][0] == 0.5


def test_a_resample_draws_as_many_photos_as_there_are_and_both_labels():
    photos, labels = np.array((0, 0, 1, 2)), np.array((0, 0, 1, 0))
    draws = draw_photos(photos, labels, resamples=500)
    assert draws.shape == (500, 3)
    assert (draws.sum(axis=1) == 3).all()
    assert (draws[:, 1] > 0).all()  # the only fake is in photo 1
    assert (draws[:, 1] < 3).all()


def test_the_same_seed_draws_the_same_photos_and_another_seed_others():
    _, labels, photos = with_photos(60, seed=4)
    first = draw_photos(photos, labels.numpy(), resamples=5)
    assert (first == draw_photos(photos, labels.numpy(), resamples=5, seed=0)).all()
    assert (first != draw_photos(photos, labels.numpy(), resamples=5, seed=1)).any()


def test_intervals_are_those_of_the_older_bootstrap_within_its_own_noise():
    logits, labels, photos = with_photos(600, seed=5)
    draws = draw_photos(photos, labels.numpy())
    found = resample(logits, labels, photos, draws, CHOSEN)
    for name, older in intervals(logits, labels, photos).items():
        ours = percentiles(found[name])
        width = older.high - older.low
        assert ours.low == pytest.approx(older.low, abs=0.1 * width)
        assert ours.high == pytest.approx(older.high, abs=0.1 * width)


def test_mean_losses_are_means_over_the_copied_faces():
    _, labels, photos = with_photos(50, seed=6)
    losses = np.random.default_rng(6).exponential(size=50)
    draws = draw_photos(photos, labels.numpy(), resamples=20)
    by_hand = [losses[copies(photos, drawn)].mean() for drawn in draws]
    assert mean_losses(losses, photos, draws) == pytest.approx(by_hand, abs=1e-12)
