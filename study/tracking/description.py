"""What a study's parent run says of itself in the MLflow UI, in Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study.config import OBJECTIVES, StudyConfig
from study.slots import SlotRecord, Slots, best_of
from study.templates import markdown

MOST_CHARACTERS = 8000  # of a tag in MLflow


def describe(slots: Slots) -> str:
    """The best trial and the baselines; once test was opened, their figures and the verdicts."""
    if slots.config.kind != "search":
        return _of_reruns(slots.config)
    evaluation = slots.attributes().get("evaluation") or {}
    found = _rendered(slots.config, slots.records(), evaluation.get("analysis"))
    return found if len(found) <= MOST_CHARACTERS else f"{found[: MOST_CHARACTERS - 4]}\n..."


def _of_reruns(config: StudyConfig) -> str:
    if config.kind == "final":
        return (
            "Finalists and baselines, trained again by `evaluate --seeds`; tag `search_slot` "
            f"names the slot of study {config.search_name}, whose run has the figures and the "
            "verdicts."
        )
    return "A baseline on data split anew, trained by `audit --leak` to price a leak."


def _rendered(
    config: StudyConfig, records: Sequence[SlotRecord], analysis: Mapping[str, Any] | None
) -> str:
    best = best_of(records)
    states = Counter[str](record.state for record in records)
    return markdown(
        Path(__file__).with_name("description.md.j2"),
        {
            "records": records,
            "finished": sum(record.finished for record in records),
            "states": states,
            "best": best,
            "objective": OBJECTIVES[config.study.objective],
            "shown": [r for r in records if r.baseline or r is best],
            "analysis": analysis,
            "printed": {
                b.name: b.published.accuracy
                for b in config.baselines.baselines
                if b.published is not None
            },
            "figure": _figure,
            "loss": _loss,
        },
    )


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
