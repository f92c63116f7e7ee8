"""The table of per-face predictions: figures, intervals and verdicts come from it alone."""

import gzip
import json
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.config import FAKE, LABELS, REAL
from deepfake.data import PHOTO
from deepfake.errors import UserError, one_line
from study.slots import ROLES, Role, Training

FACE = (*PHOTO, "cutted_name")
ARM = ("model", "seed")  # one training
LOGITS = ("logit_real", "logit_fake")
COLUMNS = ("split", *FACE, "label", "face_px", "model", "role", "slot", "seed", *LOGITS)

_TEXTS = ("split", "source", "cutted_name", "model", "role")
_INTEGERS = ("image_id", "label", "slot", "seed")
_HOLDS = {"label": f"{REAL} (real) or {FAKE} (fake)", "image_id": "an integer"}
_HOLDS |= {"slot": "an integer from 0", "seed": "an integer from 0"}
_HOLDS |= {"face_px": "a number above 0"} | dict.fromkeys(LOGITS, "a finite number")
_DTYPES = dict.fromkeys(_TEXTS, "category")
_DTYPES |= dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(LOGITS, "float32")
_DTYPES |= {"face_px": "float64"}
_AGAIN = "write the table again with: deepfake-study evaluate CONFIG"


class PredictionsError(UserError):
    """A table of predictions is wrong; the message names the file, the line and the column."""


@dataclass(frozen=True)
class Finalist:
    """One model in the table: its trainings, which differ in their seeds alone."""

    trainings: tuple[Training, ...]  # seeds ascending

    @property
    def model(self) -> str:
        return self.trainings[0].model

    @property
    def role(self) -> Role:
        return self.trainings[0].role

    @property
    def slot(self) -> int:
        return self.trainings[0].slot

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(training.seed for training in self.trainings)


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """One split's faces, and what each training said of them."""

    faces: pd.DataFrame  # FACE, label and face_px; a row a face, sorted by FACE
    logits: dict[str, NDArray[np.float32]]  # by model: (seeds, faces, 2), seeds ascending

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.faces["label"].to_numpy(copy=True)  # torch takes no read-only array

    @cached_property
    def photos(self) -> NDArray[np.int64]:
        """The photo of each face, numbered from 0."""
        return np.asarray(self.faces.groupby(list(PHOTO), observed=True).ngroup(), np.int64)


def prediction_rows(
    faces: pd.DataFrame, logits: NDArray[np.float32], training: Training, split: str
) -> pd.DataFrame:
    """The rows of one training on one split.

    faces: of the faces table, one row for each row of logits (N, 2).
    """
    assert logits.shape == (len(faces), 2)
    assert logits.dtype == np.float32
    rows = faces[list(FACE)].assign(
        split=split,
        label=faces["category_id"],
        face_px=[min(json.loads(bbox)[2:]) for bbox in faces["bbox"]],
        **asdict(training),
        logit_real=logits[:, REAL],
        logit_fake=logits[:, FAKE],
    )
    return rows[list(COLUMNS)]


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """A CSV, compressed if its name ends in .gz; the same table gives the same bytes."""
    _check(predictions, "the predictions")
    with ExitStack() as stack:
        file: BinaryIO | gzip.GzipFile = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":  # its header without name and time: these are in no table
            file = stack.enter_context(gzip.GzipFile("", "wb", 4, file, mtime=0))
        predictions.to_csv(
            file,
            index=False,
            columns=list(COLUMNS),
            float_format="%.9g",  # nine digits tell any two float32 apart
        )


def read_predictions(path: Path) -> pd.DataFrame:
    """What write_predictions wrote, its logits bit for bit.

    Raises PredictionsError if a column is missing, a value is not what its column holds, a face
    is there twice, or a training lacks faces that another has.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        if missing := [column for column in COLUMNS if column not in header]:
            raise PredictionsError(f"{path}: column '{missing[0]}' is missing; {_AGAIN}")
        try:
            predictions = pd.read_csv(path, dtype=_DTYPES, keep_default_na=False)
        except (ValueError, OverflowError):
            raise _first_wrong(path) from None
    except PredictionsError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise PredictionsError(f"{path}: can't be read: {one_line(error, path=False)}") from None
    except ValueError as error:  # not text, empty, or ragged
        raise PredictionsError(f"{path}: not a CSV: {one_line(error)}; {_AGAIN}") from None
    if predictions.empty:
        raise PredictionsError(f"{path}: has no row; {_AGAIN}")
    predictions = predictions[list(COLUMNS)]
    for column in _TEXTS:  # in alphabetical order, so that the rows' order changes no result
        texts = predictions[column].cat
        predictions[column] = texts.set_categories(sorted(texts.categories))
    _check(predictions, str(path))
    return predictions


def finalists_of(predictions: pd.DataFrame) -> list[Finalist]:
    """Baselines, then candidates, then diagnostics, each by slot."""
    trained = predictions[["model", "role", "slot", "seed"]].drop_duplicates()
    found = []
    for _, rows in trained.groupby("model", observed=True):
        of_model = (
            Training(model, role, int(slot), int(seed))
            for model, role, slot, seed in rows.itertuples(index=False)
        )
        found.append(Finalist(tuple(sorted(of_model, key=lambda training: training.seed))))
    return sorted(found, key=lambda f: (ROLES.index(f.role), f.slot, f.model))


def of_split(predictions: pd.DataFrame, split: str) -> SplitPredictions:
    """Raises PredictionsError if the split has no face, one label alone or one photo alone."""
    rows = predictions[predictions["split"] == split]
    if rows.empty:
        known = ", ".join(sorted(map(str, predictions["split"].unique())))
        raise PredictionsError(f"the predictions have no split '{split}'; they have: {known}")
    rows = rows.sort_values([*ARM, *FACE], ignore_index=True)
    trainings = len(rows[list(ARM)].drop_duplicates())
    n = len(rows) // trainings
    faces = rows.loc[: n - 1, [*FACE, "label", "face_px"]]
    labels = set(faces["label"])
    if len(labels) == 1:
        raise PredictionsError(
            f"the predictions' split '{split}' has {LABELS[labels.pop()]} faces alone; figures "
            "need both labels"
        )
    if len(faces[list(PHOTO)].drop_duplicates()) == 1:
        raise PredictionsError(
            f"the predictions' split '{split}' has one photo alone; intervals need several"
        )
    values = rows[list(LOGITS)].to_numpy(np.float32).reshape(trainings, n, 2)
    models = rows["model"].to_numpy()[::n]
    logits = {str(model): values[models == model] for model in dict.fromkeys(models)}
    return SplitPredictions(faces, logits)


def _first_wrong(path: Path) -> PredictionsError:
    """Which value kept the columns from being read as numbers; slower, and only then."""
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in _HOLDS:
        if column in _INTEGERS:
            wrong = ~raw[column].str.fullmatch(r"-?\d{1,18}")
        else:
            wrong = pd.to_numeric(raw[column], errors="coerce").isna()
        if wrong.any():
            return _wrong(raw[column], wrong, str(path))
    raise AssertionError(path)


def _wrong(values: pd.Series, wrong: pd.Series, place: str) -> PredictionsError:
    """For the first wrong value of a column; a file's first row is its line 2."""
    row = int(np.argmax(wrong.to_numpy()))
    return PredictionsError(
        f"{place}: line {row + 2}: {values.name} {str(values.iloc[row])!r} is not "
        f"{_HOLDS[str(values.name)]}; {_AGAIN}"
    )


def _check(predictions: pd.DataFrame, place: str) -> None:
    """Raise PredictionsError if no figure may be computed from this table."""
    for column, right in (
        ("label", predictions["label"].isin((REAL, FAKE))),
        ("slot", predictions["slot"] >= 0),
        ("seed", predictions["seed"] >= 0),
        ("face_px", (predictions["face_px"] > 0) & np.isfinite(predictions["face_px"])),
        *((column, pd.Series(np.isfinite(predictions[column]))) for column in LOGITS),
    ):
        if not right.all():
            raise _wrong(predictions[column], ~right, place)
    roles = predictions["role"].isin(ROLES)
    if not roles.all():
        role = predictions["role"][~roles].iloc[0]
        raise PredictionsError(f"{place}: role {role!r} is none of {', '.join(ROLES)}; {_AGAIN}")
    _check_faces(predictions, place)
    _check_same(predictions, ("split", *FACE), ("label", "face_px"), place)
    _check_same(predictions, ("model",), ("role", "slot"), place)


def _check_faces(predictions: pd.DataFrame, place: str) -> None:
    """Every training has every face of every split, once."""
    training = predictions.groupby(list(ARM), observed=True).ngroup().to_numpy()
    face = predictions.groupby(["split", *FACE], observed=True).ngroup().to_numpy()
    counts = np.zeros((training.max() + 1, face.max() + 1), np.int32)
    np.add.at(counts, (training, face), 1)
    if counts.min() == counts.max() == 1:
        return
    arm, wrong = np.argwhere(counts != 1)[0]
    shown = predictions.iloc[int(np.argmax(face == wrong))]
    row = predictions.iloc[int(np.argmax(training == arm))]
    who = f"{place}: model '{row['model']}' seed {row['seed']}"
    name = f"'{shown['cutted_name']}' of split '{shown['split']}'"
    if counts[arm, wrong] > 1:
        lines = np.flatnonzero((training == arm) & (face == wrong)) + 2
        raise PredictionsError(
            f"{who} has face {name} on lines {lines[0]} and {lines[1]}; {_AGAIN}"
        )
    raise PredictionsError(
        f"{who} lacks {int((counts[arm] == 0).sum())} faces that others have, such as {name}; "
        f"leave that seed out, or {_AGAIN}"
    )


def _check_same(
    predictions: pd.DataFrame, keys: Iterable[str], columns: Iterable[str], place: str
) -> None:
    """Each of columns has one value for each of keys."""
    keys, columns = list(keys), list(columns)
    distinct = predictions[[*keys, *columns]].drop_duplicates()
    twice = distinct.duplicated(keys)
    if not twice.any():
        return
    row = distinct[twice].iloc[0]
    line = int(np.argmax(predictions.index == row.name)) + 2
    others = distinct[(distinct[keys] == row[keys]).all(axis=1)]
    for column in columns:
        if others[column].nunique() > 1:
            values = " and ".join(str(value) for value in others[column].unique()[:2])
            raise PredictionsError(
                f"{place}: line {line}: {keys[-1]} '{row[keys[-1]]}' has {column} "
                f"{values}; {_AGAIN}"
            )
