"""What prepare left, held against the photos as they are now: its crops, and what was missing."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from deepfake.config import DataConfig
from deepfake.data.crops import cut_faces
from deepfake.data.layouts import COLUMNS, DROPPED_COLUMNS
from deepfake.data.layouts.openforensics import read_annotations
from deepfake.data.photos.names import find_photos
from deepfake.data.prepare import CROPS, DROPPED_CSV, Prepared
from deepfake.data.splits import FACES_CSV, csv_bytes, read_splits_csv

RECUT = 64  # faces, spread over all, that are cut anew
_SAME = 2.0  # levels of 255, on the mean: decoders differ by less, another picture by far more


@dataclass(frozen=True)
class Recheck:
    """What is not as it was."""

    came: list[str]  # file_names of faces without a crop, whose photo is there now
    recut: int  # faces that were cut anew
    wrong: list[str]  # lines that name a crop and what is wrong with it
    gone: list[str]  # file_names of those faces whose photo is no longer there
    otherwise: bool  # whether the JSONs are read to another faces.csv now


def recheck_crops(data: DataConfig, prepared: Prepared) -> Recheck:
    """Cut a sample of the faces again, and look for the photos that were missing.

    Writes nothing to work_dir. Raises DataError if the JSONs are refused now or no photo is found.
    """
    annotations = read_annotations(data.jsons, data.box)
    photos = find_photos(annotations, data).photos
    faces = annotations.faces.drop(columns="category_id")  # of test faces, too, no label is read
    cut = read_splits_csv(prepared.work_dir)["cutted_name"].to_numpy()
    chosen = cut[np.unique(np.linspace(0, len(cut) - 1, RECUT).astype(int))]
    sample = faces[faces["cutted_name"].isin(chosen)]
    is_there = _have_photos(sample, photos)
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder)
        dropped = cut_faces(sample[is_there], photos, data, again, processes=1).dropped
        refused = dict(zip(dropped["cutted_name"], dropped["reason"], strict=True))
        names = sample.loc[is_there, ["cutted_name", "file_name"]]
        wrong = [
            f"{name} of {photo}: {problem}"
            for name, photo in names.itertuples(index=False)
            if (problem := refused.get(name) or _differs(prepared.work_dir / CROPS / name, again))
        ]
    return Recheck(
        came=_came(data, faces, photos),
        recut=int(is_there.sum()),
        wrong=wrong,
        gone=sample.loc[~is_there, "file_name"].unique().tolist(),
        otherwise=csv_bytes(annotations.faces[list(COLUMNS)])
        != (prepared.work_dir / FACES_CSV).read_bytes(),
    )


def photos_that_came(data: DataConfig) -> list[str]:
    """file_names of faces that prepare left without a crop, whose photo can be cut now.

    data: prepared. Only if a photo was missing or unreadable are the JSONs read again.
    """
    if _missing(data).empty:
        return []
    annotations = read_annotations(data.jsons, data.box)
    return _came(data, annotations.faces, find_photos(annotations, data).photos)


def _missing(data: DataConfig) -> pd.DataFrame:
    """Of dropped.csv, the faces whose photo was at fault."""
    dropped = pd.read_csv(data.work_dir / DROPPED_CSV, dtype=str, keep_default_na=False)
    return dropped.loc[dropped["reason"].str.startswith("photo "), list(DROPPED_COLUMNS)]


def _came(data: DataConfig, faces: pd.DataFrame, photos: dict[str, Path | str]) -> list[str]:
    missing = _missing(data)
    reason_of = dict(zip(missing["cutted_name"], missing["reason"], strict=True))
    lost = faces[faces["cutted_name"].isin(reason_of)]
    there = lost[_have_photos(lost, photos)]
    with tempfile.TemporaryDirectory() as folder:  # a photo may be there, and still unreadable
        dropped = cut_faces(there, photos, data, Path(folder)).dropped
    still = dict(zip(dropped["cutted_name"], dropped["reason"], strict=True))
    came = [still.get(name, "") != reason_of[name] for name in there["cutted_name"]]
    return list(there.loc[came, "file_name"].unique())


def _have_photos(faces: pd.DataFrame, photos: dict[str, Path | str]) -> NDArray[np.bool_]:
    return np.array([isinstance(photos[name], Path) for name in faces["file_name"]], np.bool_)


def _differs(crop: Path, again: Path) -> str | None:
    if not crop.is_file():
        return None  # said of all crops
    with Image.open(crop) as left, Image.open(again / crop.name) as right:
        if left.size != right.size:
            return f"its crop is {_px(left)}, cut again it is {_px(right)}"
        pictures = [np.asarray(picture.convert("RGB"), np.float32) for picture in (left, right)]
    if np.abs(pictures[0] - pictures[1]).mean() > _SAME:
        return "its crop is another picture than the photo's face"
    return None


def _px(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height} px"
