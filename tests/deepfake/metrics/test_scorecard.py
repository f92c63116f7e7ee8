import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
)

from deepfake.metrics.calibration import Chosen, calibration_error
from deepfake.metrics.classification import (
    equal_error_rate,
    fake_probability,
    measure,
    recall_at_false_alarms,
)
from deepfake.metrics.scorecard import compute_scorecard
from tests.deepfake.metrics.test_classification import random_faces


def test_the_scorecard_holds_measures_figures_and_scikit_learns():
    logits, labels = random_faces(1200, seed=1)
    card = compute_scorecard(logits, labels, Chosen(temperature=2.0, threshold=0.3))
    of_fake, scaled = (fake_probability(logits / t).numpy() for t in (1, 2))
    assert card == pytest.approx(
        measure(logits, labels).as_dict()
        | {
            "balanced_accuracy": balanced_accuracy_score(labels, of_fake >= 0.5),
            "average_precision": average_precision_score(labels, of_fake),
            "eer": equal_error_rate(logits, labels),
            "brier": brier_score_loss(labels, of_fake),
            "ece": calibration_error(logits, labels),
            "nll_scaled": log_loss(labels, scaled),
            "ece_scaled": calibration_error(logits, labels, temperature=2),
            "recall_1_at_far_1pct": recall_at_false_alarms(logits, labels),
            "accuracy_at_threshold": accuracy_score(labels, of_fake >= 0.3),
        },
        abs=1e-12,
    )


def test_the_recall_at_few_false_alarms_is_none_where_reals_are_few():
    card = compute_scorecard(*random_faces(100, seed=2), Chosen(1.0, 0.5))
    assert card["recall_1_at_far_1pct"] is None
