"""OpenForensics JSONs and photos -> the faces table, and the table -> JSONs."""

import json
import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deepfake.config import FAKE, REAL
from deepfake.data.layouts import COLUMNS, PHOTO, Annotations
from deepfake.errors import DataError
from deepfake.files import write_whole

_INT64 = range(-(2**63), 2**63)
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # no CSV or file system takes these
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")  # absolute, drive, or climbing


def read_faces(annotations: Sequence[Path]) -> pd.DataFrame:
    """One row a face with the columns COLUMNS; bbox is JSON text, "[x, y, w, h]".

    Raises DataError naming the JSON, the annotation's id and the value.
    """
    return read_annotations(annotations).faces


def read_annotations(annotations: Sequence[Path]) -> Annotations:
    """The faces of the JSONs, whatever order they are given in, and the number of photos."""
    check_sources(annotations)
    parts = [_read_json(path) for path in sorted(annotations, key=lambda path: path.stem)]
    faces = pd.concat([part.faces for part in parts], ignore_index=True)
    if faces.empty:
        names = ", ".join(str(path) for path in annotations)
        raise DataError(f"{names}: 'annotations' is empty: there is no face to learn from")
    return Annotations(faces, sum(part.photos for part in parts))


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
        images = photos[["image_id", "file_name"]].set_axis(["id", "file_name"], axis=1)
        annotations = of_source[["id_x", "image_id", "category_id"]].rename(columns={"id_x": "id"})
        annotations["bbox"] = of_source["bbox"].map(json.loads)
        write_json(folder / f"{source}.json", _records(images), _records(annotations))
    for path in folder.glob("*.json"):
        if path.stem not in by_source:
            path.unlink()


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def write_json(
    path: Path, images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> None:
    """Written whole, with the categories that read_faces asks for."""
    categories = [{"id": REAL, "name": "Real"}, {"id": FAKE, "name": "Fake"}]
    document = {"categories": categories, "images": images, "annotations": annotations}
    write_whole(path, json.dumps(document).encode())


def _read_json(path: Path) -> Annotations:
    content = _parse(path)
    _check_source(path)
    _check_categories(path, _columns(path, content, "categories", ("id", "name")))
    images = _columns(path, content, "images", ("id", "file_name"))
    faces = _columns(path, content, "annotations", ("id", "image_id", "category_id", "bbox"))
    _check_ids(path, "image", images["id"])
    _check_ids(path, "annotation", faces["id"])
    _check_faces(path, faces, set(images["id"]))
    _check_file_names(path, images, faces)

    table = pd.DataFrame({"id_x": faces["id"], "image_id": faces["image_id"]}, dtype="int64")
    table["category_id"] = pd.Series(faces["category_id"], dtype="int64")
    table["bbox"] = pd.Series([json.dumps(bbox) for bbox in faces["bbox"]], dtype=str)
    file_names = dict(zip(images["id"], images["file_name"], strict=True))
    table["file_name"] = table["image_id"].map(file_names).astype(str)
    numbers = table["image_id"].astype(str) + "_" + table["id_x"].astype(str)
    table["cutted_name"] = _file_prefix(path.stem) + "_" + numbers + ".jpg"
    table["source"] = path.stem
    return Annotations(table[list(COLUMNS)], len(images["id"]))


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
    path: Path, content: dict[str, Any], kind: str, keys: tuple[str, ...]
) -> dict[str, list[Any]]:
    """The values of some keys over all entries of a list of the JSON."""
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
    return {key: [entry[key] for entry in entries] for key in keys}


def _check_source(path: Path) -> None:
    if _UNWRITABLE.search(path.stem):
        raise DataError(f"{str(path)!r}: its name holds a character no CSV can; rename it")


def _check_categories(path: Path, categories: dict[str, list[Any]]) -> None:
    named = [
        (number, str(name).casefold())
        for number, name in zip(categories["id"], categories["name"], strict=True)
    ]
    if (REAL, "real") not in named or (FAKE, "fake") not in named:
        raise DataError(
            f"{path}: categories are {reprlib.repr(named)}, not {REAL} = Real and {FAKE} = Fake;"
            " renumber them, here and in the annotations"
        )


def _check_ids(path: Path, kind: str, ids: list[Any]) -> None:
    for position, number in enumerate(ids):
        if not _is_id(number):
            raise DataError(
                f"{path}: {kind} at position {position}: id {reprlib.repr(number)} is not an"
                " integer; correct it"
            )
    numbers = pd.Series(ids, dtype="int64")
    twice = numbers[numbers.duplicated()]
    if not twice.empty:
        raise DataError(f"{path}: {kind} id {twice.iloc[0]} occurs twice; correct or remove one")


def _check_faces(path: Path, faces: dict[str, list[Any]], image_ids: set[int]) -> None:
    rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("image_id", lambda v: _is_id(v) and v in image_ids, "has no entry in 'images'"),
        ("category_id", lambda v: type(v) is int and v in (REAL, FAKE), "is not 0 or 1"),
        ("bbox", _is_box, "is not four finite numbers [x, y, w, h]"),
    )
    for key, holds, problem in rules:
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


def _is_id(value: object) -> bool:
    return type(value) is int and value in _INT64  # type: JSON's true is an int to isinstance


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in value)
    )
