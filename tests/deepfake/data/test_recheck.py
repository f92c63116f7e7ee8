"""A case of late photos, and crops that are another picture's, both on faces of flat colour."""

import shutil

import pandas as pd
import pytest
from PIL import Image

from deepfake.data.prepare import load_prepared, prepare_data
from deepfake.data.recheck import photos_that_came, recheck_crops
from deepfake.errors import DataError
from tests.deepfake.data.test_prepare import files, rewritten
from tests.support.cases import case_config, colour_of, draw_case, wrong_crops


@pytest.fixture
def data(tmp_path):
    """Twelve photos with 24 faces, of which none is cut yet."""
    return case_config(tmp_path, draw_case(tmp_path))


def prepare(data, **changes):
    return prepare_data(data, processes=1, **changes)


def photo(data, number):
    return data.photos_dir / f"Images/Train/p{number:03d}.jpg"


def name(number):
    return f"Images/Train/p{number:03d}.jpg"


def test_photos_that_were_absent_or_unreadable_are_named_once_they_are_there(data, tmp_path):
    for number in (1, 2, 3):
        photo(data, number).rename(tmp_path / f"{number}.jpg")
    photo(data, 3).write_bytes(b"half a photo")
    prepared = prepare(data)
    assert prepared.summary.dropped == {"photo absent": 4, "photo unreadable": 2}
    assert (photos_that_came(data), recheck_crops(data, prepared).came) == ([], [])
    (tmp_path / "1.jpg").rename(photo(data, 1))
    (tmp_path / "3.jpg").rename(photo(data, 3))
    before = files(data.work_dir)
    assert photos_that_came(data) == [name(1), name(3)]
    assert recheck_crops(data, prepared).came == [name(1), name(3)]
    assert files(data.work_dir) == before


def test_prepared_again_it_is_as_if_the_photos_had_always_been_there(data, tmp_path):
    whole = prepare(data.model_copy(update={"work_dir": tmp_path / "whole"}), sides=(32,))
    for number in range(5):
        photo(data, number).rename(tmp_path / f"{number}.jpg")
    first = prepare(data, sides=(32,))
    assert (first.summary.faces, first.filled) == (14, True)
    for number in range(5):
        (tmp_path / f"{number}.jpg").rename(photo(data, number))
    late = prepare(data, sides=(32,), again=True)
    assert late.filled
    assert late.splits_sha256 == whole.splits_sha256 != first.splits_sha256
    assert late.summary == whole.summary
    assert wrong_crops(data.work_dir) == []
    assert files(data.work_dir) == files(tmp_path / "whole")
    assert not prepare(data, sides=(32,)).filled


def test_crops_that_are_what_is_cut_from_their_photos_are_counted(data):
    found = recheck_crops(data, prepare(data))
    assert (found.recut, found.wrong, found.gone, found.otherwise) == (24, [], [], False)


def test_a_crop_of_another_picture_or_size_is_named(data):
    prepared = prepare(data)
    crops = data.work_dir / "crops"
    shutil.copyfile(crops / "Train_poly_3_6.jpg", crops / "Train_poly_2_5.jpg")
    Image.new("RGB", (30, 40), colour_of(8)).save(crops / "Train_poly_4_8.jpg")
    assert sorted(recheck_crops(data, prepared).wrong) == [
        f"Train_poly_2_5.jpg of {name(2)}: its crop is another picture than the photo's face",
        f"Train_poly_4_8.jpg of {name(4)}: its crop is 30 x 40 px, cut again it is 40 x 40 px",
    ]


def test_a_photo_that_is_another_now_and_one_that_is_gone_are_named(data):
    prepared = prepare(data)
    shutil.copyfile(photo(data, 5), photo(data, 6))
    photo(data, 7).write_bytes(b"none")
    photo(data, 8).unlink()
    found = recheck_crops(data, prepared)
    named = {line.partition(":")[0] for line in found.wrong}
    assert named == {
        f"Train_poly_{p}_{2 * p + k}.jpg of {name(p)}" for p in (6, 7) for k in (0, 1)
    }
    assert found.gone == [name(8)]
    assert found.recut == 22


def test_jsons_that_an_older_version_read_otherwise_are_said(data):
    prepared = prepare(data)
    table = pd.read_csv(data.work_dir / "faces.csv")
    table.loc[0, "bbox"] = "[10, 30, 41, 40]"
    table.to_csv(data.work_dir / "faces.csv", index=False)
    assert recheck_crops(data, prepared).otherwise


def test_jsons_that_are_refused_now_are_one_line(data):
    prepared = prepare(data)
    twice = {"id": 99, "image_id": 0, "category_id": 7, "bbox": [1, 2, 30, 40]}
    rewritten(data.jsons[0], lambda content: content["annotations"].append(twice))
    with pytest.raises(DataError, match="category_id 7"):
        recheck_crops(data, prepared)
    with pytest.raises(DataError, match="made from other data"):
        load_prepared(data)
