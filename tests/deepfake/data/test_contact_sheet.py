"""The sheet of faces of flat colour: a tile's middle tells which face it is."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.data.contact_sheet import CONTACT_SHEET, ensure_contact_sheet
from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from tests.deepfake.data.test_prepare import rewritten
from tests.support.cases import case_config, colour_of, draw_case

STEP, LINE, TILE = 102, 28, 40  # px: from tile to tile, a title's height, a crop's side


@pytest.fixture
def data(tmp_path):
    """Twelve photos with 24 faces; one real and one fake box reach out of theirs."""
    content = draw_case(tmp_path)
    content["annotations"][4]["bbox"] = [-10, 30, 50, 40]  # a fifth of it
    content["annotations"][9]["bbox"] = [70, -40, 40, 110]  # 40 of 110
    return case_config(tmp_path, content)


def sheet_of(data):
    with Image.open(data.work_dir / CONTACT_SHEET) as sheet:
        return np.asarray(sheet, np.float64)


def nearest_face(pixel):
    numbers = range(24)
    return min(numbers, key=lambda number: np.abs(pixel - colour_of(number)).max())


def test_crops_of_both_labels_are_shown_and_none_of_test(data):
    prepare_data(data, processes=1)
    tables = [pd.read_csv(data.work_dir / f"{name}.csv") for name in ("faces", "splits")]
    seen = tables[0].merge(tables[1], on="cutted_name")
    seen = seen[seen["split"] != "test"].sort_values("cutted_name")
    assert 16 <= len(seen) <= 22
    sheet = sheet_of(data)
    top = 0
    for label in (0, 1):
        wanted = seen.loc[seen["category_id"] == label, "id_x"].tolist()
        top += LINE
        shown = []
        for first in range(0, len(wanted), 12):
            row = wanted[first : first + 12]
            shown += [
                nearest_face(sheet[top + TILE // 2, 6 + STEP * column + TILE // 2])
                for column in range(len(row))
            ]
            heights = [{9: 70}.get(number, 40) for number in row]  # as it is clamped
            top += max(heights) + 6
        assert shown == wanted


def test_boxes_are_drawn_on_the_photos_of_the_extremes(data):
    prepare_data(data, processes=1)
    sheet = sheet_of(data)
    red = np.abs(sheet - (255, 0, 90)).max(axis=2) < 60
    rows = np.flatnonzero(red.any(axis=1))
    # three kinds of photos, of which only the boxes' lines are of this colour
    assert len(np.flatnonzero(np.diff(rows) > 100)) == 2


def test_the_same_crops_give_the_same_bytes_and_a_lost_sheet_is_drawn_again(data, tmp_path):
    prepare_data(data, processes=1)
    sheet = data.work_dir / CONTACT_SHEET
    before = sheet.read_bytes()
    sheet.unlink()
    assert ensure_contact_sheet(data, data.work_dir / "crops") == sheet
    assert sheet.read_bytes() == before
    stamp = sheet.stat().st_mtime_ns
    ensure_contact_sheet(data, data.work_dir / "crops")
    assert sheet.stat().st_mtime_ns == stamp


def test_without_sizes_in_the_json_a_crop_tells_what_of_its_box_is_outside(data, tmp_path):
    prepare_data(data, processes=1)

    def forget_sizes(content):
        for image in content["images"]:
            del image["width"], image["height"]

    rewritten(data.jsons[0], forget_sizes)
    other = data.model_copy(update={"work_dir": tmp_path / "other"})
    prepare_data(other, processes=1)
    assert (sheet_of(other) == sheet_of(data)).all()


def test_a_photo_that_is_gone_leaves_its_place_empty(data):
    prepare_data(data, processes=1)
    (data.work_dir / CONTACT_SHEET).unlink()
    for photo in (data.photos_dir / "Images/Train").glob("p00[0-4].jpg"):
        photo.unlink()
    ensure_contact_sheet(data, data.work_dir / "crops")
    assert sheet_of(data).shape[1] == 12 * STEP + 6


def test_where_no_photo_is_left_there_is_no_sheet(data):
    prepare_data(data, processes=1)
    (data.work_dir / CONTACT_SHEET).unlink()
    shutil.rmtree(data.photos_dir / "Images")
    with pytest.raises(DataError, match="none of 12 photos found"):
        ensure_contact_sheet(data, data.work_dir / "crops")
