import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from deepfake.metrics.bootstrap import draw_photos
from deepfake.metrics.calibration import Chosen
from deepfake.metrics.classification import fake_probability, fake_score
from deepfake.metrics.figures import METRICS, Summed, logged_figures, measure, resample
from tests.deepfake.metrics.test_calibration import calibration_error
from tests.deepfake.metrics.test_classification import LABELS, SCORES, logits_of, random_faces


def figure(name, scores, labels):
    return measure(logits_of(scores), torch.tensor(labels), [name]).get(name)


def test_the_logged_figures_of_eight_faces_worked_out_by_hand():
    figures = logged_figures(logits_of(SCORES), torch.tensor(LABELS))
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


@pytest.mark.parametrize("levels", [None, 4])
def test_every_figure_is_scikit_learns(levels):
    logits, labels = random_faces(1200, seed=1, levels=levels)
    figures = measure(logits, labels, chosen=Chosen(temperature=2.0, threshold=0.3))
    score = fake_score(logits).numpy()
    of_fake, scaled = (fake_probability(logits / t).numpy() for t in (1, 2))
    says, reals = of_fake >= 0.5, int((labels == 0).sum())
    alarms, found, _ = roc_curve(labels, score, drop_intermediate=False)
    by_label = {
        f"{name}_{label}": of(labels, says, pos_label=label)
        for name, of in (("precision", precision_score), ("recall", recall_score))
        for label in (0, 1)
    }
    assert figures == pytest.approx(
        by_label
        | {f"f1_{label}": f1_score(labels, says, pos_label=label) for label in (0, 1)}
        | {
            "accuracy": accuracy_score(labels, says),
            "auc": roc_auc_score(labels, score),
            "nll": log_loss(labels, of_fake),
            "balanced_accuracy": balanced_accuracy_score(labels, says),
            "average_precision": average_precision_score(labels, score),
            "eer": brentq(lambda x: 1 - x - np.interp(x, alarms, found), 0, 1, xtol=1e-14),
            "brier": brier_score_loss(labels, of_fake),
            "ece": calibration_error(logits, labels),
            "nll_scaled": log_loss(labels, scaled),
            "ece_scaled": calibration_error(logits, labels, temperature=2),
            "recall_1_at_far_1pct": found[alarms * reals <= 0.01 * reals].max(),
            "accuracy_at_threshold": accuracy_score(labels, of_fake >= 0.3),
        },
        abs=1e-12,
    )
    assert figures.keys() == METRICS.keys()


def test_a_class_never_predicted_has_precision_0_and_no_warning(recwarn):
    figures = logged_figures(logits_of((1.0, 2.0, 3.0)), torch.tensor((0, 1, 1)))
    assert [figures[name] for name in ("precision_0", "recall_0", "f1_0")] == [0, 0, 0]
    assert figures["precision_1"] == pytest.approx(2 / 3)
    # of figures: a library that is imported here for the first time may deprecate something
    assert not [w for w in recwarn.list if issubclass(w.category, RuntimeWarning | UserWarning)]


def test_auc_still_ranks_faces_whose_probability_is_1():
    # softmax of 40 and of 50 is 1.0 in float64: as probabilities they would tie
    logits = logits_of((40.0, 50.0), torch.float64)
    assert fake_probability(logits).tolist() == [1.0, 1.0]
    assert fake_score(logits).tolist() == [40, 50]
    assert figure("auc", (40.0, 50.0), (0, 1)) == 1


def test_the_equal_error_rate_of_eight_faces_by_hand():
    # from 3.5 on called fake: one real of four (4), and one fake of four is missed (2.5)
    assert figure("eer", (1.0, 2.0, 3.0, 4.0, 2.5, 3.5, 4.5, 5.5), [0] * 4 + [1] * 4) == 0.25


def test_the_equal_error_rate_lies_on_the_line_between_two_thresholds():
    # at 2: no false alarm, half the fakes missed; at 1, a tie: half false alarms, none missed
    assert figure("eer", (0.0, 1.0, 1.0, 2.0), (0, 0, 1, 1)) == 0.25


def test_a_perfect_model_has_no_equal_error():
    assert figure("eer", (-1.0, 1.0), (0, 1)) == 0


def test_recall_at_one_percent_false_alarms_by_hand():
    # 600 reals with scores 0 to 599: six of them may be taken for fake, 594 to 599
    scores = torch.cat([torch.arange(600.0), torch.tensor((593.0, 593.5, 594.0, 700.0))])
    # from just above 593 on; but the fake of 593 comes together with the seventh real
    found = figure("recall_1_at_far_1pct", scores.tolist(), [0] * 600 + [1] * 4)
    assert found == pytest.approx(3 / 4)


def test_recall_at_one_percent_false_alarms_needs_500_reals():
    few, enough = ([0] * reals + [1] * (503 - reals) for reals in (499, 500))
    assert figure("recall_1_at_far_1pct", [0.0] * 503, few) is None
    # all scores are one: all or none
    assert figure("recall_1_at_far_1pct", [0.0] * 503, enough) == 0


def test_a_metric_from_outside_may_add_up_what_it_likes_of_each_face(monkeypatch):
    def surprise(scored):
        return np.abs(scored.logits[:, 1].numpy())

    mine = Summed("size of a logit", compute=lambda s: s.mean(surprise))
    monkeypatch.setitem(METRICS, "size", mine)
    logits, labels = random_faces(60, seed=2)
    sizes, photos = logits[:, 1].abs().numpy(), np.arange(60) // 2
    assert measure(logits, labels, ["size"]) == pytest.approx({"size": sizes.mean()})
    draws = draw_photos(photos, labels.numpy(), resamples=20)
    by_hand = [np.repeat(sizes, drawn[photos]).mean() for drawn in draws]
    found = resample(logits, labels, photos, draws, ["size", "auc"])
    assert found["size"] == pytest.approx(by_hand)


def mcc(s):
    """Matthews' correlation, of counts."""
    said_fake, said_real = s.hits + s.alarms, s.passed + s.misses
    gap = s.hits * s.passed - s.alarms * s.misses
    return gap / np.sqrt(np.maximum(said_fake * said_real * s.fakes * s.reals, 1))


def test_matthews_correlation_from_outside_is_scikit_learns(monkeypatch):
    monkeypatch.setitem(METRICS, "mcc", Summed("MCC", compute=mcc))
    logits, labels = random_faces(300, seed=3)
    says = fake_probability(logits).numpy() >= 0.5
    found = measure(logits, labels, ["mcc"])["mcc"]
    assert found == pytest.approx(matthews_corrcoef(labels, says))
