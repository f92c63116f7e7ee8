import numpy as np
import pytest
from scipy.stats import binom, ttest_ind, ttest_rel
from sklearn.metrics import log_loss

from deepfake.metrics.bootstrap import draw_photos
from study.evaluation.verdict import (
    Estimate,
    best_candidate,
    difference,
    face_losses,
    holm,
    interval,
    nll_estimate,
    reproduction,
    rule,
)
from tests.support.nulls import finalist, finalists, ruled, simulated

PHOTOS = 101


def estimate(*by_seed, spread=0.0):
    """Seeds as given; resamples around their mean whose standard deviation is spread."""
    by_seed = np.array(by_seed)
    values = np.random.default_rng(0).normal(size=500)
    resampled = (values - values.mean()) / values.std(ddof=1) * spread
    return Estimate(by_seed, by_seed.mean() + resampled)


def test_without_a_spread_over_photos_the_interval_is_scipys_welch_test():
    ours, theirs = (0.31, 0.29, 0.33, 0.30, 0.28), (0.36, 0.31, 0.40)
    found = difference(estimate(*ours), estimate(*theirs), PHOTOS)
    scipys = ttest_ind(ours, theirs, equal_var=False)
    assert found.p == pytest.approx(scipys.pvalue)
    assert found.df == pytest.approx(scipys.df)
    assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval()))


def test_photos_enter_as_one_more_group_by_hand():
    # the variance of three seeds 0.1 apart is 0.01, that of their mean a third of it
    ours, theirs = estimate(0.1, 0.2, 0.3, spread=0.1), estimate(0.5, 0.6, 0.7)
    found = difference(ours, theirs, PHOTOS)
    seeds, photos = 0.01 / 3, 0.1**2
    total = 2 * seeds + photos
    assert found.value == pytest.approx(-0.4)
    assert found.df == pytest.approx(total**2 / (2 * seeds**2 / 2 + photos**2 / 100))
    assert (found.high - found.low) / 2 == pytest.approx(
        2.069 * np.sqrt(total),  # Student's t at 22.9 degrees of freedom
        rel=1e-3,
    )


def test_photos_are_paired_both_arms_are_drawn_together():
    # one face a photo and seeds that agree: the paired t-test of scipy
    rng = np.random.default_rng(1)
    photos, labels = np.arange(300), rng.integers(0, 2, 300)
    draws = draw_photos(photos, labels, resamples=4000)
    common, own = rng.normal(size=300), rng.normal(size=(2, 300))
    losses = common + 0.2 * own + [[0.02], [0.0]]
    sums = losses @ draws.T / 300
    arms = [Estimate(np.repeat(of.mean(), 3), s) for of, s in zip(losses, sums, strict=True)]
    scipys = ttest_rel(*losses)
    found = difference(*arms, photos=300)
    assert found.df == pytest.approx(scipys.df)
    assert found.high - found.low == pytest.approx(
        np.subtract(*tuple(scipys.confidence_interval())[::-1]), rel=0.05
    )
    assert found.p == pytest.approx(scipys.pvalue, rel=0.2)


def test_a_model_compared_with_itself_is_no_different():
    found = difference(estimate(0.25, 0.25, 0.25), estimate(0.25, 0.25, 0.25), PHOTOS)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_models_interval_has_seeds_and_photos():
    found = interval(estimate(0.1, 0.2, 0.3, spread=0.1), PHOTOS)
    total = 0.01 / 3 + 0.1**2
    assert found.value == pytest.approx(0.2)
    df = total**2 / ((0.01 / 3) ** 2 / 2 + 0.1**4 / 100)
    assert found.df == pytest.approx(df)


def test_holms_correction_by_hand():
    # 0.01 * 3; 0.03 * 2; 0.04 * 1, raised to the one before it
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_comparison_without_a_p_value_still_counts_as_one():
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]


def test_better_worse_and_not_distinguishable():
    best = estimate(0.30, 0.31, 0.29, spread=0.01)
    found = rule(
        best,
        {
            "far": estimate(0.50, 0.51, 0.49),
            "near": estimate(0.31, 0.30, 0.32),
            "ahead": estimate(0.10, 0.11, 0.09),
        },
        PHOTOS,
        candidates=1,
    )
    assert [ruling.verdict for ruling in found.values()] == [
        "better",
        "not distinguishable",
        "worse",
    ]


@pytest.mark.parametrize(("ours", "theirs"), [(2, 5), (5, 2), (1, 1)])
def test_under_three_seeds_there_is_no_verdict_and_no_interval(ours, theirs):
    best, baseline = (estimate(*np.linspace(0.1, 0.11, seeds)) for seeds in (ours, theirs))
    found = rule(best, {"cnn": baseline}, PHOTOS, candidates=1)["cnn"]
    assert found.verdict == "too few seeds"
    assert (found.nll.low, found.nll.high, found.p_adjusted) == (None, None, None)


def test_the_best_of_many_candidates_must_win_by_more():
    best, baseline = estimate(0.1, 0.2, 0.3, spread=0.01), estimate(0.4, 0.5, 0.6)
    p = difference(best, baseline, PHOTOS).p
    adjusted = [
        rule(best, {"cnn": baseline}, PHOTOS, candidates)["cnn"].p_adjusted
        for candidates in (1, 2, 3, 10)
    ]
    assert adjusted == pytest.approx([p, p, p * 3 / 2, p * 10 / 2])
    # where it is behind, its choice helped no one
    behind = rule(baseline, {"cnn": best}, PHOTOS, candidates=10)["cnn"].p_adjusted
    assert behind == pytest.approx(p)


def test_the_best_candidate_has_the_lowest_validation_nll_over_its_seeds():
    val, _ = simulated(np.random.default_rng(2), seeds=3, seed_effect=1)
    ours = finalists(3)
    losses = {
        f.model: np.mean(
            [
                log_loss(val.labels, 1 / (1 + np.exp(of[:, 0].astype(float) - of[:, 1])))
                for of in val.logits[f.model]
            ]
        )
        for f in ours
    }
    lowest = min((f for f in ours if f.role == "candidate"), key=lambda f: losses[f.model])
    assert best_candidate(val, ours) == lowest
    assert face_losses(val, lowest.model).mean() == pytest.approx(losses[lowest.model])


def test_a_better_baseline_or_diagnostic_is_not_the_best_candidate():
    val, _ = simulated(np.random.default_rng(3), seeds=3, seed_effect=0)
    ours = finalists(3)
    only = [*ours[:5], finalist(ours[5].model, "diagnostic", 5, 0, 1, 2)]
    for better in (ours[0], only[5]):
        val.logits[better.model] *= 3
    assert best_candidate(val, only).model in ("slot 0", "slot 1")
    assert best_candidate(val, ours[:3]) is None


# 0.98 stands for 0.975 to 0.985
REPRODUCED = {
    (0.976, 0.984): "reproduced",
    (0.975, 0.985): "reproduced",  # to the borders themselves
    (0.974, 0.984): "inconclusive",
    (0.976, 0.986): "inconclusive",
    (0.90, 0.999): "inconclusive",
    (0.985, 0.99): "inconclusive",  # touches
    (0.9851, 0.99): "not reproduced",
    (0.95, 0.9749): "not reproduced",
    (None, None): "inconclusive",
}


@pytest.mark.parametrize("bounds", REPRODUCED)
def test_a_printed_figure_stands_for_all_that_would_be_printed_so(bounds):
    assert reproduction(0.98, *bounds) == REPRODUCED[bounds]


def test_the_nll_of_each_seed_and_of_each_resample_of_photos():
    _, test = simulated(np.random.default_rng(4), seeds=3, seed_effect=1)
    draws = draw_photos(test.photos, test.labels, resamples=5)
    found = nll_estimate(test, "slot 0", draws)
    losses = face_losses(test, "slot 0")
    assert found.by_seed == pytest.approx(losses.mean(axis=1))
    copied = np.repeat(np.arange(len(test.labels)), draws[3][test.photos])
    assert found.resampled[3] == pytest.approx(losses[:, copied].mean())


@pytest.mark.parametrize("seed_effect", [0.0, 2.0])
def test_without_a_difference_hardly_any_study_ends_in_a_verdict(seed_effect):
    # scripts/bench.py nulls: the same 1,000 times each, and with trained heads
    studies, rng = 100, np.random.default_rng(5)
    found = [ruled(*simulated(rng, 3, seed_effect), resamples=500) for _ in range(studies)]
    most = binom.ppf(0.999, studies, 0.05)
    assert sum(any(outcome.better) for outcome in found) <= most
    assert sum(any(outcome.worse) for outcome in found) <= most


def test_a_real_difference_is_found():
    val, test = simulated(np.random.default_rng(6), seeds=3, seed_effect=0.5)
    for split in (val, test):
        split.logits["slot 1"][:, :, 1] += 2 * split.labels - 1  # a larger margin on every face
    assert ruled(val, test).better == (True, True, True)
