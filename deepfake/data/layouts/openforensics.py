"""OpenForensics JSONs and photos -> the faces table, and the table -> JSONs."""

import itertools
import json
import math
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepfake.config import FAKE, LABELS, REAL, BoxFormat
from deepfake.data.check import Boxes, as_xywh, check_boxes
from deepfake.data.layouts import COLUMNS, DROPPED_COLUMNS, PHOTO, SIZE, Annotations
from deepfake.errors import DataError
from deepfake.files import write_whole

CROWD = ("iscrowd", "is_crowd")  # both spellings are met
_NO_OUTLINE = (math.nan,) * 4
_YES = (1, "1")  # and true

_INTEGER = re.compile(r"-?[0-9]{1,19}")
_INT64 = range(-(2**63), 2**63)
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # no CSV or file system takes these
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")  # absolute, drive, or climbing


def read_faces(annotations: Sequence[Path], box: BoxFormat | None = None) -> pd.DataFrame:
    """One row a face with the columns COLUMNS and SIZE; bbox is JSON text, "[x, y, w, h]".

    Raises DataError naming the JSON, the annotation's id and the value.
    """
    return read_annotations(annotations, box).faces


def read_annotations(annotations: Sequence[Path], box: BoxFormat | None = None) -> Annotations:
    """The faces of the JSONs, whatever order they are given in, and all photos.

    box: as data.box.
    """
    check_sources(annotations)
    parts = [_read_json(path, box) for path in sorted(annotations, key=lambda path: path.stem)]
    faces, left_out = (
        pd.concat(tables, ignore_index=True)
        for tables in zip(*((part.faces, part.left_out) for part in parts), strict=True)
    )
    if faces.empty:
        names = ", ".join(str(path) for path in annotations)
        what = "holds regions of many alone (iscrowd: 1)" if len(left_out) else "is empty"
        raise DataError(f"{names}: 'annotations' {what}: there is no face to learn from")
    mended = sum((Counter(part.mended) for part in parts), Counter[str]())
    warnings = tuple(warning for part in parts for warning in part.warnings)
    file_names = tuple(name for part in parts for name in part.file_names)
    return Annotations(faces, file_names, left_out, mended, warnings)


def read_boxes(path: Path, box: BoxFormat | None = None) -> Annotations:
    """As read_annotations, of boxes that nobody has labelled: category_id is meaningless."""
    return _read_json(path, box, labelled=False)


def check_sources(annotations: Sequence[Path]) -> None:
    """Raise DataError for two JSONs whose faces could not be told apart by name."""
    by_prefix: dict[str, Path] = {}
    for path in annotations:
        twin = by_prefix.setdefault(_file_prefix(path.stem).casefold(), path)
        if twin is not path:
            raise DataError(
                f"{path}: its name gives the same source as {twin}; rename one: faces are told"
                " apart by their JSON's name"
            )


def write_faces(faces: pd.DataFrame, folder: Path) -> None:
    """A JSON of each source's faces in folder, and no other: read_faces gives them back."""
    folder.mkdir(exist_ok=True)
    by_source = {str(source): of_source for source, of_source in faces.groupby("source")}
    for source, of_source in by_source.items():
        photos = of_source.drop_duplicates(list(PHOTO)).sort_values("image_id")
        images = photos[["image_id", "file_name", *SIZE]].rename(columns={"image_id": "id"})
        annotations = of_source[["id_x", "image_id", "category_id"]].rename(columns={"id_x": "id"})
        annotations["bbox"] = of_source["bbox"].map(json.loads)
        write_json(folder / f"{source}.json", _records(images), _records(annotations))
    for path in folder.glob("*.json"):
        if path.stem not in by_source:
            path.unlink()


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Without the sizes that nobody knows."""
    return [
        {str(name): value for name, value in row.items() if not _is_nan(value)}
        for row in table.to_dict("records")
    ]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def write_json(
    path: Path, images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> None:
    """Written whole, with the categories that read_faces asks for."""
    categories = [{"id": REAL, "name": "Real"}, {"id": FAKE, "name": "Fake"}]
    document = {"categories": categories, "images": images, "annotations": annotations}
    write_whole(path, json.dumps(document).encode())


def _read_json(path: Path, box: BoxFormat | None, labelled: bool = True) -> Annotations:
    content = _parse(path)
    _check_source(path)
    name_of = {}
    if labelled:
        name_of = _category_names(path, _columns(path, content, "categories", ("id", "name")))
    images = _columns(path, content, "images", ("id", "file_name"), SIZE)
    keys = ("id", "image_id", *(("category_id",) if labelled else ()), "bbox")
    every = _columns(path, content, "annotations", keys, (*CROWD, "area", "segmentation"))
    mended = Counter[str]()
    images["id"] = _ids(path, "image", "id", images["id"], images["id"], mended)
    for key in ("id", "image_id"):
        every[key] = _ids(path, "annotation", key, every[key], every["id"], mended)
    _check_unique(path, "image", images["id"])
    _check_unique(path, "annotation", every["id"])
    is_crowd = [
        a in _YES or b in _YES for a, b in zip(*(every[key] for key in CROWD), strict=True)
    ]
    faces = _chosen(every, [not crowd for crowd in is_crowd])
    _check_faces(
        path, every, "image_id", set(images["id"]).__contains__, "has no entry in 'images'"
    )
    _check_faces(path, faces, "bbox", _is_box, "is not four finite numbers")
    labels = _labels(path, name_of, faces, mended) if labelled else [REAL] * len(faces["id"])
    _check_file_names(path, images, every)

    table = _table(path, images, faces)
    table["category_id"] = pd.Series(labels, dtype="int64")
    boxes = Boxes(
        faces["bbox"],
        table[list(SIZE)].to_numpy(np.float64),
        np.array(list(map(_length, faces["area"])), np.float64),
        np.array(list(map(_outline, faces["segmentation"])), np.float64).reshape(-1, 4),
    )
    warnings = check_boxes(path, boxes, faces["id"], box) if len(table) else []
    xywh = as_xywh(path, boxes, faces["id"], box)
    if xywh is not boxes.numbers:
        mended[f"boxes read as {box}"] += len(xywh)
    table["bbox"] = pd.Series([json.dumps(bbox) for bbox in xywh], dtype=str)
    left_out = _table(path, images, _chosen(every, is_crowd))
    left_out["reason"] = pd.Series(["iscrowd: a region of many"] * len(left_out), dtype=str)
    table = table[[*COLUMNS, *SIZE]]
    file_names = tuple(images["file_name"])
    left_out = left_out[list(DROPPED_COLUMNS)]
    return Annotations(table, file_names, left_out, mended, tuple(warnings))


def _table(
    path: Path, images: dict[str, list[Any]], annotations: dict[str, list[Any]]
) -> pd.DataFrame:
    """All of the faces table that does not come from the face alone."""
    table = pd.DataFrame(
        {"id_x": annotations["id"], "image_id": annotations["image_id"]}, dtype="int64"
    )
    for key, kind in (("file_name", str), *((key, float) for key in SIZE)):
        values = images[key] if kind is str else map(_length, images[key])
        of_image = dict(zip(images["id"], values, strict=True))
        table[key] = table["image_id"].map(of_image).astype(kind)
    numbers = table["image_id"].astype(str) + "_" + table["id_x"].astype(str)
    table["cutted_name"] = _file_prefix(path.stem) + "_" + numbers + ".jpg"
    table["source"] = path.stem
    return table


def _chosen(columns: dict[str, list[Any]], chosen: list[bool]) -> dict[str, list[Any]]:
    return {key: list(itertools.compress(values, chosen)) for key, values in columns.items()}


def _length(value: Any) -> float:
    """A side of a photo or an area in px; NaN for what can be none."""
    usable = type(value) in (int, float) and 1 <= value <= sys.maxsize
    return float(value) if usable else math.nan


def _outline(segmentation: Any) -> tuple[float, ...]:
    """left, top, right, bottom of polygons in either spelling, a list or a list of lists."""
    polygons = segmentation if isinstance(segmentation, list) else []
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    try:
        numbers = np.array(list(itertools.chain.from_iterable(polygons)), np.float64)
        points = numbers.reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):  # no polygon after all: it tells nothing
        return _NO_OUTLINE
    return (*points.min(axis=0), *points.max(axis=0)) if len(points) else _NO_OUTLINE


def _file_prefix(source: str) -> str:
    """A source as the start of a file name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", source)[:100]


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check data.annotations or --boxes") from None
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError too
        raise DataError(f"{path}: not JSON: {error}; check data.annotations or --boxes") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, not an object with 'images' and"
            " 'annotations'; check data.annotations or --boxes"
        )
    return content


def _columns(
    path: Path,
    content: dict[str, Any],
    kind: str,
    keys: tuple[str, ...],
    more: tuple[str, ...] = (),
) -> dict[str, list[Any]]:
    """The values of some keys over all entries of a list of the JSON.

    more: keys that an entry may lack, whose value is None then.
    """
    if kind not in content:
        raise DataError(f"{path}: missing key '{kind}'; is this an OpenForensics JSON?")
    entries = content[kind]
    if not isinstance(entries, list):
        raise DataError(f"{path}: '{kind}' is {reprlib.repr(entries)}, not a list")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {kind}[{position}] is {reprlib.repr(entry)}, not an object")
        for key in keys:
            if key not in entry:
                name = f"id {reprlib.repr(entry['id'])}" if "id" in entry else f"[{position}]"
                raise DataError(
                    f"{path}: {kind} {name}: missing key '{key}'; add it or remove the entry"
                )
    return {key: [entry.get(key) for entry in entries] for key in (*keys, *more)}


def _check_source(path: Path) -> None:
    if _UNWRITABLE.search(path.stem):
        raise DataError(f"{str(path)!r}: its name holds a character no CSV can; rename it")


def _ids(
    path: Path, kind: str, key: str, values: list[Any], names: list[Any], mended: Counter[str]
) -> list[int]:
    """As integers. names: what each entry is called where its id can't be told."""
    numbers = list(map(_as_id, values))
    if None in numbers:
        at = numbers.index(None)
        where = f"{kind} at position {at}" if key == "id" else f"{kind} {names[at]}"
        raise DataError(
            f"{path}: {where}: {key} {reprlib.repr(values[at])} is not an integer; correct it"
        )
    if count := sum(type(value) is not int for value in values):
        mended["ids read from text or decimals"] += count
    return [number for number in numbers if number is not None]


def _as_id(value: Any) -> int | None:
    """7, and what other tools write for it: 7.0 and "7"."""
    match value:
        case bool():  # JSON's true is an int to isinstance
            return None
        case int():
            number = value
        case float() if value.is_integer() and abs(value) < 2**53:  # beyond that it is not exact
            number = int(value)
        case str() if _INTEGER.fullmatch(value):
            number = int(value)
        case _:
            return None
    return number if number in _INT64 else None


def _check_unique(path: Path, kind: str, ids: list[int]) -> None:
    numbers = pd.Series(ids, dtype="int64")
    twice = numbers[numbers.duplicated()]
    if not twice.empty:
        raise DataError(f"{path}: {kind} id {twice.iloc[0]} occurs twice; correct or remove one")


def _category_names(path: Path, categories: dict[str, list[Any]]) -> dict[int, str]:
    """Of each id, in lower case; Real and Fake are among them, whatever their ids are."""
    names = [str(name).strip().casefold() for name in categories["name"]]
    name_of: dict[int, str] = {}
    for value, name in zip(categories["id"], names, strict=True):
        if (number := _as_id(value)) is None:
            continue  # no face can be in it
        if name_of.setdefault(number, name) != name:
            raise DataError(
                f"{path}: category {number} is both {name_of[number]!r} and {name!r}; correct one"
            )
    if not set(LABELS) <= set(name_of.values()):
        named = list(zip(categories["id"], names, strict=True))
        raise DataError(
            f"{path}: categories are {reprlib.repr(named)}, not {REAL} = Real and {FAKE} = Fake;"
            " name two of them so"
        )
    return name_of


def _labels(
    path: Path, name_of: dict[int, str], faces: dict[str, list[Any]], mended: Counter[str]
) -> list[int]:
    """REAL or FAKE of each face, by the name of its category."""
    label_of = {n: LABELS.index(name) for n, name in name_of.items() if name in LABELS}
    labels = []
    for face, value in zip(faces["id"], faces["category_id"], strict=True):
        number = _as_id(value)
        if number not in label_of:
            called = repr(name_of[number]) if number in name_of else "in no category"
            raise DataError(
                f"{path}: annotation {face}: category_id {reprlib.repr(value)} is {called},"
                " neither Real nor Fake; correct or remove the annotation"
            )
        labels.append(label_of[number])
    if label_of != {REAL: REAL, FAKE: FAKE}:
        mended["labels read by their category's name"] += len(labels)
    return labels


def _check_faces(
    path: Path,
    faces: dict[str, list[Any]],
    key: str,
    holds: Callable[[Any], bool],
    problem: str,
) -> None:
    for face, value in zip(faces["id"], faces[key], strict=True):
        if not holds(value):
            raise DataError(
                f"{path}: annotation {face}: {key} {reprlib.repr(value)} {problem};"
                " correct or remove the annotation"
            )


def _check_file_names(
    path: Path, images: dict[str, list[Any]], faces: dict[str, list[Any]]
) -> None:
    for image, name in zip(images["id"], images["file_name"], strict=True):
        if not isinstance(name, str) or not name or _UNWRITABLE.search(name):
            problem = "is not a file's name"
        elif _OUTSIDE.search(name):
            problem = "points outside the photo folder"
        else:
            continue
        pairs = zip(faces["id"], faces["image_id"], strict=True)
        users = [f"annotation {face}, " for face, of_image in pairs if of_image == image]
        where = f"{''.join(users[:1])}image {image}"
        raise DataError(
            f"{path}: {where}: file_name {reprlib.repr(name)} {problem}; give it relative to"
            " data.photos_dir, without '..'"
        )


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in value)
    )
