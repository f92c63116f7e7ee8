import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from deepfake.config import BOX_FORMATS as FORMATS
from deepfake.data.check import Boxes, as_xywh, check_boxes, check_labels
from deepfake.data.layouts.openforensics import read_annotations, read_faces
from deepfake.errors import DataError
from tests.support.photos import CATEGORIES, face

SIZE = (400, 300)
PATH = Path("a.json")
WHOLE = [(x, y, 60, 80) for x, y in product(range(10, 330, 40), range(5, 215, 40))]  # xywh


def written(box, face_px):
    x, y, w, h = face_px
    numbers, _, shares = box.partition("_")
    first = [x + w / 2, y + h / 2] if numbers == "cxcywh" else [x, y]
    second = [x + w, y + h] if numbers == "xyxy" else [w, h]
    sides = (*SIZE, *SIZE) if shares else (1, 1, 1, 1)
    return [value / side for value, side in zip([*first, *second], sides, strict=True)]


def boxes(box, faces=WHOLE, sizes=True, area=None, outlines=False):
    n = len(faces)
    px = np.array(faces, float)
    return Boxes(
        [written(box, face_px) for face_px in faces],
        np.full((n, 2), SIZE if sizes else np.nan, float),
        np.full(n, np.nan) if area is None else area * px[:, 2] * px[:, 3],
        np.hstack([px[:, :2], px[:, :2] + px[:, 2:]]) if outlines else np.full((n, 4), np.nan),
    )


def check(found, box=None):
    return check_boxes(PATH, found, range(len(found.numbers)), box)


@pytest.mark.parametrize("more", [{}, {"area": 1.0}, {"area": 0.7}, {"outlines": True}])
@pytest.mark.parametrize("box", FORMATS)
def test_boxes_in_another_format_are_refused_by_the_name_of_theirs(box, more):
    if box == "xywh":
        assert check(boxes(box, **more)) == []
        return
    with pytest.raises(DataError, match=rf"set data\.box: {box}(\b|$)") as caught:
        check(boxes(box, **more))
    assert "\n" not in str(caught.value)
    assert check(boxes(box, **more), box) == []


@pytest.mark.parametrize("box", FORMATS)
def test_a_format_that_was_chosen_wrongly_is_refused(box):
    for chosen in FORMATS:
        found = boxes(box, outlines=True)
        if chosen != box:
            with pytest.raises(DataError, match=rf"set data\.box: {box}"):
                check(found, chosen)


@pytest.mark.parametrize("box", FORMATS)
def test_every_format_becomes_the_same_boxes(box):
    assert np.array_equal(as_xywh(PATH, boxes(box), range(len(WHOLE)), box), WHOLE)


def test_boxes_that_are_xywh_stay_as_they_are_written():
    found = boxes("xywh", [(1, 2.25, 30, 40)])
    assert as_xywh(PATH, found, [0], None) is found.numbers


def test_what_nothing_tells_is_refused_of_many_boxes_and_said_of_few():
    near = [(x, y, 60, 80) for x in range(5, 30, 5) for y in (5, 15, 25, 35)]  # corners as well
    with pytest.raises(DataError, match=r"nothing tells .*; set data\.box .* to xywh or xyxy$"):
        check(boxes("xywh", near))
    (warning,) = check(boxes("xywh", near[:19]))
    assert "nothing tells" in warning
    assert check(boxes("xywh", near), "xywh") == []
    assert check(boxes("xywh", near, area=1.0)) == []


def test_a_box_that_as_corners_had_no_faces_shape_can_only_be_a_corner_and_a_size():
    assert check(boxes("xywh", [(10, 30, 40, 40)] * 24)) == []  # as corners 30 x 10 px


def test_whole_photos_are_the_same_boxes_as_corners():
    assert check(boxes("xywh", [(0, 0, 400, 300)] * 24)) == []


def test_an_area_or_outline_that_fits_no_format_tells_nothing():
    found = boxes("xywh", area=9.0)
    assert check(found) == []
    assert check(Boxes(found.numbers, found.sizes, found.areas, found.outlines + 1000)) == []


def test_boxes_outside_their_photos_past_one_in_ten_are_said_with_the_likely_cause():
    twice = [tuple(2 * value for value in face_px) for face_px in WHOLE]
    (warning,) = check(boxes("xywh", twice))  # of 8 columns 4 stay inside, of 6 rows 2
    assert "40 of 48 boxes reach out of their photos" in warning
    assert "another size" in warning
    assert check(boxes("xywh", WHOLE + twice[-4:])) == []


def test_boxes_of_two_tools_in_one_file_are_said():
    found = boxes("xywh", WHOLE, area=1.0)
    found.numbers[::3] = [written("xyxy", face_px) for face_px in WHOLE[::3]]
    warning, _ = check(found)
    assert "16 of 48 boxes can't be x, y, width, height" in warning


def test_numbers_beyond_all_photos_are_no_reason_to_fail():
    found = boxes("xywh")
    found.numbers[0] = [1e308, -1e308, 1e308, 0.0]
    assert check(found) == []


def test_shares_of_a_photo_without_a_size_are_refused_by_name():
    found = boxes("xywh_shares", sizes=False)
    with pytest.raises(DataError, match=r"annotation 0: .* no width and height .*xywh_shares"):
        as_xywh(PATH, found, range(len(WHOLE)), "xywh_shares")


def test_a_box_beyond_all_numbers_is_refused_by_name():
    found = boxes("cxcywh", [(1, 2, 30, 40)])
    found.numbers[0] = [1.7e308, 0, 1.7e308, 1]
    with pytest.raises(DataError, match=r"annotation 7: .*beyond all photos"):
        as_xywh(PATH, found, [7], "cxcywh")


def faces_json(folder, annotations, images=None):
    path = folder / "a.json"
    images = images or [{"id": 0, "file_name": "x.jpg", "width": SIZE[0], "height": SIZE[1]}]
    content = {"categories": CATEGORIES, "images": images, "annotations": annotations}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("spelt", [lambda polygon: polygon, lambda polygon: [polygon]])
def test_polygons_of_the_json_tell_in_both_spellings(tmp_path, spelt):
    near = [(x, y, 60, 80) for x in (10, 20, 30) for y in (5, 15)]
    annotations = [
        face(i, 0, 1, [x, y, x + w, y + h], segmentation=spelt([x, y, x + w, y, x, y + h]))
        for i, (x, y, w, h) in enumerate(near)
    ]
    path = faces_json(tmp_path, annotations)
    with pytest.raises(DataError, match=r"set data\.box: xyxy"):
        read_faces([path])
    read = read_annotations([path], "xyxy")
    assert read.faces["bbox"].map(json.loads).map(tuple).tolist() == near
    assert read.mended == {"boxes read as xyxy": 6}


@pytest.mark.parametrize(
    "segmentation", ["x", {"counts": [1]}, [[]], [1], [["a", 2]], [[1, 2, 3]]]
)
def test_what_is_no_polygon_tells_nothing(tmp_path, segmentation):
    path = faces_json(tmp_path, [face(0, 0, 1, [1, 2, 30, 40], segmentation=segmentation)])
    assert len(read_faces([path])) == 1


def test_one_box_with_two_labels_is_refused_naming_both(tmp_path):
    twice = [face(3, 0, 0, [1, 2, 30, 40]), face(8, 0, 1, [1.2, 2, 30, 40.1])]
    faces = read_faces([faces_json(tmp_path, [face(1, 0, 1, [90, 90, 9, 9]), *twice])])
    with pytest.raises(DataError) as caught:
        check_labels(faces, faces["file_name"].tolist())
    for part in ("x.jpg", "annotation 3 of a is real", "annotation 8 of a is fake", "remove one"):
        assert part in str(caught.value)


def test_the_same_box_in_two_photos_or_twice_with_one_label_is_no_fault(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(2)]
    annotations = [face(i, i % 2, i % 2, [1, 2, 30, 40]) for i in range(4)]
    faces = read_faces([faces_json(tmp_path, annotations, images)])
    check_labels(faces, faces["file_name"].tolist())
