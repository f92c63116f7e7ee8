import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss

from deepfake.metrics.calibration import (
    ECE_BINS,
    Chosen,
    binned_error,
    choose,
    choose_threshold,
    fit_temperature,
)
from deepfake.metrics.classification import (
    cross_entropy,
    fake_probability,
    fake_score,
    predict,
)
from tests.deepfake.metrics.test_classification import logits_of, random_faces


def calibration_error(logits, labels, temperature=1.0, bins=ECE_BINS):
    """In floats; faces of one score are one group."""
    scores, group = np.unique(fake_score(logits).numpy(), return_inverse=True)
    mass = np.bincount(group)
    excess = mass * expit(scores / temperature) - np.bincount(group, labels.numpy())
    return binned_error(np.cumsum(mass), np.cumsum(excess), bins)


def of_probabilities(*probabilities):
    return logits_of([math.log(p / (1 - p)) for p in probabilities], torch.float64)


def test_the_temperature_of_three_right_and_one_wrong_by_hand():
    # all as sure of themselves, three of four right: P = 3/4, the score 5 becomes log 3
    logits, labels = logits_of((5.0, 5.0, -5.0, 5.0)), torch.tensor((1, 1, 0, 0))
    assert fit_temperature(logits, labels) == pytest.approx(5 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_the_temperature_is_that_of_scikit_learns_logistic_regression(factor):
    logits, labels = random_faces(400, seed=1)
    logits = logits * factor
    score = (logits[:, 1] - logits[:, 0]).numpy()[:, None]
    plain = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(score, labels)
    assert fit_temperature(logits, labels) == pytest.approx(1 / plain.coef_[0, 0], rel=1e-4)


def test_the_temperature_lowers_the_cross_entropy_and_keeps_every_label():
    logits, labels = random_faces(300, seed=2)
    logits = logits * 9
    scaled = logits / fit_temperature(logits, labels)
    assert cross_entropy(scaled, labels) < 0.5 * cross_entropy(logits, labels)
    assert torch.equal(predict(scaled), predict(logits))
    assert cross_entropy(scaled, labels) == pytest.approx(
        log_loss(labels, fake_probability(scaled)), abs=1e-12
    )


def test_a_validation_without_an_error_gives_no_temperature():
    # the cross-entropy would fall with the temperature down to 0
    assert fit_temperature(logits_of((-1.0, 2.0)), torch.tensor((0, 1))) == 1


def test_a_model_that_knows_nothing_is_cooled_as_far_as_is_sought():
    logits, labels = logits_of((-3.0, 3.0, -3.0, 3.0)), torch.tensor((1, 0, 0, 1))
    assert fit_temperature(logits, labels) == pytest.approx(100, rel=1e-3)


def test_the_threshold_parts_the_faces_where_balanced_accuracy_is_highest():
    # called fake from 0.6: both fakes and none of three reals; half-way to the next below, 0.3
    logits = of_probabilities(0.1, 0.2, 0.3, 0.6, 0.9)
    threshold = choose_threshold(logits, torch.tensor((0, 0, 0, 1, 1)))
    assert threshold == pytest.approx(0.45)


def test_of_equal_thresholds_the_nearest_to_a_half_is_chosen():
    # from 0.8: one fake of two and no real; from 0.3: both fakes and one real of two
    logits = of_probabilities(0.1, 0.3, 0.4, 0.8)
    # middles: (0.8 + 0.4) / 2 = 0.6 and (0.3 + 0.1) / 2 = 0.2
    assert choose_threshold(logits, torch.tensor((0, 1, 0, 1))) == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_between_two_faces_has_a_higher_balanced_accuracy(seed):
    logits, labels = random_faces(60, seed, levels=4)
    probabilities = fake_probability(logits).numpy()
    of_all = [
        balanced_accuracy_score(labels, probabilities >= threshold)
        for threshold in (*probabilities, 0.0, 1.1)
    ]
    chosen = predict(logits, choose_threshold(logits, labels))
    assert balanced_accuracy_score(labels, chosen) == pytest.approx(max(of_all))


def test_a_threshold_between_neighbouring_floats_still_parts_them():
    # P(FAKE) of 36 and of 36.5 are the last float64 below 1 and 1 itself, or nearly so
    logits, labels = logits_of((36.0, 37.5), torch.float64), torch.tensor((0, 1))
    assert predict(logits, choose_threshold(logits, labels)).tolist() == [0, 1]


def test_what_validation_chose_is_temperature_and_threshold():
    logits, labels = random_faces(100, seed=3)
    assert choose(logits, labels) == Chosen(
        fit_temperature(logits, labels), choose_threshold(logits, labels)
    )


def test_the_calibration_error_of_four_faces_in_two_bins_by_hand():
    # bin 1: 0.1 and 0.2, one of two is fake: |0.15 - 0.5|; bin 2: 0.7 and 0.9, both: |0.8 - 1|
    logits, labels = of_probabilities(0.7, 0.1, 0.9, 0.2), torch.tensor((1, 0, 1, 1))
    assert calibration_error(logits, labels, bins=2) == pytest.approx((0.35 + 0.2) / 2)


def test_a_face_on_a_border_is_shared_by_both_bins():
    # bins of one face and a half: 0.1 + 0.25 - 0.5 fakes; 0.25 + 0.9 - 1.5 fakes
    logits, labels = of_probabilities(0.1, 0.5, 0.9), torch.tensor((0, 1, 1))
    assert calibration_error(logits, labels, bins=2) == pytest.approx((0.15 + 0.35) / 3)


def test_the_order_of_faces_with_one_probability_does_not_matter():
    logits = of_probabilities(*[0.5] * 4)
    in_turn = calibration_error(logits, torch.tensor((0, 1, 0, 1)), bins=2)
    assert in_turn == pytest.approx(0)
    assert calibration_error(logits, torch.tensor((0, 0, 1, 1)), bins=2) == pytest.approx(0)


def test_the_calibration_error_equals_a_plain_loop_over_bins():
    logits, labels = random_faces(450, seed=4)
    probabilities = fake_probability(logits).numpy()
    bins = np.array_split(np.argsort(probabilities), 15)
    by_loop = sum(
        30 / 450 * abs(probabilities[faces].mean() - labels.numpy()[faces].mean())
        for faces in bins
    )
    assert calibration_error(logits, labels) == pytest.approx(by_loop, abs=1e-12)


def test_copies_of_all_faces_have_the_same_calibration_error():
    logits, labels = random_faces(37, seed=5)
    copied = calibration_error(logits.repeat(3, 1), labels.repeat(3))
    assert copied == pytest.approx(calibration_error(logits, labels), abs=1e-12)
