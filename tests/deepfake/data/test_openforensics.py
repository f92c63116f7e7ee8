import json
import os
import time

import numpy as np
import pytest

from deepfake.data.layouts import COLUMNS, openforensics
from deepfake.data.layouts.openforensics import read_annotations, read_faces, resolve_photos
from deepfake.errors import DataError
from tests.support.photos import CATEGORIES, draw_photo, face, write_json


def content(**changes):
    """A JSON of one photo (id 0) with one face (id 17)."""
    good = {
        "categories": CATEGORIES,
        "images": [{"id": 0, "file_name": "Images/a.jpg"}],
        "annotations": [face(17, 0, 1, [1, 2, 3, 4])],
    }
    return {**good, **changes}


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


def image(name, number=0):
    return [{"id": number, "file_name": name}]


FACE = content()["annotations"][0]


def test_a_face_becomes_a_row_with_the_reports_columns_and_its_source(tmp_path):
    faces = [face(7, 0, 0, [458, 237, 134, 131]), face(3, 1, 1, [0.5, 1, 2.25, 9])]
    path = write_json(tmp_path / "Train poly.json", ["Images/Train/a.jpg", "b.jpg"], faces)
    table = read_faces([path])
    assert tuple(table.columns) == COLUMNS
    assert table.to_numpy().tolist() == [
        [
            7,
            0,
            0,
            "[458, 237, 134, 131]",
            "Images/Train/a.jpg",
            "Train_poly_0_7.jpg",
            "Train poly",
        ],
        [3, 1, 1, "[0.5, 1, 2.25, 9]", "b.jpg", "Train_poly_1_3.jpg", "Train poly"],
    ]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"iscrowd": 0, "area": 12, "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"is_crowd": 0, "segmentation": [1, 2, 3, 4, 5, 6]},
    ],
)
def test_both_spellings_of_crowd_and_of_polygons_are_read_alike(tmp_path, more):
    plain = read_faces([write_json(tmp_path / "a.json", ["x.jpg"], [FACE])])
    table = read_faces([write_json(tmp_path / "a.json", ["x.jpg"], [{**FACE, **more}])])
    assert table.equals(plain)


def test_equal_ids_in_two_jsons_stay_two_faces_in_whatever_order_the_jsons_come(tmp_path):
    paths = [write_json(tmp_path / f"{name}.json", ["x.jpg"], [FACE]) for name in ("Val", "Test")]
    table = read_faces(paths)
    assert table["cutted_name"].tolist() == ["Test_0_17.jpg", "Val_0_17.jpg"]
    assert table["source"].tolist() == ["Test", "Val"]
    assert table.equals(read_faces(paths[::-1]))


def test_photos_without_a_face_are_counted_too(tmp_path):
    path = write_json(tmp_path / "a.json", ["x.jpg", "y.jpg", "z.jpg"], [FACE])
    assert read_annotations([path]).photos == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, ["'images'", "None"]),
        ({"annotations": [3]}, ["annotations[0]", "3"]),
        ({"annotations": []}, ["no face"]),
        ({"categories": [{"id": 0, "name": "Fake"}, {"id": 1, "name": "Real"}]}, ["(0, 'fake')"]),
        ({"categories": [{"id": 0, "name": "Real"}]}, ["categories", "1 = Fake"]),
        ({"annotations": [without(FACE, "bbox")]}, ["17", "missing key 'bbox'"]),
        ({"annotations": [without(FACE, "image_id")]}, ["17", "missing key 'image_id'"]),
        ({"annotations": [FACE, without(FACE, "id")]}, ["[1]", "missing key 'id'"]),
        ({"images": [{"id": 0}]}, ["images id 0", "missing key 'file_name'"]),
        ({"annotations": [{**FACE, "image_id": 5}]}, ["17", "image_id 5", "no entry"]),
        ({"annotations": [{**FACE, "image_id": [0]}]}, ["17", "image_id [0]"]),
        ({"annotations": [{**FACE, "category_id": 2}]}, ["17", "category_id 2"]),
        ({"annotations": [{**FACE, "category_id": True}]}, ["17", "category_id True"]),
        ({"annotations": [{**FACE, "category_id": None}]}, ["17", "category_id None"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, 3]}]}, ["17", "[1, 2, 3]", "four finite"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, 3, "4"]}]}, ["17", "'4'", "four finite"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, 3, True]}]}, ["17", "True", "four finite"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, 3, float("nan")]}]}, ["17", "nan"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, float("inf"), 3]}]}, ["17", "inf"]),
        ({"annotations": [{**FACE, "bbox": [1, 2, 10**400, 3]}]}, ["17", "four finite"]),
        ({"annotations": [{**FACE, "bbox": None}]}, ["17", "None", "four finite"]),
        ({"annotations": [{**FACE, "bbox": {"x": 1}}]}, ["17", "'x'", "four finite"]),
        ({"annotations": [FACE, FACE]}, ["annotation id 17", "twice"]),
        ({"annotations": [{**FACE, "id": "17"}]}, ["'17'", "not an integer"]),
        ({"annotations": [{**FACE, "id": 2**63}]}, [str(2**63), "not an integer"]),
        ({"images": image("a.jpg") + image("b.jpg")}, ["image id 0", "twice"]),
        ({"images": image("/etc/passwd")}, ["annotation 17", "'/etc/passwd'", "outside"]),
        ({"images": image("Images/../../b.jpg")}, ["annotation 17", "../../b.jpg", "outside"]),
        ({"images": image("..")}, ["annotation 17", "'..'", "outside"]),
        ({"images": image("..\\b.jpg")}, ["annotation 17", "outside"]),
        ({"images": image("C:\\b.jpg")}, ["annotation 17", "outside"]),
        ({"images": image("")}, ["annotation 17", "not a file's name"]),
        ({"images": image(None)}, ["annotation 17", "None", "not a file's name"]),
        ({"images": image("a\0.jpg")}, ["annotation 17", "not a file's name"]),
        ({"images": image("a\n.jpg")}, ["annotation 17", "not a file's name"]),
        ({"images": image("\ud800.jpg")}, ["annotation 17", "not a file's name"]),
        ({"images": image("a.jpg") + image("/b.jpg", 9)}, ["image 9", "outside"]),
    ],
)
def test_bad_structure_is_refused_in_one_line_that_names_json_id_and_value(
    tmp_path, changes, words
):
    path = tmp_path / "Train_poly.json"
    path.write_text(json.dumps(content(**changes)))
    with pytest.raises(DataError) as caught:
        read_faces([path])
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "No such file"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "holds a list"),
        (b"{}", "missing key 'categories'"),
        (b"\x89PNG\r\n", "not JSON"),
    ],
)
def test_a_file_that_is_no_openforensics_json_is_refused_in_one_line(tmp_path, written, words):
    path = tmp_path / "a.json"
    if written is not None:
        path.write_bytes(written)
    with pytest.raises(DataError, match=words) as caught:
        read_faces([path])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_category_names_are_read_in_any_case(tmp_path):
    path = tmp_path / "a.json"
    names = [{"id": 1, "name": "fake"}, {"id": 0, "name": "REAL"}]
    path.write_text(json.dumps(content(categories=names)))
    assert len(read_faces([path])) == 1


@pytest.mark.parametrize("names", [("a/x.json", "b/x.json"), ("x y.json", "x_y.json")])
def test_two_jsons_that_would_share_crop_names_are_refused(tmp_path, names):
    paths = [write_json(tmp_path / name, ["p.jpg"], [FACE]) for name in names]
    with pytest.raises(DataError, match="rename one"):
        read_faces(paths)


def test_photos_are_found_by_full_name_without_images_and_by_base_name(tmp_path):
    for name in ("Images/Train/a.jpg", "Train/b.jpg", "Train/Train/c.jpg"):
        draw_photo(tmp_path / name)
    names = [f"Images/Train/{letter}.jpg" for letter in "abc"]
    assert resolve_photos(names, tmp_path) == {
        names[0]: tmp_path / "Images/Train/a.jpg",
        names[1]: tmp_path / "Train/b.jpg",
        names[2]: tmp_path / "Train/Train/c.jpg",
    }


def test_ambiguous_and_absent_photos_come_back_as_reasons(tmp_path):
    for name in ("Train/a.jpg", "Other/a.jpg"):
        draw_photo(tmp_path / name)
    too_long = "x" * 300 + ".jpg"
    assert resolve_photos(["Images/a.jpg", "no.jpg", too_long], tmp_path) == {
        "Images/a.jpg": "ambiguous: Other/a.jpg, Train/a.jpg",
        "no.jpg": "absent",
        too_long: "absent",
    }


def test_a_folder_is_not_a_photo(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    assert resolve_photos(["a.jpg"], tmp_path) == {"a.jpg": "absent"}


def test_the_photo_folder_is_walked_only_if_a_name_needs_it(tmp_path, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(openforensics.os, "walk", lambda root: walks.append(root) or walk(root))
    for name in ("Images/a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg"):
        draw_photo(tmp_path / name)
    resolve_photos(["Images/a.jpg", "Images/b.jpg"], tmp_path)
    assert walks == []
    resolve_photos(["Images/a.jpg", "c.jpg", "d.jpg"], tmp_path)
    assert walks == [tmp_path]


@pytest.mark.parametrize("link", ["Images/a.jpg", "elsewhere/a.jpg"])
def test_a_photo_that_is_a_link_out_of_the_folder_is_refused_by_name(tmp_path, link):
    draw_photo(tmp_path / "secret.jpg")
    inside = tmp_path / "photos" / link
    inside.parent.mkdir(parents=True)
    inside.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"'Images/a\.jpg' points outside"):
        resolve_photos(["Images/a.jpg"], tmp_path / "photos")


def test_a_photo_that_is_a_link_within_the_folder_is_taken(tmp_path):
    draw_photo(tmp_path / "photos/real.jpg")
    (tmp_path / "photos/a.jpg").symlink_to("real.jpg")
    (tmp_path / "way_in").symlink_to("photos")
    assert resolve_photos(["a.jpg"], tmp_path / "way_in") == {
        "a.jpg": tmp_path / "photos/real.jpg"
    }


def test_a_photo_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; set data\.photos_dir"):
        resolve_photos(["a.jpg"], tmp_path / "photos")


@pytest.mark.slow
def test_a_json_of_150_000_annotations_is_read_in_seconds(tmp_path):
    boxes = np.random.default_rng(0).integers(1, 500, (150_000, 4)).tolist()
    polygon = [[float(i) for i in range(40)]]
    faces = [
        face(i, i // 4, i % 2, box, iscrowd=0, segmentation=polygon) for i, box in enumerate(boxes)
    ]
    path = write_json(tmp_path / "big.json", [f"{i}.jpg" for i in range(37_500)], faces)
    start = time.monotonic()
    assert len(read_faces([path])) == 150_000
    assert time.monotonic() - start < 30
