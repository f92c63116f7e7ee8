"""What finalists score on test faces under corruptions: a row for each, as a table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from deepfake.config import VariantName
from deepfake.data import Faces
from deepfake.metrics import intervals, measure
from deepfake.transforms import KINDS, SUITE, under
from study.evaluation.finalists import Contender
from study.evaluation.results import Row
from study.slots import Training

CLEAN = "clean"
FIGURES = ("nll", "accuracy", "auc")
COLUMNS = (
    *("model", "role", "slot", "seed", "variant", "corruption", "level", "faces"),
    *(f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")),
)


def first_seeds(contenders: Sequence[Contender]) -> list[Contender]:
    """One training of each model, of its lowest seed: what is measured under corruptions."""
    first: dict[str, Contender] = {}
    for contender in sorted(contenders, key=lambda contender: contender.training.seed):
        first.setdefault(contender.training.model, contender)
    return list(first.values())


def rows_under_corruptions(
    training: Training,
    variant: VariantName,
    faces: Faces,
    clean: Tensor,
    logits_of: Callable[[Faces], Tensor],
    draws: NDArray[np.uint16],
) -> list[Row]:
    """The rows of one training: clean, then each corruption of the suite.

    clean: its logits (N, 2) for the faces as they are. logits_of: the same of other faces. draws:
    of draw_photos; intervals are 95 %.
    """
    named = {**asdict(training), "variant": variant}
    rows: list[Row] = [
        named
        | {"corruption": CLEAN, "level": None, "faces": len(faces)}
        | _figures(clean, faces, draws)
    ]
    for corruption in SUITE.values():
        what = {"corruption": corruption.kind, "level": corruption.value, "faces": len(faces)}
        rows.append(named | what | _figures(logits_of(under(faces, corruption)), faces, draws))
    return rows


def _figures(logits: Tensor, faces: Faces, draws: NDArray[np.uint16]) -> dict[str, float]:
    figures = measure(logits, faces.labels, FIGURES)
    found: dict[str, float] = {}
    for name, span in intervals(logits, faces.labels, faces.photos, figures, draws).items():
        found |= {name: figures[name], f"{name}_low": span.low, f"{name}_high": span.high}
    return found


def write_corruptions(rows: Sequence[Row], path: Path) -> None:
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(path, index=False)


def kinds(rows: Sequence[Row]) -> list[str]:
    """Of corruption, in the suite's order."""
    return [kind for kind in dict.fromkeys(row["corruption"] for row in rows) if kind != CLEAN]


def level_name(kind: str) -> str:
    """What a kind's level is, as an axis names it; the kind where its suite is no longer there."""
    return KINDS[kind].level if kind in KINDS else kind


def steps(rows: Sequence[Row], model: str, kind: str) -> dict[str, Row]:
    """The rows of a model by level, from left to right; clean is first, or where its level is."""
    of_model = [row for row in rows if row["model"] == model]
    found = [row for row in of_model if row["corruption"] == kind]
    neutral = KINDS[kind].neutral if kind in KINDS else None  # of an earlier suite, maybe
    at = 0 if neutral is None else sum(row["level"] < neutral for row in found)
    found[at:at] = [row for row in of_model if row["corruption"] == CLEAN]
    return {CLEAN if row["level"] is None else f"{row['level']:g}": row for row in found}
