import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from deepfake.metrics.bootstrap import draw_photos, intervals, mean_losses, percentiles
from deepfake.metrics.calibration import Chosen, choose
from deepfake.metrics.classification import fake_score, predict
from deepfake.metrics.figures import measure, resample
from tests.deepfake.metrics.test_classification import logits_of, random_faces

CHOSEN = Chosen(temperature=1.7, threshold=0.4)
NAMES = ("accuracy", "auc")


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
    found = resample(logits, labels, photos, draws, chosen=CHOSEN)
    for row, drawn in enumerate(draws):
        faces = copies(photos, drawn)
        whole = measure(logits[faces], labels[faces], chosen=CHOSEN)
        assert {name: values[row] for name, values in found.items()} == pytest.approx(
            whole, abs=1e-9
        )


def test_every_photo_drawn_once_gives_the_figures():
    logits, labels, photos = with_photos(90, seed=3)
    chosen = choose(logits, labels)
    once = np.ones((1, photos.max() + 1), np.uint16)
    found = resample(logits, labels, photos, once, chosen=chosen)
    whole = measure(logits, labels, chosen=chosen)
    assert "recall_1_at_far_1pct" not in whole  # too few reals
    assert {name: values[0] for name, values in found.items()} == pytest.approx(whole, abs=1e-9)


def test_a_class_never_predicted_has_precision_0():
    logits = torch.tensor([[0.0, 1.0]] * 4)
    labels, photos = torch.tensor((0, 1, 1, 0)), np.array((0, 0, 1, 1))
    found = resample(logits, labels, photos, np.array([[1, 1]], np.uint16), chosen=CHOSEN)
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


@pytest.mark.slow
def test_intervals_are_those_of_a_plain_loop_that_draws_photos():
    logits, labels, photos = with_photos(60, seed=5, levels=4)
    rng = np.random.default_rng(0)
    of_photo = [np.flatnonzero(photos == photo) for photo in range(photos.max() + 1)]
    accuracies, aucs = [], []
    while len(aucs) < 2000:
        drawn = rng.integers(0, len(of_photo), len(of_photo))
        faces = np.concatenate([of_photo[photo] for photo in drawn])
        if len(set(labels[faces].tolist())) == 2:
            accuracies.append(accuracy_score(labels[faces], predict(logits[faces])))
            aucs.append(roc_auc_score(labels[faces], fake_score(logits[faces])))
    ours = intervals(logits, labels, photos, measure(logits, labels, NAMES))
    assert ours.keys() == {"accuracy", "auc"}
    for name, values in (("accuracy", accuracies), ("auc", aucs)):
        low, high = np.percentile(values, [2.5, 97.5])
        assert (ours[name].low, ours[name].high) == pytest.approx((low, high), abs=1e-12)


def test_one_model_on_one_split_has_one_interval():
    logits, labels, photos = with_photos(600, seed=5)
    whole = measure(logits, labels, chosen=CHOSEN)
    found = resample(logits, labels, photos, draw_photos(photos, labels.numpy()), chosen=CHOSEN)
    figures = measure(logits, labels, NAMES)
    for name, interval in intervals(logits, labels, photos, figures).items():
        assert interval == percentiles(found[name], whole[name])


def test_faces_that_are_copies_within_a_photo_widen_the_interval_by_the_root_of_their_number():
    # 4 copies of each of 100 faces: 400 faces, but no more than 100 of them know anything
    logits, labels = random_faces(100, seed=5)
    logits, labels = logits.repeat_interleave(4, 0), labels.repeat_interleave(4)
    figures = measure(logits, labels, NAMES)
    by_photo = intervals(logits, labels, np.arange(400) // 4, figures)
    by_face = intervals(logits, labels, np.arange(400), figures)
    for name in ("accuracy", "auc"):
        photo, face = (found[name].high - found[name].low for found in (by_photo, by_face))
        assert photo / face == pytest.approx(2, abs=0.2)  # sqrt(4)


def test_the_accuracy_interval_has_the_width_of_the_binomials():
    # 400 faces, p = 0.8: 2 * 1.96 * sqrt(0.8 * 0.2 / 400) = 0.0784
    labels = torch.tensor([0, 1] * 200)
    says = labels.clone()
    says[:80] = 1 - says[:80]
    logits = logits_of((2.0 * says - 1).tolist())
    interval = intervals(logits, labels, np.arange(400), {"accuracy": 0.8})["accuracy"]
    assert interval.high - interval.low == pytest.approx(0.0784, rel=0.1)
    assert interval.low < 0.8 < interval.high


def test_a_perfect_model_has_an_interval_of_no_width():
    labels = torch.tensor([0, 1] * 20)
    logits = logits_of((2.0 * labels - 1).tolist())
    found = intervals(logits, labels, np.arange(40), measure(logits, labels, NAMES))
    assert (found["accuracy"].low, found["auc"].low, found["auc"].high) == (1, 1, 1)


def test_an_interval_holds_its_figure():
    resampled = np.linspace(0.1, 0.2, 101)  # as an ECE's, above the figure
    interval = percentiles(resampled, 0.05)
    assert (interval.low, interval.high) == pytest.approx((0.05, 0.1975))


def test_mean_losses_are_means_over_the_copied_faces():
    _, labels, photos = with_photos(50, seed=6)
    losses = np.random.default_rng(6).exponential(size=50)
    draws = draw_photos(photos, labels.numpy(), resamples=20)
    by_hand = [losses[copies(photos, drawn)].mean() for drawn in draws]
    assert mean_losses(losses, photos, draws) == pytest.approx(by_hand, abs=1e-12)
