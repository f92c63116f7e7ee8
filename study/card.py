"""The model card of an exported model, in Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepfake.config import FAKE, LABELS
from deepfake.export import ModelInfo
from study.page import markdown

ROWS = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "precision_1": "precision (fake)",
    "recall_1": "recall (fake)",
    "f1_1": "F1 (fake)",
    "precision_0": "precision (real)",
    "recall_0": "recall (real)",
    "f1_0": "F1 (real)",
}


@dataclass(frozen=True)
class Measured:
    """What was measured of the model."""

    columns: Mapping[str, Any]  # title -> SplitFigures
    nll_before: float  # on validation, before and after the temperature
    nll_after: float
    opening: Mapping[str, Any] | None  # of the test split, if this model is in its list
    openings: int  # different lists so far


def model_card(
    info: ModelInfo,
    measured: Measured,
    *,
    chosen: str,
    searched: bool,
    parameters: int,
    onnx: bool,
) -> str:
    """chosen: how the slot was found, as part of a sentence. searched: by its objective."""
    faces = info.trained.faces
    train = faces["train"]
    return markdown(
        "card.md.j2",
        {
            **vars(measured),
            "info": info,
            "chosen": chosen,
            "searched": searched,
            "parameters": parameters,
            "onnx": onnx,
            "rows": ROWS,
            "n_faces": sum(sum(of.values()) for of in faces.values()),
            "prior": train[LABELS[FAKE]] / sum(train.values()),
        },
    )
