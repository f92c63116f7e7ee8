"""Leaks between the splits, and shortcuts to the label: what would make a good figure worthless.

Of test sets it reads photos, boxes and names, never a label: probes are scored on val.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.audit.perceptual_hash import NEAR_BITS, nearest
from deepfake.audit.photo_scan import Traces, read_traces
from deepfake.audit.shortcuts import TRAITS, Described, Verdict, probe
from deepfake.config import SEEN, DataConfig, Split
from deepfake.data import (
    PHOTO,
    SIZE,
    Annotations,
    find_photos,
    load_prepared,
    ordered,
    read_annotations,
    read_places,
    read_split,
)
from deepfake.errors import DataError
from deepfake.parallel import Progress

Kind = Literal["id", "pixels", "near"]
SAID = {
    "id": "is the same photo as",
    "pixels": "has the same pixels as",
    "near": "is nearly the same picture as",
}


@dataclass(frozen=True)
class Place:
    """A photo, or a face in it, and the split it is in."""

    file_name: str
    source: str
    image_id: int
    split: Split
    cutted_name: str | None = None  # of the face

    def __str__(self) -> str:
        if self.cutted_name is not None:
            return f"{self.cutted_name} ({self.split})"
        return f"{self.file_name} ({self.split}, {self.source} image {self.image_id})"


@dataclass(frozen=True)
class Pair:
    """Two that are alike and lie in different splits."""

    kind: Kind
    later: Place  # of val or a test set
    earlier: Place
    bits: int  # of 256, between their perceptual hashes

    def __str__(self) -> str:
        apart = f", {self.bits} of 256 bits apart" if self.kind == "near" else ""
        return f"{self.later} {SAID[self.kind]} {self.earlier}{apart}"


@dataclass(frozen=True)
class Audit:
    """What was found. A photo or face of val or a test set is named once, beside its nearest."""

    photos: int  # read
    photos_not_found: int  # of the JSONs' photos with a face: they gave no crop
    leaks: list[Pair]  # photos
    near_faces: list[Pair]
    probes: list[Verdict]


def audit(
    data: DataConfig, processes: int | None = None, progress: Progress | None = None
) -> Audit:
    """Look for leaks and shortcuts in a prepared work_dir.

    Raises NotPrepared, and DataError for a photo that is gone or a JSON of which no photo is
    found. The same data give the same result.
    """
    prepared = load_prepared(data)
    places = read_places(prepared.work_dir)
    annotations = read_annotations(data.jsons, data.box)
    photos, not_found = _match(places, annotations, data)
    sizes = annotations.faces[["cutted_name", *SIZE]]
    places = places.merge(sizes, "left", "cutted_name", validate="one_to_one")
    places = places[places["split"] != ""].reset_index(drop=True)
    traces = read_traces(places, photos, data, processes, progress)
    return Audit(
        photos=len(set(photos.values())),
        photos_not_found=not_found,
        leaks=_photos_in_two_splits(places, traces, progress),
        near_faces=_near_faces(places, traces, progress),
        probes=_probe_all(prepared.work_dir, places, traces),
    )


def _match(
    places: pd.DataFrame, annotations: Annotations, data: DataConfig
) -> tuple[dict[str, Path], int]:
    """The photo of each file_name with a crop, and how many of the others have none."""
    photos_dir, found = data.photos_dir, find_photos(annotations, data).photos
    for source, names in places.groupby("source")["file_name"]:
        if not any(isinstance(found[name], Path) for name in names):
            raise DataError(
                f"{source}.json: none of its {names.nunique()} photos is under {photos_dir}"
                f" ({names.iloc[0]!r} is {found[names.iloc[0]]}); set data.photos_dir to a folder"
                " that holds them, or take it out of data.annotations"
            )
    photos: dict[str, Path] = {}
    cut = places[places["split"] != ""]
    for name, split in zip(cut["file_name"], cut["split"], strict=True):
        photo = found[name]
        if isinstance(photo, str):
            raise DataError(
                f"{photos_dir}: photo {name!r} of {split} is {photo}, though its faces were cut;"
                " put it back: the audit reads every photo"
            )
        photos[name] = photo
    return photos, sum(isinstance(found[name], str) for name in set(places["file_name"]))


def _photos_in_two_splits(
    places: pd.DataFrame, traces: Traces, progress: Progress | None
) -> list[Pair]:
    """For each photo of val and test sets the first reason to call it one of an earlier split."""
    sha256 = places.assign(pixels=traces.pixels_sha256, row=np.arange(len(places)))
    photos = sha256.drop_duplicates([*PHOTO, "split"])  # split by face, one may be in all three
    leaks: list[Pair] = []
    for split, before in _earlier(places):
        later = photos[photos["split"] == split]
        earlier = photos[photos["split"].isin(before)]
        keys: tuple[tuple[Kind, list[str]], ...] = (("id", list(PHOTO)), ("pixels", ["pixels"]))
        for kind, key in keys:
            first = earlier.drop_duplicates(key)[[*key, "row"]]
            both = later.merge(first, on=key, suffixes=("", "_earlier"))
            rows = zip(both["row"], both["row_earlier"], strict=True)
            leaks += [_pair(kind, places, mine, other, 0) for mine, other in rows]
            later = later[~later["row"].isin(both["row"])]
        rows_of = (later["row"].to_numpy(), earlier["row"].to_numpy())
        leaks += _near(places, traces.photos, *rows_of, progress, f"{split} photos")
    return leaks


def _near_faces(places: pd.DataFrame, traces: Traces, progress: Progress | None) -> list[Pair]:
    found: list[Pair] = []
    for split, before in _earlier(places):
        later = np.flatnonzero(places["split"] == split)
        earlier = np.flatnonzero(places["split"].isin(before))
        stage = f"{split} faces"
        found += _near(places, traces.faces, later, earlier, progress, stage, is_face=True)
    return found


def _earlier(places: pd.DataFrame) -> list[tuple[Split, tuple[Split, ...]]]:
    """Each split with those that may share nothing with it.

    Two test sets may share photos: nothing is learned from either, and one may be the other,
    corrupted.
    """
    return [(split, SEEN[:rank]) for rank, split in enumerate(ordered(places["split"])) if rank]


def _near(
    places: pd.DataFrame,
    hashes: NDArray[np.uint8],
    later: NDArray[np.int64],
    earlier: NDArray[np.int64],
    progress: Progress | None,
    stage: str,
    is_face: bool = False,
) -> list[Pair]:
    nearest_row, bits = nearest(hashes[later], hashes[earlier], progress, stage)
    return [
        _pair("near", places, later[i], earlier[nearest_row[i]], int(bits[i]), is_face)
        for i in np.flatnonzero(bits <= NEAR_BITS)
    ]


def _pair(
    kind: Kind, places: pd.DataFrame, later: int, earlier: int, bits: int, is_face: bool = False
) -> Pair:
    return Pair(kind, _place(places, later, is_face), _place(places, earlier, is_face), bits)


def _place(places: pd.DataFrame, row: int, is_face: bool) -> Place:
    of = places.iloc[row]
    return Place(
        file_name=of["file_name"],
        source=of["source"],
        image_id=int(of["image_id"]),
        split=of["split"],
        cutted_name=of["cutted_name"] if is_face else None,
    )


def _probe_all(work_dir: Path, places: pd.DataFrame, traces: Traces) -> list[Verdict]:
    rows = pd.Series(np.arange(len(places)), places["cutted_name"])

    def described(split: Split, trait: str) -> Described:
        table = tables[split]
        return Described(
            traces.numbers[trait][rows.loc[table["cutted_name"]]],
            table["category_id"].to_numpy(np.int64),
            np.asarray(table.groupby(list(PHOTO)).ngroup(), np.int64),
        )

    tables = {split: read_split(work_dir, split) for split in SEEN}
    return [probe(trait, *(described(split, trait) for split in SEEN)) for trait in TRAITS]
