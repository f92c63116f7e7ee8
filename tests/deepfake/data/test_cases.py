"""Faults seen in public data, each with what is right: no face is cut wrongly in silence."""

import unicodedata

import pandas as pd
import pytest

from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from tests.support.cases import case_config, draw_case, photo_of, wrong_crops


def prepare(data):
    """The summary, and the faces without a crop."""
    summary = prepare_data(data, processes=1).summary
    return summary, pd.read_csv(data.work_dir / "dropped.csv")


def test_a_face_whose_photo_is_absent_never_gets_the_photo_of_the_same_base_name(tmp_path):
    content = draw_case(tmp_path, n_photos=0)
    for n in range(48):
        kind = ("real", "fake")[n % 2]
        name = f"{kind}/{n // 2:04d}.jpg"
        content["images"].append({"id": n, "file_name": name, "width": 200, "height": 120})
        face = {"id": n, "image_id": n, "category_id": n % 2, "bbox": [10, 30, 40, 40]}
        # a fake one without a face: its name counts all the same
        content["annotations"] += [] if n == 1 else [face]
        (tmp_path / kind).mkdir(exist_ok=True)
        if kind == "fake" or n > 8:
            photo_of([((10, 30, 40, 40), n)]).save(tmp_path / name, quality=95)
    summary, dropped = prepare(case_config(tmp_path, content))
    assert summary.dropped == {"photo absent": 5}
    assert dropped["id_x"].tolist() == [0, 2, 4, 6, 8]
    assert wrong_crops(tmp_path / "work") == []


def test_photos_of_decomposed_names_are_cut(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"][:4]:
        name = image["file_name"].replace("/p", "/M\u00fcller \u00e9")
        decomposed = unicodedata.normalize("NFD", name)
        (tmp_path / image["file_name"]).rename(tmp_path / decomposed)
        image["file_name"] = name
    summary, _ = prepare(case_config(tmp_path, content))
    assert (summary.faces, summary.dropped, summary.mended) == (24, {}, {})
    assert wrong_crops(tmp_path / "work") == []


def test_photos_named_with_backslashes_are_cut(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")
    summary, _ = prepare(case_config(tmp_path, content))
    assert (summary.faces, summary.dropped, summary.mended) == (24, {}, {})
    assert wrong_crops(tmp_path / "work") == []


def with_areas(content):
    """The JSON's content, each face with the area of its box."""
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return content


@pytest.mark.parametrize("box", ["xyxy", "xywh_shares"])
def test_boxes_in_another_format_are_refused_and_taken_with_the_setting_that_is_named(
    tmp_path, box
):
    content = with_areas(draw_case(tmp_path))
    plain = case_config(tmp_path, content, work_dir=tmp_path / "plain")
    prepare(plain)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        shares = [x / 200, y / 120, w / 200, h / 120]
        annotation["bbox"] = [x, y, x + w, y + h] if box == "xyxy" else shares
    data = case_config(tmp_path, content)
    with pytest.raises(DataError, match=rf"set data\.box: {box}$"):
        prepare(data)
    assert not (tmp_path / "work").exists()
    summary, _ = prepare(data.model_copy(update={"box": box}))
    assert (summary.faces, summary.mended) == (24, {f"boxes read as {box}": 24})
    assert wrong_crops(tmp_path / "work") == []
    splits = [(tmp_path / name / "splits.csv").read_bytes() for name in ("work", "plain")]
    assert splits[0] == splits[1]
    with pytest.raises(DataError, match=rf"data\.box was {box} and is now absent"):
        prepare(data)


def test_the_format_that_is_the_default_is_no_other_setting(tmp_path):
    data = case_config(tmp_path, draw_case(tmp_path))
    first = prepare_data(data, processes=1)
    assert prepare_data(data.model_copy(update={"box": "xywh"}), processes=1) == first


def test_one_box_with_two_labels_is_refused_before_anything_is_cut(tmp_path):
    content = draw_case(tmp_path)
    content["annotations"].append({**content["annotations"][5], "id": 99, "category_id": 0})
    with pytest.raises(DataError, match=r"annotation 5 .*is fake .*annotation 99 .*is real"):
        prepare(case_config(tmp_path, content))
    assert not (tmp_path / "work").exists()
