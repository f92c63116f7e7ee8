import json

import numpy as np
import pandas as pd
import pytest

from deepfake.config import DataConfig
from deepfake.data.groups import groups_of, pictures_of
from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from tests.support.photos import draw_set

BLOCKS = 20_000  # bytes: beginning, middle and end are not all of it


def written(folder, **contents):
    """name -> the path of a file with that content."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_photos_of_the_same_bytes_are_one_picture_by_the_first_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, BLOCKS, dtype=np.uint8).tobytes()
    other = bytearray(noise)
    other[BLOCKS // 4] ^= 1  # where no block is read
    photos = written(tmp_path, c=noise, a=noise, b=bytes(other), d=noise[:-1], e=b"")
    assert pictures_of(photos) == {"c": "a", "a": "a", "b": "b", "d": "d", "e": "e"}


def test_names_of_one_file_are_one_picture_and_an_absent_one_is_its_own(tmp_path):
    (path,) = written(tmp_path, x=b"1").values()
    found = pictures_of({"x": path, "./x": path, "y": "absent", "z": "absent"})
    assert found == {"x": "./x", "./x": "./x", "y": "y", "z": "z"}


def test_a_photo_that_is_gone_is_its_own_picture(tmp_path):
    assert pictures_of({"x": tmp_path / "x", "y": tmp_path / "y"}) == {"x": "x", "y": "y"}


def table(*photos):
    """A face for each (image_id, file_name)."""
    rows = [{"source": "s", "image_id": n, "file_name": name} for n, name in photos]
    return pd.DataFrame(rows)


def test_faces_of_one_picture_are_one_group_numbered_by_its_first_photo():
    faces = table((5, "a"), (3, "b"), (3, "b"), (9, "c"), (7, "a"))
    own = {name: name for name in "abc"}
    assert groups_of(faces, None, "photo").tolist() == [1, 0, 0, 3, 2]
    assert groups_of(faces, own, "photo").tolist() == [1, 0, 0, 2, 1]
    assert groups_of(faces, {**own, "c": "b"}, "photo").tolist() == [1, 0, 0, 0, 1]
    assert groups_of(faces, own, "face").tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def copied(tmp_path):
    """20 photos of two faces, the first six of them under another name and id as well."""
    path = draw_set(tmp_path, 20)
    content = json.loads(path.read_text())
    for image in content["images"][:6]:
        copy = f"Images/Train/also_{image['id']}.jpg"
        (tmp_path / copy).write_bytes((tmp_path / image["file_name"]).read_bytes())
        content["images"].append({**image, "id": 100 + image["id"], "file_name": copy})
    copies = [
        {**face, "id": 1000 + face["id"], "image_id": 100 + face["image_id"]}
        for face in content["annotations"]
        if face["image_id"] < 6
    ]
    content["annotations"] += copies
    path.write_text(json.dumps(content))
    return DataConfig(annotations=(path,), photos_dir=tmp_path, work_dir=tmp_path / "work")


@pytest.mark.parametrize("seed", range(3))
def test_a_copied_photo_goes_to_its_originals_split_and_is_counted(copied, seed):
    summary = prepare_data(copied.model_copy(update={"seed": seed}), processes=1).summary
    assert summary.mended == {"photos that are the picture of another": 6}
    assert summary.warnings == ()
    faces, splits = (pd.read_csv(copied.work_dir / f"{name}.csv") for name in ("faces", "splits"))
    places = faces.merge(splits, on="cutted_name")
    assert places.groupby(places["image_id"] % 100)["split"].nunique().max() == 1


def test_a_picture_in_two_splits_is_said_where_splits_are_drawn_by_face(copied):
    summary = prepare_data(copied.model_copy(update={"group_by": "face"}), processes=1).summary
    (warning,) = summary.warnings
    assert warning.startswith("pictures in two splits: ")
    assert "deepfake-study audit CONFIG" in warning


def test_one_box_of_a_copied_photo_with_another_label_is_refused_naming_both(copied):
    (path,) = copied.annotations
    content = json.loads(path.read_text())
    content["annotations"][-1]["category_id"] = 0  # of 1011, the copy of 11
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 11 .*fake .*annotation 1011 .*real .*also_5"):
        prepare_data(copied, processes=1)
    assert not copied.work_dir.exists()
