"""What every layout is read into: the faces table. One module a layout that people have.

openforensics  JSONs and a folder of photos
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

COLUMNS = ("id_x", "image_id", "category_id", "bbox", "file_name", "cutted_name", "source")
SIZE = ("width", "height")  # of the photo that was annotated, px; NaN where nothing says it
PHOTO = ("source", "image_id")  # what identifies a photo: ids are unique only within one source
DROPPED_COLUMNS = ("source", "image_id", "id_x", "file_name", "cutted_name", "reason")


@dataclass(frozen=True)
class Annotations:
    """What was read."""

    faces: pd.DataFrame  # COLUMNS and SIZE, one row a face
    file_names: tuple[str, ...]  # of every photo, of those without a face too
    left_out: pd.DataFrame  # DROPPED_COLUMNS: what is annotated and is no face
    mended: Mapping[str, int] = field(default_factory=dict)  # what was read otherwise: how often
    warnings: tuple[str, ...] = ()  # what may be wrong, a line each
