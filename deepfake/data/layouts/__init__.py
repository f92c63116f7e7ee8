"""What every layout is read into: the faces table. One module a layout that people have.

openforensics  JSONs and a folder of photos
"""

from dataclasses import dataclass

import pandas as pd

COLUMNS = ("id_x", "image_id", "category_id", "bbox", "file_name", "cutted_name", "source")
PHOTO = ("source", "image_id")  # what identifies a photo: ids are unique only within one source


@dataclass(frozen=True)
class Annotations:
    """What was read."""

    faces: pd.DataFrame  # COLUMNS, one row a face
    photos: int  # those without a face too
