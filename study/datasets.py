"""The faces a run was given, a data set for each split, as MLflow's UI names them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from deepfake.config import FAKE
from deepfake.data import Prepared

CONTEXTS = {"train": "training", "val": "validation"}  # MLflow's words; of all others: testing


@dataclass(frozen=True)
class Dataset:
    """The faces of one split."""

    name: str
    digest: str  # of the splits
    context: str  # training | validation | testing
    work_dir: str  # where its crops are
    real: int
    fake: int


def dataset(prepared: Prepared, split: str, faces: pd.DataFrame) -> Dataset:
    """faces: the rows of faces.csv in that split."""
    fake = int((faces["category_id"] == FAKE).sum())
    return Dataset(
        name=f"{sources(faces)}/{split}",
        digest=prepared.splits_sha256[:8],
        context=CONTEXTS.get(split, "testing"),
        work_dir=str(prepared.work_dir),
        real=len(faces) - fake,
        fake=fake,
    )


def known(said: Mapping[str, Any]) -> Dataset:
    """What a journal says of one; a later release may say more than this one knows."""
    return Dataset(**{field.name: said[field.name] for field in fields(Dataset)})


def sources(faces: pd.DataFrame) -> str:
    """The JSONs that faces come from."""
    found: Iterable[str] = faces["source"].unique()
    return ", ".join(sorted(found))
