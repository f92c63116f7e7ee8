"""All figures of one training on one split, each by scikit-learn where it has one."""

from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss
from torch import Tensor

from deepfake.metrics.calibration import Chosen, calibration_error
from deepfake.metrics.classification import (
    cross_entropy,
    equal_error_rate,
    fake_probability,
    fake_score,
    measure,
    predict,
    recall_at_false_alarms,
)

Scorecard = dict[str, float | None]


def compute_scorecard(logits: Tensor, labels: Tensor, chosen: Chosen) -> Scorecard:
    """The figures by name; `_scaled`: after the temperature; 0 is real, 1 is fake.

    logits: (N, 2), labels: (N,), both labels among them. recall_1_at_far_1pct is None where
    there are too few reals. All but accuracy_at_threshold call a face fake from P(FAKE) = 0.5.
    """
    scaled = logits.double() / chosen.temperature
    return measure(logits, labels).as_dict() | {
        "balanced_accuracy": float(balanced_accuracy_score(labels, predict(logits))),
        "average_precision": float(average_precision_score(labels, fake_score(logits))),
        "eer": equal_error_rate(logits, labels),
        "brier": float(brier_score_loss(labels, fake_probability(logits))),
        "ece": calibration_error(logits, labels),
        "nll_scaled": cross_entropy(scaled, labels),
        "ece_scaled": calibration_error(logits, labels, chosen.temperature),
        "recall_1_at_far_1pct": recall_at_false_alarms(logits, labels),
        "accuracy_at_threshold": float(
            (predict(logits, chosen.threshold) == labels).double().mean()
        ),
    }
