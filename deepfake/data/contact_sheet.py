"""A picture of what prepare cut: people see at a glance what no check finds."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deepfake.config import LABELS, SEEN, DataConfig
from deepfake.data.layouts import PHOTO, SIZE
from deepfake.data.layouts.openforensics import read_annotations
from deepfake.data.photos.names import find_photos
from deepfake.data.photos.reading import UNREADABLE, annotated_sizes, open_photo
from deepfake.data.splits import read_splits_csv
from deepfake.errors import writing_data
from deepfake.files import write_whole

CONTACT_SHEET = "contact_sheet.jpg"
FACES = 36  # a label

_TILE_PX, _COLUMNS, _GAP_PX = 96, 12, 6
_WIDTH_PX = _COLUMNS * (_TILE_PX + _GAP_PX) + _GAP_PX
_PHOTOS, _PHOTO_PX = 3, (402, 260)  # of each kind, side by side
_LINE_PX = 22
_GROUND, _INK, _BOX = (255, 255, 255), (30, 30, 30), (255, 0, 90)
_CLAMPED = 0.02  # share of a box: less is what rounding takes


@dataclass(frozen=True)
class _Shown:
    """A face on its photo."""

    photo: Path
    annotated: tuple[float, float] | None
    bbox: list[float]
    caption: str


def ensure_contact_sheet(data: DataConfig, crops_dir: Path) -> Path:
    """The sheet of a complete work_dir, drawn if it is not there: none was, once.

    Raises DataError if the JSONs are refused now or no photo is found.
    """
    path = data.work_dir / CONTACT_SHEET
    if not path.is_file():
        annotations, splits = (
            read_annotations(data.jsons, data.box),
            read_splits_csv(data.work_dir),
        )
        photos = find_photos(annotations, data).photos
        with writing_data(path):
            draw_contact_sheet(annotations.faces, splits, photos, data, crops_dir)
    return path


def draw_contact_sheet(
    faces: pd.DataFrame,
    splits: pd.DataFrame,
    photos: Mapping[str, Path | str],
    data: DataConfig,
    crops_dir: Path,
) -> None:
    """Write work_dir's: crops of both labels, and photos with the box of a face.

    faces: with SIZE. Of train and val alone: nobody looks at a test set.
    The same crops give the same bytes.
    """
    seen = splits.loc[splits["split"].isin(SEEN), ["cutted_name"]]
    table = seen.merge(faces, on="cutted_name").sort_values("cutted_name", ignore_index=True)
    rows: list[Image.Image] = []
    for label, word in enumerate(LABELS):
        names = table.loc[table["category_id"] == label, "cutted_name"].to_numpy()
        chosen = np.random.default_rng(0).permutation(len(names))[:FACES]
        rows.append(_line(f"{word}: {len(chosen)} of {len(names)} crops of train and val"))
        rows += _tiled([_tile(crops_dir / name) for name in names[sorted(chosen)]], _COLUMNS)
    for title, shown in _extremes(table, photos, data, crops_dir):
        rows.append(_line(title))
        rows += _tiled([_boxed(face, data.max_photo_megapixels) for face in shown], _PHOTOS)
    sheet = Image.new("RGB", (_WIDTH_PX, sum(row.height for row in rows)), _GROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=88)
    write_whole(data.work_dir / CONTACT_SHEET, content.getvalue())


def _extremes(
    table: pd.DataFrame, photos: Mapping[str, Path | str], data: DataConfig, crops_dir: Path
) -> Iterator[tuple[str, list[_Shown]]]:
    boxes = np.array([json.loads(bbox) for bbox in table["bbox"]], np.float64).reshape(-1, 4)
    areas = boxes[:, 2] * boxes[:, 3]
    outside = _shares_outside(table, boxes, data.margin, crops_dir)
    furthest = np.argsort(-outside, kind="stable")
    for title, order in (
        ("the largest faces", np.argsort(-areas, kind="stable")),
        ("the smallest faces", np.argsort(areas, kind="stable")),
        ("the boxes that reach furthest out", furthest[outside[furthest] > _CLAMPED]),
    ):
        # one face a photo: three of one photo would show one fault thrice
        chosen = table.iloc[order].drop_duplicates(list(PHOTO)).head(_PHOTOS)
        if not chosen.empty:
            yield title, list(_shown(chosen, boxes, outside, photos))


def _shown(
    chosen: pd.DataFrame,
    boxes: NDArray[np.float64],
    outside: NDArray[np.float64],
    photos: Mapping[str, Path | str],
) -> Iterator[_Shown]:
    for row, annotated in zip(chosen.index, annotated_sizes(chosen), strict=True):
        photo = photos[chosen.loc[row, "file_name"]]
        if isinstance(photo, Path):
            x, y, w, h = boxes[row]
            name, word = chosen.loc[row, "cutted_name"], LABELS[chosen.loc[row, "category_id"]]
            caption = f"{name}, {word}: {w:g} x {h:g} px"
            if outside[row] > _CLAMPED:
                caption += f", {outside[row]:.0%} outside"
            yield _Shown(photo, annotated, [x, y, w, h], caption)


def _shares_outside(
    table: pd.DataFrame, boxes: NDArray[np.float64], margin: float, crops_dir: Path
) -> NDArray[np.float64]:
    """Of each box, its margin included: the share that its photo has not."""
    sides = boxes[:, 2:]
    first, last = boxes[:, :2] - margin * sides, boxes[:, :2] + (1 + margin) * sides
    sizes = table[list(SIZE)].to_numpy(np.float64)
    inside = np.minimum(last, sizes) - np.maximum(first, 0)
    for row in np.flatnonzero(np.isnan(inside).any(axis=1)):  # the JSON has no size: the crop has
        with Image.open(crops_dir / table["cutted_name"].iloc[row]) as crop:
            inside[row] = crop.size
    shares: NDArray[np.float64] = 1 - inside.prod(axis=1) / (last - first).prod(axis=1)
    return shares


def _line(text: str) -> Image.Image:
    line = Image.new("RGB", (_WIDTH_PX, _LINE_PX + _GAP_PX), _GROUND)
    _write(line, (_GAP_PX, _GAP_PX), text, 16)
    return line


def _write(picture: Image.Image, place: tuple[int, int], text: str, size: int) -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(place, text, _INK, font)


def _tiled(tiles: list[Image.Image], columns: int) -> list[Image.Image]:
    """Rows of tiles, each at the left of its column."""
    rows = []
    for first in range(0, len(tiles), columns):
        of_row = tiles[first : first + columns]
        height = max(tile.height for tile in of_row) + _GAP_PX
        row = Image.new("RGB", (_WIDTH_PX, height), _GROUND)
        for column, tile in enumerate(of_row):
            row.paste(tile, (_GAP_PX + column * (_WIDTH_PX // columns), 0))
        rows.append(row)
    return rows


def _tile(crop: Path) -> Image.Image:
    with Image.open(crop) as face:
        face.draft("RGB", (_TILE_PX, _TILE_PX))
        tile = face.convert("RGB")
    tile.thumbnail((_TILE_PX, _TILE_PX))
    return tile


def _boxed(shown: _Shown, max_megapixels: int) -> Image.Image:
    """The photo with the box in it, above its caption."""
    tile = Image.new("RGB", (_PHOTO_PX[0], _PHOTO_PX[1] + _LINE_PX), _GROUND)
    _write(tile, (0, _PHOTO_PX[1] + 3), shown.caption, 12)
    try:
        with open_photo(shown.photo, shown.annotated, max_megapixels) as picture:
            photo, (x, y, w, h) = picture.pixels, picture.view.box(shown.bbox)
            width, height = photo.size
            photo.thumbnail(_PHOTO_PX)
    except UNREADABLE:  # it was cut: gone since
        return tile
    corners = np.array([[x, y], [x + w, y + h]]) * photo.size / (width, height)
    corners = corners.clip(-_GAP_PX, np.add(photo.size, _GAP_PX))  # beyond, nothing is seen
    ImageDraw.Draw(photo).rectangle(corners.ravel().tolist(), outline=_BOX, width=2)
    tile.paste(photo, (0, 0))
    return tile
