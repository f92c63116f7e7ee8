import json
import time

import numpy as np
import pytest

from deepfake.config import FAKE, REAL
from deepfake.data.layouts import COLUMNS, SIZE
from deepfake.data.layouts.openforensics import read_annotations, read_faces
from deepfake.errors import DataError
from tests.support.photos import CATEGORIES, face, write_json


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
    assert tuple(table.columns) == (*COLUMNS, *SIZE)
    assert table[list(COLUMNS)].to_numpy().tolist() == [
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
    assert read_annotations([path]).file_names == ("x.jpg", "y.jpg", "z.jpg")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, ["'images'", "None"]),
        ({"annotations": [3]}, ["annotations[0]", "3"]),
        ({"annotations": []}, ["no face"]),
        ({"categories": [{"id": 0, "name": "Fake"}, {"id": 1, "name": "True"}]}, ["(0, 'fake')"]),
        ({"categories": [*CATEGORIES, {"id": 1.0, "name": "Real"}]}, ["1", "'fake'", "'real'"]),
        ({"categories": [{"id": 0, "name": "Real"}]}, ["categories", "1 = Fake"]),
        ({"annotations": [without(FACE, "bbox")]}, ["17", "missing key 'bbox'"]),
        ({"annotations": [without(FACE, "image_id")]}, ["17", "missing key 'image_id'"]),
        ({"annotations": [FACE, without(FACE, "id")]}, ["[1]", "missing key 'id'"]),
        ({"images": [{"id": 0}]}, ["images id 0", "missing key 'file_name'"]),
        ({"annotations": [{**FACE, "image_id": 5}]}, ["17", "image_id 5", "no entry"]),
        ({"annotations": [{**FACE, "image_id": [0]}]}, ["17", "image_id [0]"]),
        ({"annotations": [{**FACE, "category_id": 2}]}, ["17", "category_id 2", "no category"]),
        (
            {
                "annotations": [{**FACE, "category_id": 2}],
                "categories": [*CATEGORIES, {"id": 2, "name": "Mask"}],
            },
            ["17", "category_id 2", "'mask'"],
        ),
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
        ({"annotations": [{**FACE, "id": "17a"}]}, ["'17a'", "not an integer"]),
        ({"annotations": [{**FACE, "id": 17.5}]}, ["17.5", "not an integer"]),
        ({"annotations": [{**FACE, "id": True}]}, ["True", "not an integer"]),
        ({"annotations": [{**FACE, "id": 2.0**53}]}, ["9007199254740992", "not an integer"]),
        ({"annotations": [FACE, {**FACE, "id": "17"}]}, ["annotation id 17", "twice"]),
        ({"annotations": [{**FACE, "iscrowd": 1}]}, ["no face", "iscrowd"]),
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


def test_a_label_is_its_categorys_name_whatever_the_number(tmp_path):
    names = [{"id": 0, "name": "Fake"}, {"id": "7", "name": "real "}, {"id": 3, "name": "Mask"}]
    faces = [{**FACE, "id": 1, "category_id": 0}, {**FACE, "id": 2, "category_id": 7}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(categories=names, annotations=faces)))
    read = read_annotations([path])
    assert read.faces["category_id"].tolist() == [FAKE, REAL]
    assert read.mended == {"labels read by their category's name": 2}


def test_ids_that_other_tools_write_as_decimals_or_text_are_read(tmp_path):
    faces = [{**FACE, "id": 1.0, "image_id": "0", "category_id": "1"}, {**FACE, "id": 2}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(images=image("x.jpg", 0.0), annotations=faces)))
    read = read_annotations([path])
    assert read.faces["cutted_name"].tolist() == ["a_0_1.jpg", "a_0_2.jpg"]
    assert read.faces["category_id"].tolist() == [1, FACE["category_id"]]
    assert read.mended == {"ids read from text or decimals": 3}


@pytest.mark.parametrize("crowd", [{"iscrowd": 1}, {"is_crowd": True}, {"iscrowd": "1"}])
def test_a_region_of_many_is_left_out_by_name(tmp_path, crowd):
    region = {**FACE, "id": 18, "category_id": None, "bbox": None, **crowd}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(annotations=[FACE, region])))
    read = read_annotations([path])
    assert read.faces["id_x"].tolist() == [17]
    assert read.left_out[["cutted_name", "reason"]].to_numpy().tolist() == [
        ["a_0_18.jpg", "iscrowd: a region of many"]
    ]


def test_a_photos_size_is_that_of_the_json_where_it_has_one(tmp_path):
    sizes = [{"width": 96, "height": 64.0}, {}, {"width": None, "height": "tall"}]
    images = [{"id": i, "file_name": f"{i}.jpg", **size} for i, size in enumerate(sizes)]
    faces = [{**FACE, "id": i, "image_id": i} for i in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(images=images, annotations=faces)))
    found = read_faces([path])[list(SIZE)]
    assert found.iloc[0].tolist() == [96, 64]
    assert found.iloc[1:].isna().all(axis=None)


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
