"""What the HTML report shows of the data: some faces, their sizes, and where they come from."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image

from deepfake.config import LABELS, SEEN, DataConfig
from deepfake.data import CONTACT_SHEET, CROPS, PHOTO, Prepared, read_places, read_split
from deepfake.files import sha256_of
from deepfake.sample import seed_of
from study.evaluation import jpeg_base64, picture_of
from study.report.search_plots import figure_layout

FACES = 12  # shown of each label and split
LABEL_COLOURS = ("#7d8794", "#b1569a")  # apart from those of the variants, 3:1 in both schemes
QUANTILES = (0.05, 0.5, 0.95)


def data_sheet(data: DataConfig, prepared: Prepared) -> tuple[dict[str, Any], go.Figure | None]:
    """For the page; and the sizes of the faces as a figure.

    Of train and val alone: rows of a test set are for study/evaluation.
    """
    tables = {split: read_split(prepared.work_dir, split) for split in SEEN}
    rng = np.random.default_rng(int(prepared.splits_sha256[:16], 16))
    groups = [
        (split, label, table[table["category_id"] == at])
        for split, table in tables.items()
        for at, label in enumerate(LABELS)
    ]
    crops_dir = prepared.work_dir / CROPS
    content = {
        **vars(prepared.summary),
        "sheets": [_sheet(split, label, rows, crops_dir, rng) for split, label, rows in groups],
        "sizes": [_sizes(split, label, rows) for split, label, rows in groups],
        "jsons": [{"name": path.name, "sha256": sha256_of(path)} for path in data.jsons],
        "drawn": _drawn(data, prepared),
        "contact_sheet": _contact_sheet(prepared.work_dir),
    }
    return content, sizes_figure(pd.concat(tables.values(), ignore_index=True))


def _contact_sheet(work_dir: Path) -> dict[str, Any] | None:
    """As prepare drew it; None of a work_dir from before it did."""
    path = work_dir / CONTACT_SHEET
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
            size = picture.size
    except (OSError, SyntaxError):
        return None
    return {"jpeg": base64.b64encode(content).decode(), "size": size}


def sizes_figure(faces: pd.DataFrame) -> go.Figure:
    """Shares of each label's faces by the shorter side of their box, in bins of half an octave."""
    sides = _short_sides(faces["bbox"])
    first, last = np.floor(2 * np.log2([sides.min(), sides.max()]))
    edges = 2 ** (np.arange(first, last + 2) / 2)
    names = [f"{low:.0f} to {high:.0f}" for low, high in itertools.pairwise(edges)]
    figure = go.Figure(layout=figure_layout("shorter side of the box, px", "share of faces", 300))
    for at, label in enumerate(LABELS):
        counts, _ = np.histogram(sides[faces["category_id"].to_numpy() == at], edges)
        figure.add_bar(
            x=names,
            y=counts / max(1, counts.sum()),
            customdata=counts,
            marker={"color": LABEL_COLOURS[at]},
            hovertemplate=f"{label}, %{{x}} px: %{{customdata}} faces (%{{y:.1%}})<extra></extra>",
            name=label,
        )
    figure.update_layout(bargap=0.25, bargroupgap=0.05)
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%")
    return figure


def _sheet(
    split: str, label: str, rows: pd.DataFrame, crops_dir: Path, rng: np.random.Generator
) -> dict[str, Any]:
    """Drawn without regard to anything; a crop that is gone leaves its place empty."""
    chosen = sorted(rng.choice(len(rows), min(FACES, len(rows)), replace=False))
    faces = []
    for name in rows["cutted_name"].iloc[chosen]:
        picture = picture_of(crops_dir / name)
        jpeg = picture and jpeg_base64(picture)
        faces.append({"name": name, "jpeg": jpeg, "size": picture and picture.size})
    return {"split": split, "label": label, "faces": faces, "of": len(rows)}


def _sizes(split: str, label: str, rows: pd.DataFrame) -> dict[str, Any]:
    sides = _short_sides(rows["bbox"])
    return {
        "split": split,
        "label": label,
        "photos": len(rows.drop_duplicates(list(PHOTO))),
        "px": np.quantile(sides, QUANTILES).tolist(),
    }


def _short_sides(boxes: pd.Series) -> NDArray[np.float64]:
    return np.array([min(json.loads(box)[2:]) for box in boxes], np.float64)


def _drawn(data: DataConfig, prepared: Prepared) -> str | None:
    """The command that drew the photos, if `deepfake-study sample` did."""
    if len(data.jsons) != 1:
        return None
    places = read_places(prepared.work_dir)
    seed = seed_of(dict(zip(places["image_id"].tolist(), places["file_name"], strict=True)))
    if seed is None:
        return None
    photos = f"--photos {prepared.summary.photos_in_json}"
    return f"{photos} --seed {seed}"
