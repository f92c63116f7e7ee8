import math

import numpy as np
import pytest
import torch

from deepfake.metrics.classification import (
    ConfusionMatrix,
    confusion_matrix,
    cross_entropy,
    fake_probability,
    predict,
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


@pytest.mark.parametrize("shape", [(7, 2), (8, 1), (8, 3), (8,), (8, 2, 1)])
def test_logits_that_do_not_fit_their_labels_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(.*\) do not fit labels \(8,\)"):
        confusion_matrix(torch.zeros(shape), torch.tensor(LABELS))


@pytest.mark.parametrize("label", [0, 1])
def test_faces_of_one_label_alone_are_still_counted(label):
    matrix = confusion_matrix(logits_of((-1.0, 1.0, 2.0)), torch.full((3,), label))
    assert matrix.rows() == ([[1, 2], [0, 0]] if label == 0 else [[0, 0], [1, 2]])
