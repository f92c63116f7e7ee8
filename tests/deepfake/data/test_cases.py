"""Faults seen in public data, each with what is right: no face is cut wrongly in silence."""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

from deepfake.audit import audit
from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from tests.support.cases import (
    case_config,
    colour_of,
    draw_case,
    has_colour,
    number_of,
    photo_of,
    wrong_crops,
)


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
    with pytest.raises(DataError, match=rf"set data\.box: {box}\b"):
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


def redraw(folder, image, change, **how):
    """Save an image's photo anew."""
    path = folder / image["file_name"]
    with Image.open(path) as photo:
        photo.load()
    change(photo).save(path, quality=95, **how)


def same(photo):
    return photo


def tag(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_boxes_of_photos_that_were_resized_are_scaled_and_counted(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"]:
        redraw(tmp_path, image, lambda photo: photo.resize((150, 90)))
    summary, _ = prepare(case_config(tmp_path, content))
    assert summary.dropped == {}
    assert summary.mended == {"photos of another size than annotated, boxes scaled": 12}
    assert wrong_crops(tmp_path / "work") == []
    with Image.open(tmp_path / "work/crops/Train_poly_0_0.jpg") as crop:
        assert crop.size == (30, 30)


def test_faces_of_photos_of_another_shape_are_dropped_and_named(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"][:3]:
        redraw(tmp_path, image, lambda photo: photo.crop((50, 0, 200, 120)))
    summary, dropped = prepare(case_config(tmp_path, content))
    assert summary.dropped == {"photo size differs": 6}
    assert set(dropped["reason"]) == {"photo size differs: 150 x 120 px, annotated as 200 x 120"}
    assert wrong_crops(tmp_path / "work") == []


def test_where_all_photos_are_of_another_shape_nothing_is_left_behind(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"]:
        redraw(tmp_path, image, lambda photo: photo.transpose(Image.Transpose.ROTATE_90))
    with pytest.raises(DataError) as caught:
        prepare(case_config(tmp_path, content))
    assert str(caught.value) == (
        f"{tmp_path}: none of 24 faces can be cut, 24 of them for this: photo size differs"
        " (Images/Train/p000.jpg: 120 x 200 px, annotated as 200 x 120); set data.photos_dir to"
        " the photos that were annotated"
    )
    assert [path.name for path in (tmp_path / "work").iterdir()] == [".lock"]


@pytest.mark.parametrize("seen", ["as stored", "turned"])
def test_the_orientation_tag_counts_if_the_photo_was_annotated_turned(tmp_path, seen):
    content = draw_case(tmp_path)
    # as a camera that was held upright stores it
    turn_back = {"as stored": same, "turned": lambda p: p.transpose(Image.Transpose.ROTATE_90)}
    for image in content["images"]:
        redraw(tmp_path, image, turn_back[seen], exif=tag(6))
    summary, _ = prepare(case_config(tmp_path, content))
    turned = {"photos turned by their orientation tag, as annotated": 12}
    assert (summary.dropped, summary.mended) == ({}, turned if seen == "turned" else {})
    assert wrong_crops(tmp_path / "work") == []


def test_an_orientation_tag_that_sizes_do_not_explain_is_counted(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"][:5]:
        redraw(tmp_path, image, same, exif=tag(3))
    for image in content["images"]:
        del image["width"], image["height"]  # many JSONs have none
    summary, _ = prepare(case_config(tmp_path, content))
    unclear = "photos cut as stored; their orientation tag may say otherwise"
    assert (summary.faces, summary.mended) == (24, {unclear: 5})
    assert wrong_crops(tmp_path / "work") == []


def test_photos_of_16_bits_are_cut_in_their_greys(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"][:4]:
        path = tmp_path / image["file_name"]
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
        image["file_name"] = image["file_name"].replace(".jpg", ".png")
        Image.fromarray(grey).save(tmp_path / image["file_name"])
        path.unlink()
    summary, _ = prepare(case_config(tmp_path, content))
    assert (summary.faces, summary.dropped, summary.mended) == (24, {}, {})
    assert all(number_of(Path(name)) < 8 for name in wrong_crops(tmp_path / "work"))
    for crop in (tmp_path / "work/crops").glob("Train_poly_[0-3]_*.jpg"):
        grey = Image.new("RGB", (1, 1), colour_of(number_of(crop))).convert("L").getpixel((0, 0))
        assert has_colour(crop, (grey,) * 3)


def test_hidden_pixels_are_not_cut(tmp_path):
    """Of each photo's two faces the second is transparent: white is what people see there."""
    content = draw_case(tmp_path)
    for image in content["images"]:
        path = tmp_path / image["file_name"]
        with Image.open(path) as photo:
            shown = Image.new("L", photo.size, 0)
            shown.paste(255, (10, 30, 50, 70))
            photo.putalpha(shown)
        image["file_name"] = image["file_name"].replace(".jpg", ".png")
        photo.save(tmp_path / image["file_name"])
    prepare(case_config(tmp_path, content))
    for crop in (tmp_path / "work/crops").iterdir():
        number = number_of(crop)
        assert has_colour(crop, (255,) * 3 if number % 2 else colour_of(number))


def test_a_photo_in_avif_called_jpg_is_cut(tmp_path):
    content = draw_case(tmp_path)
    for image in content["images"][:3]:
        path = tmp_path / image["file_name"]
        Image.open(path).save(path, "AVIF", quality=95)
    summary, _ = prepare(case_config(tmp_path, content))
    assert (summary.faces, summary.dropped) == (24, {})
    assert wrong_crops(tmp_path / "work") == []


def test_a_photo_over_the_limit_is_dropped_and_taken_where_the_limit_is_raised(tmp_path):
    content = draw_case(tmp_path)
    image = content["images"][0]
    redraw(tmp_path, image, lambda photo: photo.resize((2000, 1200), Image.Resampling.NEAREST))
    image |= {"width": 2000, "height": 1200}
    for annotation in content["annotations"][:2]:
        annotation["bbox"] = [10 * side for side in annotation["bbox"]]
    summary, _ = prepare(case_config(tmp_path, content, max_photo_megapixels=2))
    assert summary.dropped == {"photo over 2 megapixels": 2}
    data = case_config(tmp_path, content, max_photo_megapixels=3)
    with pytest.raises(DataError, match=r"max_photo_megapixels was 2 and is now 3"):
        prepare(data)
    summary, _ = prepare(data.model_copy(update={"work_dir": tmp_path / "more"}))
    assert summary.dropped == {}
    assert wrong_crops(tmp_path / "more") == []


def test_one_file_with_two_names_is_cut_as_each_name_was_annotated(tmp_path):
    """In a hub's cache two equal photos are one blob; here one is said to be twice as large."""
    content = draw_case(tmp_path)
    (tmp_path / "twin.jpg").symlink_to(tmp_path / "Images/Train/p000.jpg")
    content["images"].append({"id": 99, "file_name": "twin.jpg", "width": 400, "height": 240})
    content["annotations"][0] |= {"image_id": 99, "bbox": [20, 60, 80, 80]}
    summary, _ = prepare(case_config(tmp_path, content))
    assert summary.mended["photos of another size than annotated, boxes scaled"] == 1
    assert wrong_crops(tmp_path / "work") == []


@pytest.mark.slow
def test_the_audit_sees_a_photo_as_its_crops_were_cut(tmp_path):
    content = draw_case(tmp_path, n_photos=40)
    data = case_config(tmp_path, content)
    prepare(data)
    before = audit(data, processes=1)
    for image in content["images"]:
        back = lambda photo: photo.transpose(Image.Transpose.ROTATE_90)  # noqa: E731
        redraw(tmp_path, image, back, exif=tag(6))
    turned = data.model_copy(update={"work_dir": tmp_path / "turned"})
    prepare(turned)
    after = audit(turned, processes=1)
    aucs = [{probe.probe: probe.auc for probe in one.probes} for one in (before, after)]
    assert aucs[0]["geometry"] == aucs[1]["geometry"]
