"""Is the best candidate better than a baseline, and are the report's figures reproduced?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from deepfake.config import FAKE
from deepfake.metrics import Floats, mean_losses
from study.evaluation.predictions import Finalist, SplitPredictions
from study.evaluation.results import Comparison, Reproduction, Verdict, Welch

MIN_SEEDS = 3  # fewer say too little of how far seeds lie apart
LEVEL = 0.05
ROUNDING = 0.005  # the report prints two decimals: p stands for p - 0.005 to p + 0.005


@dataclass(frozen=True, eq=False)
class Estimate:
    """One figure of one model on one split."""

    by_seed: Floats  # (seeds,)
    resampled: Floats  # (resamples,): the mean over seeds on each resample, one list for all

    @property
    def value(self) -> float:
        return float(self.by_seed.mean())


@dataclass(frozen=True)
class Ruling:
    """The best candidate's NLL minus a baseline's, and what is to be said of it."""

    verdict: Verdict
    nll: Welch
    p_adjusted: float | None


def best_candidate(val: SplitPredictions, finalists: Sequence[Finalist]) -> Finalist | None:
    """The candidate of the lowest validation NLL, the mean over its seeds; of equals the first."""
    candidates = [finalist for finalist in finalists if finalist.role == "candidate"]
    return min(candidates, key=lambda f: face_losses(val, f.model).mean(), default=None)


def face_losses(split: SplitPredictions, model: str) -> Floats:
    """(seeds, faces): -log softmax(logits)[label]."""
    scores = split.logits[model].astype(np.float64) @ (-1, 1)
    return np.logaddexp(0, np.where(split.labels == FAKE, -scores, scores))


def nll_estimate(split: SplitPredictions, model: str, draws: NDArray[np.uint16]) -> Estimate:
    """Of the NLL alone; draws: of draw_photos for this split."""
    losses = face_losses(split, model)
    return Estimate(losses.mean(axis=1), mean_losses(losses.mean(axis=0), split.photos, draws))


def difference(ours: Estimate, theirs: Estimate, photos: int) -> Welch:
    """ours - theirs by Welch's t, with three sources of variance.

    Each arm's unbiased variance between seeds / its seeds, with seeds - 1 degrees of freedom;
    and the bootstrap variance of the difference, both arms on the same photos, with photos - 1:
    it enters Satterthwaite's formula as one more group's would. What seeds and photos do
    together is in both, so that the interval is rather too wide.
    """
    value = ours.value - theirs.value
    return _welch(value, (ours, theirs), ours.resampled - theirs.resampled, photos)


def interval(ours: Estimate, photos: int) -> Welch:
    """One model's value, its variance between seeds and over photos as in difference."""
    return _welch(ours.value, (ours,), ours.resampled, photos)


def rule(
    best: Estimate, baselines: Mapping[str, Estimate], photos: int, candidates: int
) -> dict[str, Ruling]:
    """The verdict on each baseline, false in at most 5 % of studies without a difference.

    Holm's correction over the baselines. The best of many candidates was chosen by seeds that
    count again here, for a lucky seed is lucky on both splits: where it seems better, the
    one-sided p counts once for each candidate, if these are more than the two sides.
    """
    differences = {
        name: difference(best, baseline, photos) for name, baseline in baselines.items()
    }
    p_values = [_p_of_chosen(found, candidates) for found in differences.values()]
    found = {}
    for (name, nll), adjusted in zip(differences.items(), holm(p_values), strict=True):
        verdict: Verdict = "not distinguishable"
        if adjusted is None:
            verdict = "too few seeds"
        elif adjusted < LEVEL:
            verdict = "better" if nll.value < 0 else "worse"
        found[name] = Ruling(verdict, nll, adjusted)
    return found


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the order given; one that is None counts as a comparison."""
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[at] = largest
    return adjusted


def reproduction(printed: float, low: float | None, high: float | None) -> Reproduction:
    """What our interval says of a figure printed with two decimals.

    reproduced: all of the interval would be printed so; not reproduced: none of it would;
    inconclusive: a part, or there is no interval.
    """
    if low is None or high is None:
        return "inconclusive"
    slack = 1e-9  # 0.98 - 0.005 is not 0.975
    first, last = printed - ROUNDING - slack, printed + ROUNDING + slack
    if first <= low and high <= last:
        return "reproduced"
    return "not reproduced" if high < first or last < low else "inconclusive"


def _p_of_chosen(nll: Welch, candidates: int) -> float | None:
    if nll.p is None:
        return None
    sides = max(2, candidates) if nll.value < 0 else 2
    return min(1.0, nll.p / 2 * sides)


def _welch(value: float, arms: Sequence[Estimate], resampled: Floats, photos: int) -> Welch:
    if min(len(arm.by_seed) for arm in arms) < MIN_SEEDS:
        return Welch(value, None, None, None, None)
    variances = [arm.by_seed.var(ddof=1) / len(arm.by_seed) for arm in arms]
    degrees = [len(arm.by_seed) - 1 for arm in arms]
    terms = np.array([*variances, resampled.var(ddof=1)])
    total = terms.sum()
    if total == 0:  # nothing varies, as between a model and itself
        return Welch(value, value, value, None, float(value == 0))
    df = float(total**2 / (terms**2 / [*degrees, photos - 1]).sum())
    half = float(student_t.ppf(1 - LEVEL / 2, df) * np.sqrt(total))
    p = float(2 * student_t.sf(abs(value) / np.sqrt(total), df))
    return Welch(value, value - half, value + half, df, p)


_TOLD = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
}
SAME_PRIOR = 0.01  # two shares of fakes this near each other move no second decimal


def prior_sentence(split: str, val_fake_share: float, fake_share: float) -> str:
    """What the share of fakes in a split, beside validation's, means for its figures."""
    said = f"{100 * fake_share:.1f} % of the faces in {split} are fake and "
    said += f"{100 * val_fake_share:.1f} % in validation: "
    if abs(fake_share - val_fake_share) < SAME_PRIOR:
        return said + "too small a difference to matter"
    said += "accuracy, precision, F1, average precision, NLL, Brier and ECE depend on this share, "
    said += "and the temperature was fitted to that of validation; recall, balanced accuracy, AUC "
    return said + "and EER do not depend on it, and neither does the threshold"


def headline(comparisons: Sequence[Comparison]) -> str:
    """The verdicts on all baselines in one sentence; the strongest word first."""
    ours = comparisons[0].candidate
    against: dict[str, list[str]] = {}
    for comparison in comparisons:
        against.setdefault(comparison.verdict, []).append(comparison.baseline)
    told = [f"{words} {_listed(against[v])}" for v, words in _TOLD.items() if v in against]
    said = [f"{ours} is {', '.join(told)}"] if told else []
    if "too few seeds" in against:
        whom = "it" if told else ours
        said.append(f"too few seeds to tell {whom} from {_listed(against['too few seeds'])}")
    return f"on the test split: {'; '.join(said)}"


def sentence(comparison: Comparison) -> str:
    """The verdict with its interval, and what it means in errors."""
    ours, theirs, nll = comparison.candidate, comparison.baseline, comparison.nll
    match comparison.verdict:
        case "too few seeds":
            mine, other = comparison.seeds
            said = f"too few seeds to tell {ours} from {theirs} ({mine} and {other}, each needs "
            said += f"{MIN_SEEDS}): NLL {nll.candidate:.4f} and {nll.baseline:.4f}"
        case "not distinguishable":
            said = f"{ours} is not distinguishable from {theirs}: {_nll(comparison)}"
        case "better" | "worse" as word:
            said = f"{ours} is {word} than {theirs}: {_nll(comparison)}"
        case other:
            raise AssertionError(other)
    return f"{said}; {_errors(comparison)}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _nll(comparison: Comparison) -> str:
    nll, p = comparison.nll, comparison.p_adjusted
    value, low, high = nll.difference.value, nll.difference.low, nll.difference.high
    assert p is not None
    assert low is not None
    assert high is not None
    way = "lower" if value < 0 else "higher"
    said = f"NLL {nll.candidate:.4f} against {nll.baseline:.4f}, {way} by "
    said += f"{abs(value):.4f} (95 % interval of the difference {low:+.4f} to "
    said += f"{high:+.4f}; adjusted p {_p_text(p)}"
    if p >= LEVEL and not low <= 0 <= high:
        said += ", for the interval is of this comparison alone"
    return said + ")"


def _p_text(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _errors(comparison: Comparison) -> str:
    rate, reduction = comparison.error_rate, comparison.error_reduction
    said = f"error rate {100 * rate.candidate:.2f} % against {100 * rate.baseline:.2f} %"
    if reduction is None or abs(reduction) < 0.005:
        return said
    return f"{said}, {100 * abs(reduction):.0f} % {'fewer' if reduction > 0 else 'more'} errors"
