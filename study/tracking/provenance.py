"""Where a run came from: the data sets and the code."""

import getpass
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake.config import FAKE

if TYPE_CHECKING:  # nothing heavy: who reads a spool reads this
    import pandas as pd

    from deepfake.data import Prepared


def source_tags() -> dict[str, str]:
    """Tags of a run; MLflow's UI shows those that it names itself."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.name": "deepfake-study"}
    if commit := git_commit():
        tags |= {"mlflow.source.git.commit": commit, "git_commit": commit}
    return tags


def git_commit() -> str | None:
    """The commit this code is at, with -dirty behind it if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or installed without its history
        return None
    return found.stdout.strip()


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


def dataset(prepared: "Prepared", split: str, faces: "pd.DataFrame") -> Dataset:
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


def sources(faces: "pd.DataFrame") -> str:
    """The JSONs that faces come from."""
    found: Iterable[str] = faces["source"].unique()
    return ", ".join(sorted(found))
