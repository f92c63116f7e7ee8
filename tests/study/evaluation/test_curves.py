"""Curves held against scikit-learn's own figures, and against points worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from deepfake.metrics.calibration import fit_temperature, reliability
from study.evaluation.error_analysis import MAX_POINTS, curves, precision_recall, roc
from study.evaluation.predictions import SplitPredictions
from tests.deepfake.metrics.test_calibration import calibration_error
from tests.support.nulls import finalist


def drawn(n=400, seeds=1, state=0):
    """(seeds, n, 2) logits of some skill, and labels (n,)."""
    rng = np.random.default_rng(state)
    labels = rng.integers(0, 2, n)
    logits = np.zeros((seeds, n, 2), np.float32)
    logits[:, :, 1] = rng.normal(1.5 * (2 * labels - 1), 2, (seeds, n))
    return torch.from_numpy(logits), torch.from_numpy(labels)


def area(curve, before):
    """Under the steps: as high as at the left (roc) or right (precision) point."""
    heights = curve.y[:-1] if before else curve.y[1:]
    return float((np.diff(curve.x) * heights).sum())


def test_a_curve_of_four_faces_is_as_worked_out():
    # scores 4 fake, 3 real, 2 fake, 1 real
    logits = torch.tensor([[[0.0, score] for score in (4.0, 3.0, 2.0, 1.0)]])
    labels = torch.tensor([1, 0, 1, 0])
    found = roc(logits, labels)
    assert (found.x.tolist(), found.y.tolist()) == ([0, 0.5, 1], [0.5, 1, 1])
    found = precision_recall(logits, labels)
    assert (found.x.tolist(), found.y.tolist()) == ([0, 0.5, 1], [1, 1, pytest.approx(2 / 3)])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_areas_are_scikit_learns_auc_and_average_precision_mean_over_seeds(seeds):
    logits, labels = drawn(100, seeds)
    scores = [of_seed[:, 1].numpy() for of_seed in logits]
    auc = np.mean([roc_auc_score(labels, score) for score in scores])
    assert area(roc(logits, labels), before=True) == pytest.approx(auc)
    precision = np.mean([average_precision_score(labels, score) for score in scores])
    found = area(precision_recall(logits, labels), before=False)
    assert found == pytest.approx(precision)


def test_a_curve_of_many_faces_keeps_its_ends_and_its_area_with_few_points():
    logits, labels = drawn(20_000)
    found = roc(logits, labels)
    assert len(found.x) == MAX_POINTS
    assert (found.x[0], found.x[-1], found.y[-1]) == (0, 1, 1)
    score = logits[0, :, 1]
    assert area(found, before=True) == pytest.approx(roc_auc_score(labels, score), abs=0.005)
    false_alarms, recall, _ = roc_curve(labels, score, drop_intermediate=False)
    for x, y in zip(found.x, found.y, strict=True):
        assert y == recall[false_alarms <= x].max()  # each point is one of the whole curve


def test_reliability_is_scikit_learns_curve_of_quantiles():
    logits, labels = drawn(600)
    p_fake = logits[0].double().softmax(1)[:, 1]
    share, mean = calibration_curve(labels, p_fake, n_bins=15, strategy="quantile")
    of_bins = reliability(logits[0], labels)
    # its quantiles lie between two faces, as the borders here do
    assert of_bins[0] == pytest.approx(mean, abs=1e-9)
    assert of_bins[1] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("n", [50, 601])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reliability_is_what_the_calibration_error_averages(n, temperature):
    logits, labels = drawn(n)
    logits[0, : n // 2] = logits[0, :1]  # equal scores over several bins
    mean, share = reliability(logits[0], labels, temperature)
    gap = np.abs(mean - share).mean()
    assert gap == pytest.approx(calibration_error(logits[0], labels, temperature))


@pytest.fixture(scope="module")
def found():
    (val_logits, val_labels), (logits, labels) = drawn(80, 2, state=1), drawn(120, 2)
    val, test = (
        SplitPredictions(pd.DataFrame({"label": of.numpy()}), {"slot 7": said.numpy()})
        for of, said in ((val_labels, val_logits), (labels, logits))
    )
    (found,) = curves([finalist("slot 7", "candidate", 7, 0, 1)], val, test)
    return found


def test_the_point_of_threshold_one_half_is_the_mean_over_seeds(found):
    logits, labels = drawn(120, 2)
    says = [of_seed[:, 1] >= 0 for of_seed in logits]
    assert found["at_half"] == pytest.approx(
        {
            "false_alarms": np.mean([1 - recall_score(labels, s, pos_label=0) for s in says]),
            "recall": np.mean([recall_score(labels, s) for s in says]),
            "precision": np.mean([precision_score(labels, s) for s in says]),
        },
        abs=1e-6,
    )


def test_the_temperature_after_is_each_seeds_own_from_validation(found):
    val_logits, val_labels = drawn(80, 2, state=1)
    logits, labels = drawn(120, 2)
    by_seed = [
        reliability(test, labels, fit_temperature(val, val_labels))
        for val, test in zip(val_logits, logits, strict=True)
    ]
    mean, share = np.mean(by_seed, axis=0)
    after = found["reliability"]["after"]
    assert after == {"x": pytest.approx(mean, abs=1e-6), "y": pytest.approx(share, abs=1e-6)}
    assert after["y"] == found["reliability"]["before"]["y"]  # scaling keeps the order


def test_all_of_it_is_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
