"""Faces table -> splits.csv: drawn, grouped by photo, balanced by label; or as the JSONs say."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.config import FAKE, LABELS, SEEN, SPLITS, DataConfig, Fractions, Split
from deepfake.data.groups import groups_of
from deepfake.data.layouts import COLUMNS
from deepfake.errors import DataError
from deepfake.files import write_whole

FACES_CSV, SPLITS_CSV = "faces.csv", "splits.csv"

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
