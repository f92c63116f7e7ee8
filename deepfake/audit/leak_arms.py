"""The faces that a leak is priced on, as JSONs to be split anew: test is left out."""

import json
from pathlib import Path

import pandas as pd

from deepfake.config import FAKE, REAL, SEEN, DataConfig
from deepfake.data import PHOTO, read_split
from deepfake.errors import DataError, one_line
from deepfake.files import write_whole


def write_annotations(data: DataConfig, folder: Path) -> None:
    """An OpenForensics JSON for each source in folder, with its faces of train and val.

    data: prepared. The study's test split is closed to whatever is measured on these faces: who
    splits them cuts a test split of their own. Raises DataError if they can't be written.
    """
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
