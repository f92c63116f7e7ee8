import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, roc_curve

from deepfake.metrics.classification import (
    ConfusionMatrix,
    accuracy,
    confusion_matrix,
    cross_entropy,
    equal_error_rate,
    fake_probability,
    fake_score,
    measure,
    predict,
    recall_at_false_alarms,
)

# Eight faces, three real (0) and five fake (1). score = logit of FAKE - logit of REAL;
# above 0 it says FAKE.
SCORES = (-2.0, -1.0, 3.0, -0.5, -3.0, 1.0, 2.0, 3.0)
LABELS = (0, 0, 0, 1, 1, 1, 1, 1)
# real: -2, -1 taken for real, 3 for fake; fake: -0.5, -3 taken for real, 1, 2, 3 for fake


def logits_of(scores, dtype=torch.float32):
    """Logits with these differences, and a common part that must not matter."""
    scores = torch.tensor(scores, dtype=dtype)
    common = torch.arange(len(scores), dtype=dtype)
    return torch.stack([common, common + scores], dim=1)


def random_faces(n, seed, levels=None):
    """Logits that know a little of the labels.

    levels: scores are multiples of 1 / levels, so that many tie; a power of 2 keeps them exact.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = rng.normal(labels * 0.8 - 0.2, 1)
    if levels:
        scores = np.round(scores * levels) / levels
    return logits_of(scores.tolist(), torch.float64), torch.from_numpy(labels)


def test_the_four_outcomes_of_eight_faces_counted_by_hand():
    matrix = confusion_matrix(logits_of(SCORES), torch.tensor(LABELS))
    assert matrix == ConfusionMatrix(
        real_as_real=2, real_as_fake=1, fake_as_real=2, fake_as_fake=3
    )
    assert matrix.rows() == [[2, 1], [2, 3]]


def test_figures_of_eight_faces_worked_out_by_hand():
    figures = measure(logits_of(SCORES), torch.tensor(LABELS)).as_dict()
    # fake above real over the 3 * 5 pairs: -0.5 beats 2 of 3 reals, -3 none, 1 and 2 beat 2,
    # 3 beats 2 and ties with the real 3: 2 + 0 + 2 + 2 + 2.5 = 8.5
    faces = zip(SCORES, LABELS, strict=True)
    nll = [math.log1p(math.exp(s if label == 0 else -s)) for s, label in faces]
    assert figures == pytest.approx(
        {
            "accuracy": 5 / 8,  # 2 + 3
            "precision_0": 2 / 4,  # of 2 + 2 said to be real
            "precision_1": 3 / 4,  # of 1 + 3 said to be fake
            "recall_0": 2 / 3,
            "recall_1": 3 / 5,
            "f1_0": 4 / 7,  # 2 * 2 / (2 * 2 + 1 + 2)
            "f1_1": 6 / 9,  # 2 * 3 / (2 * 3 + 1 + 2)
            "auc": 8.5 / 15,
            "nll": sum(nll) / 8,
        },
        abs=1e-6,
    )


def test_a_class_never_predicted_has_precision_0_and_no_warning(recwarn):
    figures = measure(logits_of((1.0, 2.0, 3.0)), torch.tensor((0, 1, 1)))
    assert (figures.precision_0, figures.recall_0, figures.f1_0) == (0, 0, 0)
    assert figures.precision_1 == pytest.approx(2 / 3)
    assert not recwarn.list


def test_a_probability_equal_to_the_threshold_is_fake():
    assert predict(torch.tensor([[0.7, 0.7]])).tolist() == [1]  # exactly 0.5
    logits = logits_of(SCORES)
    for face, probability in enumerate(fake_probability(logits).tolist()):
        just_above = math.nextafter(probability, 1)
        assert predict(logits, probability)[face] == 1
        assert predict(logits, just_above)[face] == 0
        at = confusion_matrix(logits[[face]], torch.tensor([1]), probability)
        assert at == ConfusionMatrix(0, 0, 0, 1)


def test_cross_entropy_of_two_faces_by_hand():
    # P(FAKE) = 3 / (1 + 3): -log(1/4) if it is real, -log(3/4) if it is fake
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5 + math.log(3)]], dtype=torch.float64)
    by_hand = (math.log(4) + math.log(4 / 3)) / 2
    assert cross_entropy(logits, torch.tensor([0, 1])) == pytest.approx(by_hand, abs=1e-12)


def test_cross_entropy_of_a_hopeless_error_is_large_and_finite():
    # softmax in probabilities would give log 0
    assert cross_entropy(torch.tensor([[2000.0, -2000.0]]), torch.tensor([1])) == 4000


def test_accuracy_and_auc_and_cross_entropy_equal_scikit_learns():
    logits, labels = random_faces(500, seed=0, levels=4)
    figures = measure(logits, labels)
    probabilities = 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).numpy()))
    assert figures.accuracy == accuracy_score(labels, probabilities >= 0.5)
    assert figures.accuracy == accuracy(logits, labels)
    assert figures.auc == pytest.approx(roc_auc_score(labels, probabilities.round(12)), abs=1e-12)
    assert figures.nll == pytest.approx(log_loss(labels, probabilities), abs=1e-12)


def test_auc_still_ranks_faces_whose_probability_is_1():
    # softmax of 40 and of 50 is 1.0 in float64: as probabilities they would tie
    logits, labels = logits_of((40.0, 50.0), torch.float64), torch.tensor((0, 1))
    assert fake_probability(logits).tolist() == [1.0, 1.0]
    assert fake_score(logits).tolist() == [40, 50]
    assert measure(logits, labels).auc == 1


@pytest.mark.parametrize("shape", [(7, 2), (8, 1), (8, 3), (8,), (8, 2, 1)])
def test_logits_that_do_not_fit_their_labels_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(.*\) do not fit labels \(8,\)"):
        confusion_matrix(torch.zeros(shape), torch.tensor(LABELS))


@pytest.mark.parametrize("label", [0, 1])
def test_faces_of_one_label_alone_are_still_counted(label):
    matrix = confusion_matrix(logits_of((-1.0, 1.0, 2.0)), torch.full((3,), label))
    assert matrix.rows() == ([[1, 2], [0, 0]] if label == 0 else [[0, 0], [1, 2]])


def test_the_equal_error_rate_of_eight_faces_by_hand():
    # from 3.5 on called fake: one real of four (4), and one fake of four is missed (2.5)
    logits = logits_of((1.0, 2.0, 3.0, 4.0, 2.5, 3.5, 4.5, 5.5))
    assert equal_error_rate(logits, torch.tensor([0] * 4 + [1] * 4)) == 0.25


def test_the_equal_error_rate_lies_on_the_line_between_two_thresholds():
    # at 2: no false alarm, half the fakes missed; at 1, a tie: half false alarms, none missed
    logits = logits_of((0.0, 1.0, 1.0, 2.0))
    assert equal_error_rate(logits, torch.tensor((0, 0, 1, 1))) == 0.25


@pytest.mark.parametrize(("n", "levels"), [(40, None), (300, 4), (301, 1)])
def test_the_equal_error_rate_is_the_root_that_scipy_finds(n, levels):
    logits, labels = random_faces(n, seed=n, levels=levels)
    false_alarms, found, _ = roc_curve(labels, fake_score(logits))
    root = brentq(lambda x: 1 - x - np.interp(x, false_alarms, found), 0, 1, xtol=1e-14)
    assert equal_error_rate(logits, labels) == pytest.approx(root, abs=1e-9)


def test_a_perfect_model_has_no_equal_error():
    assert equal_error_rate(logits_of((-1.0, 1.0)), torch.tensor((0, 1))) == 0


def test_recall_at_one_percent_false_alarms_by_hand():
    # 600 reals with scores 0 to 599: six of them may be taken for fake, 594 to 599
    reals, fakes = torch.arange(600.0), torch.tensor((593.0, 593.5, 594.0, 700.0))
    logits = logits_of(torch.cat([reals, fakes]).tolist())
    labels = torch.tensor([0] * 600 + [1] * 4)
    # from just above 593 on; but the fake of 593 comes together with the seventh real
    assert recall_at_false_alarms(logits, labels) == 3 / 4


def test_recall_at_one_percent_false_alarms_needs_500_reals():
    logits, labels = torch.zeros(503, 2), torch.tensor([0] * 499 + [1] * 4)
    assert recall_at_false_alarms(logits, labels) is None
    labels[499] = 0
    assert recall_at_false_alarms(logits, labels) == 0  # all scores are one: all or none
