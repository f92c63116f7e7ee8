"""What a leak costs, in data: the same faces split by photo and by face, test left out."""

import json
from pathlib import Path
from typing import Literal

import pandas as pd

from deepfake.config import FAKE, REAL, SEEN, DataConfig
from deepfake.data import PHOTO, read_split
from deepfake.errors import DataError, one_line
from deepfake.files import write_whole

Arm = Literal["photo", "face"]


def arm_of(data: DataConfig, arm: Arm) -> DataConfig:
    """data as the arm splits it: its JSONs are those of write_annotations.

    data: prepared.
    """
    folder = leak_dir(data)
    return data.model_copy(
        update={
            "splits": "drawn",  # whatever the study's are
            "annotations": tuple(folder / f"{source}.json" for source in _by_source(data)),
            "work_dir": folder / arm,
            "group_by": arm,
        }
    )


def write_annotations(data: DataConfig) -> None:
    """An OpenForensics JSON for each source, with its faces of train and val.

    data: prepared. The study's test split is closed to whatever is measured here: each arm cuts
    its own from these faces. Raises DataError if they can't be written.
    """
    folder = leak_dir(data)
    try:
        folder.mkdir(exist_ok=True)
        for source, faces in _by_source(data).items():
            write_whole(folder / f"{source}.json", json.dumps(_document(faces)).encode())
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {one_line(error, path=False)}; mend that, or set"
            " data.work_dir to another place"
        ) from None


def _by_source(data: DataConfig) -> dict[str, pd.DataFrame]:
    seen = pd.concat([read_split(data.work_dir, split) for split in SEEN], ignore_index=True)
    return {str(source): faces for source, faces in seen.groupby("source")}


def _document(faces: pd.DataFrame) -> dict[str, object]:
    photos = faces.drop_duplicates(list(PHOTO)).sort_values("image_id")
    return {
        "categories": [{"id": REAL, "name": "Real"}, {"id": FAKE, "name": "Fake"}],
        "images": [
            {"id": number, "file_name": name}
            for number, name in zip(
                *(photos[c].tolist() for c in ("image_id", "file_name")), strict=True
            )
        ],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": label, "bbox": json.loads(bbox)}
            for number, image_id, label, bbox in zip(
                *(faces[c].tolist() for c in ("id_x", "image_id", "category_id", "bbox")),
                strict=True,
            )
        ],
    }


def leak_dir(data: DataConfig) -> Path:
    """Where both arms are: their JSONs, crops and stores."""
    return data.work_dir / "leak"
