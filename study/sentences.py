"""A comparison, or a prior shift, said in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from study.verdict import LEVEL, MIN_SEEDS

_TOLD = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
}
SAME_PRIOR = 0.01  # two shares of fakes this near each other move no second decimal


def prior_sentence(split: str, val_fake_share: float, fake_share: float) -> str:
    """What the share of fakes in a split, beside validation's, means for its figures."""
    said = f"{100 * fake_share:.1f} % of {split}'s faces are fake, of validation's "
    said += f"{100 * val_fake_share:.1f} %: "
    if abs(fake_share - val_fake_share) < SAME_PRIOR:
        return said + "no prior shift to speak of"
    said += "accuracy, precision, F1, average precision, NLL, Brier and ECE move with that share, "
    said += "and the temperature is of validation's; recall, balanced accuracy, AUC and EER do "
    return said + "not, nor does the threshold, chosen by balanced accuracy"


def headline(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts on all baselines in one sentence; the strongest word first."""
    ours = comparisons[0]["candidate"]
    against: dict[str, list[str]] = {}
    for comparison in comparisons:
        against.setdefault(comparison["verdict"], []).append(comparison["baseline"])
    told = [f"{words} {_listed(against[v])}" for v, words in _TOLD.items() if v in against]
    said = [f"{ours} is {', '.join(told)}"] if told else []
    if "too few seeds" in against:
        whom = "it" if told else ours
        said.append(f"too few seeds to tell {whom} from {_listed(against['too few seeds'])}")
    return f"on the test split: {'; '.join(said)}"


def sentence(comparison: Mapping[str, Any]) -> str:
    """The verdict with its interval, and what it means in errors.

    comparison: as analysis has it, without its sentence.
    """
    ours, theirs = comparison["candidate"], comparison["baseline"]
    nll = comparison["nll"]
    match comparison["verdict"]:
        case "too few seeds":
            mine, other = comparison["seeds"]
            said = f"too few seeds to tell {ours} from {theirs} ({mine} and {other}, each needs "
            said += f"{MIN_SEEDS}): NLL {nll['candidate']:.4f} and {nll['baseline']:.4f}"
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


def _nll(comparison: Mapping[str, Any]) -> str:
    nll, p = comparison["nll"], comparison["p_adjusted"]
    found = nll["difference"]
    way = "lower" if found["value"] < 0 else "higher"
    said = f"NLL {nll['candidate']:.4f} against {nll['baseline']:.4f}, {way} by "
    said += f"{abs(found['value']):.4f} (95 % interval of the difference {found['low']:+.4f} to "
    said += f"{found['high']:+.4f}; adjusted p {_p_text(p)}"
    if p >= LEVEL and not found["low"] <= 0 <= found["high"]:
        said += ", for the interval is of this comparison alone"
    return said + ")"


def _p_text(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _errors(comparison: Mapping[str, Any]) -> str:
    rate, reduction = comparison["error_rate"], comparison["error_reduction"]
    said = f"error rate {100 * rate['candidate']:.2f} % against {100 * rate['baseline']:.2f} %"
    if reduction is None or abs(reduction) < 0.005:
        return said
    return f"{said}, {100 * abs(reduction):.0f} % {'fewer' if reduction > 0 else 'more'} errors"
