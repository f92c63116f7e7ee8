"""Faces table -> splits.csv: drawn, whole pictures together, or official as the JSONs are."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.config import FAKE, LABELS, SEEN, SPLITS, DataConfig, Fractions, Split
from deepfake.data.layouts import COLUMNS, PHOTO
from deepfake.errors import DataError
from deepfake.files import sha256_of, write_whole

FACES_CSV, SPLITS_CSV = "faces.csv", "splits.csv"

_BLOCK = 4096  # bytes of a photo
_MAX_STRATA = 100
_MIN_DRAWS, _MAX_DRAWS = 20, 200  # more than the first only until no split lacks a label
_NUMBERS = {"id_x": "int64", "image_id": "int64", "category_id": "int64"}

_Ints = NDArray[np.int64]


class SplitClosed(PermissionError):
    """A test set was asked for without an Opening."""


@dataclass(frozen=True)
class Opening:
    """Leave to read the test sets; only study/evaluation makes one, for a frozen list."""

    finalists: tuple[str, ...]
    sha256: str  # of the list


def split_faces(
    faces: pd.DataFrame, data: DataConfig, pictures: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Columns cutted_name and split, sorted by cutted_name.

    pictures: of each file_name, where photos may be one picture; a drawn split takes them whole.
    Raises DataError where a split would stay empty or hold one label only.
    """
    if data.splits == "official":
        return official_splits(faces, data.split_of_source)
    return assign_splits(faces, data.fractions, data.group_by, data.seed, pictures)


def official_splits(faces: pd.DataFrame, split_of_source: Mapping[str, Split]) -> pd.DataFrame:
    """Each face in the split of its JSON."""
    names = faces["source"].map(split_of_source).to_numpy(str)
    labels = faces["category_id"].to_numpy(np.int64)

    def refused(split: Split, word: str) -> str:
        return (
            f"data.annotations.{split}: its JSONs hold no {word} face that can be used; figures"
            " need both labels (dropped.csv names faces without a crop)"
        )

    _check_labels(names, labels, ordered(split_of_source.values()), refused)
    return _table(faces, names)


def ordered(names: Iterable[Split]) -> tuple[Split, ...]:
    """train, val, test and then further test sets by their names."""
    return (*SPLITS, *sorted(set(names) - set(SPLITS)))


def assign_splits(
    faces: pd.DataFrame,
    fractions: Fractions,
    group_by: Literal["photo", "face"],
    seed: int,
    pictures: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Columns cutted_name and split, sorted by cutted_name; the same seed gives the same rows.

    Fractions are shares of the photos (or faces). Of several draws by scikit-learn the one whose
    real and fake faces come closest to the fractions is taken.
    Raises DataError where a split would stay empty or hold one label only.
    """
    labels = faces["category_id"].to_numpy(np.int64)
    groups = groups_of(faces, pictures, group_by)
    n_groups = len(np.unique(groups))
    n_val, n_test = (max(1, round(share * n_groups)) for share in (fractions.val, fractions.test))
    sizes = (n_groups - n_val - n_test, n_val, n_test)
    if sizes[0] < 1:
        raise DataError(
            f"data.fractions: {n_groups} {group_by}s with a usable face can't fill train, val and"
            " test; add photos (dropped.csv names those without one)"
        )
    counts = np.stack([np.bincount(groups[labels == k], minlength=n_groups) for k in (0, 1)])
    split_of_group = _best_draw(counts, sizes, fractions, seed)
    names = np.array(SPLITS)[split_of_group[groups]]

    def refused(split: Split, word: str) -> str:
        return (
            f"data.fractions: split {split!r} would hold no {word} face (of"
            f" {np.sum(labels == LABELS.index(word))} in all, split by {group_by}); add photos or"
            f" raise data.fractions.{split}"
        )

    _check_labels(names, labels, SPLITS, refused)
    return _table(faces, names)


def _table(faces: pd.DataFrame, names: NDArray[np.str_]) -> pd.DataFrame:
    table = pd.DataFrame({"cutted_name": faces["cutted_name"].to_numpy(), "split": names})
    return table.sort_values("cutted_name", ignore_index=True)


def _best_draw(
    counts: _Ints, sizes: tuple[int, int, int], fractions: Fractions, seed: int
) -> _Ints:
    """(groups,) index into SPLITS. counts: (2, groups), real and fake faces of each group."""
    wanted = np.outer((fractions.train, fractions.val, fractions.test), counts.sum(axis=1))
    best, best_cost = None, (np.inf, np.inf)
    for number, state in enumerate(np.random.SeedSequence(seed).generate_state(_MAX_DRAWS)):
        drawn = _draw(counts, sizes, int(state))
        got = np.stack([counts[:, drawn == split].sum(axis=1) for split in range(3)])
        cost = (np.sum(got == 0), np.abs(got - wanted).max())  # first, no split lacks a label
        if cost < best_cost:
            best, best_cost = drawn, cost
        if number + 1 >= _MIN_DRAWS and best_cost[0] == 0:
            break
    assert best is not None
    return best


def _draw(counts: _Ints, sizes: tuple[int, int, int], state: int) -> _Ints:
    """One random split of the groups, each stratum spread over the three in proportion.

    A stratum is a block of groups alike in their share of fakes and number of faces, large
    enough for scikit-learn to give some of it to each split.
    """
    n_train, n_val, n_test = sizes
    n_groups = sum(sizes)
    order = np.lexsort((counts.sum(axis=0), counts[FAKE] / counts.sum(axis=0)))
    block = -(-n_groups // min(sizes))  # rounded up
    n_strata = min(_MAX_STRATA, n_groups // block)
    strata = np.empty(n_groups, np.int64)
    strata[order] = np.arange(n_groups) * n_strata // n_groups
    from sklearn.model_selection import train_test_split  # two seconds: to draw, not to read

    rest, test = train_test_split(
        np.arange(n_groups), test_size=n_test, stratify=strata, random_state=state
    )
    _, val = train_test_split(
        rest, test_size=n_val, train_size=n_train, stratify=strata[rest], random_state=state
    )
    split_of_group = np.zeros(n_groups, np.int64)
    split_of_group[val] = SPLITS.index("val")
    split_of_group[test] = SPLITS.index("test")
    return split_of_group


def _check_labels(
    names: NDArray[np.str_],
    labels: _Ints,
    splits: Iterable[Split],
    refused: Callable[[Split, str], str],
) -> None:
    for split in splits:
        for label, word in enumerate(LABELS):
            if not np.any((names == split) & (labels == label)):
                raise DataError(refused(split, word))


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


def read_faces_csv(work_dir: Path) -> pd.DataFrame:
    """Every face of the JSONs, those without a crop too."""
    return _read_csv(work_dir / FACES_CSV, COLUMNS)


def read_splits_csv(work_dir: Path) -> pd.DataFrame:
    """cutted_name and split of every face with a crop, sorted by cutted_name."""
    return _read_csv(work_dir / SPLITS_CSV, ("cutted_name", "split"))


def read_places(work_dir: Path) -> pd.DataFrame:
    """Every face of the JSONs without its label, and its split: "" where it has no crop.

    What a look for leaks may know of a test set; sorted by cutted_name.
    """
    places = _read_csv(work_dir / FACES_CSV, [name for name in COLUMNS if name != "category_id"])
    places = places.merge(read_splits_csv(work_dir), "left", "cutted_name", validate="one_to_one")
    return places.fillna({"split": ""}).sort_values("cutted_name", ignore_index=True)


def read_split(work_dir: Path, split: Split, opening: Opening | None = None) -> pd.DataFrame:
    """The rows of faces.csv in a split, sorted by cutted_name. A test set takes an Opening."""
    if split not in SEEN and opening is None:
        raise SplitClosed(f"split {split!r} is read by study/evaluation alone, for its finalists")
    splits = read_splits_csv(work_dir)
    chosen = splits.loc[splits["split"] == split, ["cutted_name"]]
    rows = chosen.merge(read_faces_csv(work_dir), on="cutted_name", validate="one_to_one")
    return rows[list(COLUMNS)]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, csv_bytes(table))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """The same table gives the same bytes on every machine."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    # a source or photo may be called "NA" or "007": only the numbers are numbers
    types: dict[str, Any] = {name: _NUMBERS.get(name, str) for name in columns}
    table = pd.read_csv(path, dtype=types, keep_default_na=False, usecols=list(columns))
    return table[list(columns)]
