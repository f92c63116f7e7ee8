"""When a study that runs will be over, from what its slots took so far."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from study.slots import SlotRecord

LEAST = 2  # finished slots that a forecast needs


def seconds_left(records: Sequence[SlotRecord], max_epochs: int) -> float | None:
    """Until the last slot ends; None before two have ended, and where none runs.

    A slot takes the mean of its variant's, or of all where its variant has none, but for the
    epochs that it has; the workers that run now share what is left.
    """
    ended: dict[str, list[float]] = defaultdict(list)
    for record in records:
        # what another attempt began was not all timed
        whole = record.state in ("complete", "pruned") and record.attempt == 0
        if whole and record.seconds is not None and record.params is not None:
            ended[record.params.variant].append(record.seconds)
    all_ended = [seconds for of_variant in ended.values() for seconds in of_variant]
    workers = sum(record.state == "running" for record in records)
    if len(all_ended) < LEAST or not workers:
        return None
    left = []
    for record in records:
        if not record.finished:
            variant = record.params.variant if record.params else ""
            share = 1 - min(len(record.losses), max_epochs) / max_epochs
            left.append(share * fmean(ended.get(variant, all_ended)))
    return max(*left, sum(left) / workers)


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
