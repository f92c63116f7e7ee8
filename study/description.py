"""What a study's parent run says of itself in the MLflow UI, in Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deepfake.baselines import Baselines
from study.config import OBJECTIVES
from study.records import SlotRecord, best_of
from study.slots import Slots

MOST_CHARACTERS = 8000  # of a tag in MLflow


def description(slots: Slots) -> str:
    """The best trial and the baselines; once test was opened, their figures and the verdicts."""
    attributes = slots.attributes()
    evaluation = attributes.get("evaluation") or {}
    found = _rendered(slots.records(), evaluation.get("analysis"), slots.config.baselines)
    return found if len(found) <= MOST_CHARACTERS else f"{found[: MOST_CHARACTERS - 4]}\n..."


def _rendered(
    records: Sequence[SlotRecord], analysis: Mapping[str, Any] | None, baselines: Baselines
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "loss": _loss}
    best = best_of(records)
    states = Counter[str](record.state for record in records)
    return environment.get_template("description.md.j2").render(
        records=records,
        finished=sum(record.finished for record in records),
        states=states,
        best=best,
        objective=OBJECTIVES[records[0].objective],
        shown=[r for r in records if r.baseline or r is best],
        analysis=analysis,
        printed={
            b.name: b.published.accuracy for b in baselines.baselines if b.published is not None
        },
    )


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
