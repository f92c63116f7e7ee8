"""Which photos are one picture, whatever they are called: a split takes them together."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.config import SEEN
from deepfake.data.layouts import PHOTO
from deepfake.files import sha256_of

_BLOCK = 4096  # bytes


def pictures_of(photos: Mapping[str, Path | str]) -> dict[str, str]:
    """For each file_name the first of those whose photo is byte for byte the same.

    photos: each file_name's photo, or the reason it has none.
    """
    names_of: dict[Path, list[str]] = defaultdict(list)
    for name, photo in photos.items():
        if isinstance(photo, Path):
            names_of[photo].append(name)
    first = {name: name for name in photos}
    for paths in _same_bytes(names_of):
        names = [name for path in paths for name in names_of[path]]
        first |= dict.fromkeys(names, min(names))
    return first


def _same_bytes(paths: Iterable[Path]) -> list[list[Path]]:
    """Whole files are read only where size, beginning, middle and end are those of another."""
    groups = [list(paths)]
    for key in (_size, _some_blocks, sha256_of):
        groups = [part for group in groups for part in _parted(group, key)]
    return groups


def _parted(paths: list[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    if len(paths) == 1:
        return [paths]
    parts: dict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except OSError:  # to be said when it is cut
            parts[path].append(path)
    return list(parts.values())


def _size(photo: Path) -> int:
    return photo.stat().st_size


def _some_blocks(photo: Path) -> bytes:
    size, digest = photo.stat().st_size, hashlib.sha256()
    with photo.open("rb") as file:
        for place in (0, size // 2, max(0, size - _BLOCK)):
            file.seek(place)
            digest.update(file.read(_BLOCK))
    return digest.digest()


def groups_of(
    faces: pd.DataFrame, pictures: Mapping[str, str] | None, group_by: Literal["photo", "face"]
) -> NDArray[np.int64]:
    """(faces,) numbers from 0: faces of one number go to one split.

    pictures: as pictures_of gives them; None: each photo is a picture of its own.
    """
    if group_by == "face":
        return np.arange(len(faces), dtype=np.int64)
    photos = faces.groupby(list(PHOTO)).ngroup()
    if pictures is not None:
        # the number of its first photo: where each photo is a picture of its own, nothing moves
        photos = photos.groupby(faces["file_name"].map(pictures).to_numpy()).transform("min")
    return np.unique(photos, return_inverse=True)[1].astype(np.int64)


def count_repeated(faces: pd.DataFrame, pictures: Mapping[str, str]) -> int:
    """Photos of the faces that are the picture of another photo."""
    photos = faces.drop_duplicates(list(PHOTO))
    return len(photos) - photos["file_name"].map(pictures).nunique()


def torn_pictures(
    faces: pd.DataFrame, splits: pd.DataFrame, pictures: Mapping[str, str]
) -> Iterator[str]:
    """A warning where a picture is in two splits: those that are drawn by face, or official.

    Two test sets may share pictures.
    """
    places = faces[["cutted_name", "file_name"]].merge(splits, on="cutted_name")
    places["picture"] = places["file_name"].map(pictures)
    trained_on = places["split"].where(places["split"].isin(SEEN), "test")
    n_splits = trained_on.groupby(places["picture"]).nunique()
    if (torn := n_splits[n_splits > 1]).empty:
        return
    first = places[places["picture"] == torn.index[0]].drop_duplicates("split").iloc[:2]
    named = " and ".join(f"{row.file_name} ({row.split})" for row in first.itertuples())
    yield (
        f"pictures in two splits: {len(torn)}, the first {named}; see deepfake-study audit CONFIG"
    )
