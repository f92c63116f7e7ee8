"""The drawn data set: a seed's bytes, OpenForensics' shape, no shortcut to the label."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepfake.config import FAKE, REAL
from deepfake.data.layouts.openforensics import read_faces
from deepfake.sample.dataset import draw_sample, seed_of

PHOTOS = 12


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("sample"), PHOTOS, seed=0)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("many"), 300, seed=0)


def read(annotations_json: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(annotations_json.read_bytes())
    return document


def contents(annotations_json: Path) -> dict[str, bytes]:
    folder = annotations_json.parent
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_photos_tell_the_seed_they_were_drawn_by(drawn: Path, tmp_path: Path) -> None:
    names = {image["id"]: image["file_name"] for image in read(drawn)["images"]}
    assert seed_of(names) == 0
    other = read(draw_sample(tmp_path, 2, seed=3))["images"]
    assert seed_of({image["id"]: image["file_name"] for image in other}) == 3
    assert seed_of(names | {5: other[0]["file_name"]}) is None
    assert seed_of({0: "Images/Train/a.jpg"}) is None
    assert seed_of({}) is None


def test_the_same_seed_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    assert contents(draw_sample(tmp_path, PHOTOS, seed=0)) == contents(drawn)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(drawn: Path, tmp_path: Path) -> None:
    assert contents(draw_sample(tmp_path, PHOTOS, seed=0, processes=2)) == contents(drawn)


def test_another_seed_shares_no_photo(drawn: Path, tmp_path: Path) -> None:
    other = contents(draw_sample(tmp_path, 2, seed=1))
    assert not set(other.values()) & set(contents(drawn).values())
    assert set(other) & set(contents(drawn)) == {"Train_poly.json"}


def test_a_larger_sample_begins_with_the_smaller_one(drawn: Path, tmp_path: Path) -> None:
    few = contents(draw_sample(tmp_path, 3, seed=0))
    del few["Train_poly.json"]
    assert len(few) == 3
    assert few.items() <= contents(drawn).items()


def test_progress_is_told_after_each_photo(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    draw_sample(tmp_path, 3, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_draw_leaves_no_json_not_even_an_older_one(tmp_path: Path) -> None:
    draw_sample(tmp_path, 1)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path, 2, progress=interrupt)
    assert list(tmp_path.glob("*.json*")) == []


def test_no_photo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="photos is 0"):
        draw_sample(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_json_has_the_shape_of_openforensics(drawn: Path) -> None:
    document = read(drawn)
    assert drawn.name == "Train_poly.json"
    assert document["categories"] == [{"id": 0, "name": "Real"}, {"id": 1, "name": "Fake"}]
    assert len(document["images"]) == PHOTOS
    for image in document["images"]:
        assert set(image) == {"id", "file_name", "width", "height"}
        assert Path(image["file_name"]).parent == Path("Images/Train")
        with Image.open(drawn.parent / image["file_name"]) as photo:
            assert (photo.format, photo.size) == ("JPEG", (image["width"], image["height"]))
    for number, face in enumerate(document["annotations"]):
        assert set(face) == {
            *("id", "image_id", "category_id", "iscrowd"),
            *("area", "bbox", "segmentation"),
        }
        assert (face["id"], face["iscrowd"]) == (number, 0)


def test_the_project_reads_every_face_of_it(drawn: Path) -> None:
    assert len(read_faces([drawn])) == len(read(drawn)["annotations"])


def test_each_photo_holds_two_to_four_faces(drawn: Path) -> None:
    photos = [face["image_id"] for face in read(drawn)["annotations"]]
    assert set(photos) == set(range(PHOTOS))
    assert {photos.count(photo) for photo in photos} == {2, 3, 4}


def test_boxes_lie_inside_their_photos_and_hold_their_polygons(drawn: Path) -> None:
    document = read(drawn)
    for face in document["annotations"]:
        image = document["images"][face["image_id"]]
        left, top, width, height = face["bbox"]
        assert 0 <= left < left + width <= image["width"]
        assert 0 <= top < top + height <= image["height"]
        x, y = np.reshape(face["segmentation"][0], (-1, 2)).T
        assert left <= x.min() < left + 1
        assert left + width - 1 < x.max() <= left + width
        assert top <= y.min() < top + 1
        assert top + height - 1 < y.max() <= top + height
        assert 0.5 < face["area"] / (width * height) < np.pi / 4 + 0.05  # an ellipse has pi / 4


def auc(features: NDArray[np.float64], faces: list[dict[str, Any]]) -> float:
    """What a logistic regression tells of faces of photos it was not fitted on."""
    labels = np.array([face["category_id"] for face in faces])
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression()),
        features,
        labels,
        groups=[face["image_id"] for face in faces],
        cv=GroupKFold(5),
        method="decision_function",
    )
    return float(roc_auc_score(labels, scores))


def crops(annotations_json: Path, document: dict[str, Any]) -> list[Image.Image]:
    found = []
    for face in document["annotations"]:
        x, y, w, h = face["bbox"]
        file_name = document["images"][face["image_id"]]["file_name"]
        with Image.open(annotations_json.parent / file_name) as photo:
            found.append(photo.crop((x, y, x + w, y + h)))
    return found


@pytest.mark.slow
def test_about_half_of_the_faces_are_fake_and_most_photos_hold_both(many: Path) -> None:
    faces = read(many)["annotations"]
    labels = [face["category_id"] for face in faces]
    assert 0.46 < labels.count(FAKE) / len(labels) < 0.54
    kinds = {(face["image_id"], face["category_id"]) for face in faces}
    both = [photo for photo in range(300) if {(photo, REAL), (photo, FAKE)} <= kinds]
    assert len(both) > 150


@pytest.mark.slow
def test_neither_boxes_nor_colours_tell_the_label(many: Path) -> None:
    document = read(many)
    faces = document["annotations"]
    photos = [document["images"][face["image_id"]] for face in faces]
    sizes = np.array([[photo["width"], photo["height"]] for photo in photos], float)
    boxes = np.array([face["bbox"] for face in faces], float)
    aspect, area = boxes[:, 2] / boxes[:, 3], boxes[:, 2] * boxes[:, 3] / sizes.prod(axis=1)
    assert auc(np.column_stack([boxes, sizes, aspect, area]), faces) < 0.56
    pixels = [np.asarray(crop, float).reshape(-1, 3) for crop in crops(many, document)]
    colours = np.array([[*each.mean(axis=0), *each.std(axis=0)] for each in pixels])
    assert auc(colours, faces) < 0.64


@pytest.mark.slow
def test_a_swap_has_lost_detail_in_the_middle_of_the_face(many: Path) -> None:
    document = read(many)

    def detail(face: Image.Image) -> list[float]:
        grey = face.convert("L").resize((64, 64))
        fine = np.asarray(grey, float) - np.asarray(grey.filter(ImageFilter.GaussianBlur(1.5)))
        cheek, forehead = fine[34:44, 12:52], fine[14:20, 20:44]
        return [float(np.log(part.std())) for part in (fine, cheek, forehead)]

    features = np.array([detail(face) for face in crops(many, document)])
    assert 0.6 < auc(features, document["annotations"]) < 0.9
