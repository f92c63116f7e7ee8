"""A probability a face from pictures: the same as training's, and no picture stops the others."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from deepfake.config import DataConfig
from deepfake.data.feed import Faces
from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from deepfake.export import ExportedModel, load_exported
from deepfake.predict import BATCH_FACES, Prediction, Refused, predict
from study.cli.app import main
from tests.support.exported import draw_model
from tests.support.photos import draw_photo, draw_set, face, huge_png, write_json
from tests.support.runs import ENV, REPOSITORY

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> ExportedModel:
    draw_model(tmp_path / "model")
    return load_exported(tmp_path / "model", CPU)


def judged(model: ExportedModel, *pictures: Path, boxes: Path | None = None) -> list[Prediction]:
    found = list(predict(model, pictures, boxes))
    assert all(isinstance(one, Prediction) for one in found), found
    return found


def refused(model: ExportedModel, picture: Path, boxes: Path | None = None) -> str:
    (found,) = predict(model, [picture], boxes)
    assert isinstance(found, Refused)
    assert found.picture == str(picture)
    return found.reason


def probability(model: ExportedModel, face: Image.Image) -> float:
    """Of a face as Pillow has it, by torchvision's kind of steps."""
    side = model.info.side_px
    pixels = np.array(face.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    return float(model.probabilities(torch.from_numpy(pixels)[None])[0])


def jpeg(face: Image.Image) -> Image.Image:
    content = io.BytesIO()
    face.save(content, "JPEG", quality=95)
    return Image.open(content)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_a_face_of_the_data_set_has_the_probability_that_its_row_of_the_store_has(
    margin: float, tmp_path: Path
) -> None:
    boxes = draw_set(tmp_path / "photos", 12)
    data = DataConfig(
        annotations=(boxes,),
        photos_dir=tmp_path / "photos",
        work_dir=tmp_path / "faces",
        margin=margin,
    )
    prepare_data(data, sides=[32], processes=1)
    draw_model(tmp_path / "model", margin=margin)
    model = load_exported(tmp_path / "model", CPU)
    for split in ("train", "val"):
        faces = Faces.load(tmp_path / "faces", split, 32)
        expected = dict(
            zip(faces.table["cutted_name"], model.probabilities(faces.images), strict=True)
        )
        photos = [tmp_path / "photos" / name for name in faces.table["file_name"].unique()]
        by_box = {(one.picture, one.box): one for one in judged(model, *photos, boxes=boxes)}
        crops = [tmp_path / "faces/crops" / name for name in expected]
        whole = {Path(one.picture).name: one for one in judged(model, *crops)}
        assert len(by_box) == len(whole) == len(expected) > 2
        for row in faces.table.itertuples():
            stored = pytest.approx(expected[row.cutted_name].item(), abs=1e-6)
            photo, box = str(tmp_path / "photos" / row.file_name), tuple(json.loads(row.bbox))
            assert by_box[photo, box].probability == stored
            assert whole[row.cutted_name].probability == stored  # the crop that prepare cut


def test_a_whole_picture_that_is_no_jpeg_is_compressed_as_training_compressed_its_faces(
    model: ExportedModel, tmp_path: Path
) -> None:
    drawn = draw_photo(tmp_path / "photo.jpg")
    drawn.save(tmp_path / "photo.png")
    (from_png,) = judged(model, tmp_path / "photo.png")
    (from_jpeg,) = judged(model, tmp_path / "photo.jpg")
    assert from_png.probability == pytest.approx(probability(model, jpeg(drawn)), abs=1e-9)
    assert from_jpeg.probability == pytest.approx(
        probability(model, Image.open(tmp_path / "photo.jpg")), abs=1e-9
    )


def test_the_verdict_is_fake_from_the_threshold_on(tmp_path: Path) -> None:
    draw_photo(tmp_path / "photo.jpg")
    draw_model(tmp_path / "model")
    (found,) = judged(load_exported(tmp_path / "model", CPU), tmp_path / "photo.jpg")
    for name, threshold, verdict in (
        ("at", found.probability, "fake"),
        ("above", np.nextafter(found.probability, 1), "real"),
    ):
        draw_model(tmp_path / name, threshold=float(threshold))
        (again,) = judged(load_exported(tmp_path / name, CPU), tmp_path / "photo.jpg")
        assert (again.probability, again.verdict) == (found.probability, verdict)


def test_a_picture_that_can_not_be_read_is_named_and_the_others_are_judged(
    model: ExportedModel, tmp_path: Path
) -> None:
    good = tmp_path / "good.jpg"
    draw_photo(good)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[:700])
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    huge = huge_png(tmp_path / "huge.png")
    pictures = [tmp_path / "absent.jpg", good, cut, text, huge, tmp_path, good]
    found = list(predict(model, pictures))
    assert [one.picture for one in found] == [str(picture) for picture in pictures]
    reasons = [one.reason if isinstance(one, Refused) else "" for one in found]
    assert reasons[0] == "No such file or directory"
    assert "truncated" in reasons[2]
    assert reasons[3:6] == [
        "not a picture that Pillow can read",
        "over 200 megapixels: data.max_photo_megapixels is the limit",
        "Is a directory",
    ]
    assert isinstance(found[1], Prediction)
    assert found[6] == found[1]


def test_boxes_that_can_not_be_cut_are_named_and_small_ones_are_noted(
    model: ExportedModel, tmp_path: Path
) -> None:
    draw_photo(tmp_path / "a.jpg")  # 96 x 64
    boxes = write_json(
        tmp_path / "boxes.json",
        ["Images/a.jpg"],
        [
            face(0, 0, 1, [0, 0, 30, 30]),
            face(1, 0, 1, [200, 0, 30, 30]),
            face(2, 0, 0, [90, 0, 30, 30]),  # 6 px of it lie in the picture
        ],
    )
    whole, outside, small = predict(model, [tmp_path / "a.jpg"], boxes)
    assert isinstance(whole, Prediction)
    assert (whole.box, whole.note) == ((0, 0, 30, 30), None)
    assert isinstance(outside, Refused)
    assert outside.reason == "box [200, 0, 30, 30] is outside the picture"
    assert isinstance(small, Prediction)
    assert small.note == "under 16 px: training saw no face so small"


def test_pictures_of_one_name_are_told_apart_by_their_folders(
    model: ExportedModel, tmp_path: Path
) -> None:
    names = ["Images/a/x.jpg", "Images/b/x.jpg", "Images/a/y.jpg"]
    boxes = write_json(
        tmp_path / "boxes.json",
        names,
        [face(i, i, 0, [i, 0, 30, 30]) for i in range(3)],
    )
    for seed, name in enumerate([*names, "x.jpg", "elsewhere/y.jpg", "z.jpg"]):
        draw_photo(tmp_path / name, seed)
    for i, name in enumerate(names):
        (found,) = judged(model, tmp_path / name, boxes=boxes)
        assert found.box == (i, 0, 30, 30)
    (moved,) = judged(model, tmp_path / "elsewhere/y.jpg", boxes=boxes)
    assert moved.box == (2, 0, 30, 30)
    assert refused(model, tmp_path / "x.jpg", boxes).endswith(
        "lists several pictures of this name; give a path that ends in one of them: "
        "Images/a/x.jpg, Images/b/x.jpg"
    )
    assert refused(model, tmp_path / "z.jpg", boxes) == f"{boxes} lists no face in this picture"


def test_of_two_names_that_a_path_ends_in_the_longer_counts(
    model: ExportedModel, tmp_path: Path
) -> None:
    boxes = write_json(
        tmp_path / "boxes.json",
        ["x.jpg", "Images/x.jpg"],
        [face(0, 0, 0, [0, 0, 30, 30]), face(1, 1, 0, [1, 0, 30, 30])],
    )
    draw_photo(tmp_path / "Images/x.jpg")
    (found,) = judged(model, tmp_path / "Images/x.jpg", boxes=boxes)
    assert found.box == (1, 0, 30, 30)


def test_more_faces_than_a_batch_keep_their_order_and_their_figures(
    model: ExportedModel, tmp_path: Path
) -> None:
    n = 2 * BATCH_FACES + 3
    boxes = write_json(
        tmp_path / "boxes.json",
        ["x.jpg", "y.jpg"],
        [face(i, i % 2, 0, [i % 60, i % 30, 20 + i % 9, 30]) for i in range(n)],
    )
    pictures = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    photos = [draw_photo(path, seed) and Image.open(path) for seed, path in enumerate(pictures)]
    found = judged(model, *pictures, boxes=boxes)
    order = [*range(0, n, 2), *range(1, n, 2)]
    assert [one.box for one in found] == [(i % 60, i % 30, 20 + i % 9, 30) for i in order]
    for i, one in list(zip(order, found, strict=True))[::10]:
        x, y, w, h = one.box or ()
        crop = jpeg(photos[i % 2].convert("RGB").crop((x, y, x + w, min(y + h, 64))))
        assert one.probability == pytest.approx(probability(model, crop), abs=1e-6)


def test_boxes_that_are_no_openforensics_json_are_one_line(
    model: ExportedModel, tmp_path: Path
) -> None:
    draw_photo(tmp_path / "a.jpg")
    (tmp_path / "boxes.json").write_text("{}")
    with pytest.raises(DataError, match=r"boxes.json: missing key 'images'"):
        list(predict(model, [tmp_path / "a.jpg"], tmp_path / "boxes.json"))
    with pytest.raises(DataError, match=r"absent.json: No such file .*--boxes"):
        list(predict(model, [tmp_path / "a.jpg"], tmp_path / "absent.json"))


def test_a_whole_picture_is_turned_as_its_orientation_tag_says(
    model: ExportedModel, tmp_path: Path
) -> None:
    drawn = draw_photo(tmp_path / "upright.png")
    stored = drawn.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "stored.png", exif=tagged(6))
    upright, turned = judged(model, tmp_path / "upright.png", tmp_path / "stored.png")
    assert turned.probability == upright.probability


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_boxes_count_where_they_were_annotated_turned_or_at_another_size(
    model: ExportedModel, tmp_path: Path
) -> None:
    drawn = draw_photo(tmp_path / "plain.png")
    drawn.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=tagged(6))
    drawn.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "unclear.png", exif=tagged(3))
    names = ["plain.png", "turned.png", "large.png", "unclear.png"]
    large = [20, 12, 60, 80]
    boxes = [face(i, i, 0, large if i == 2 else [10, 6, 30, 40]) for i in range(4)]
    path = write_json(tmp_path / "boxes.json", names, boxes)
    content = json.loads(path.read_text())
    for image in content["images"]:
        times = 2 if image["id"] == 2 else 1
        image |= {"width": times * drawn.width, "height": times * drawn.height}
    path.write_text(json.dumps(content))
    drawn.save(tmp_path / "large.png")
    found = judged(model, *(tmp_path / name for name in names), boxes=path)
    assert len({one.probability for one in found[:3]}) == 1
    assert [one.box for one in found[:3]] == [(10, 6, 30, 40)] * 2 + [(20, 12, 60, 80)]
    assert [one.note for one in found] == [
        None,
        None,
        "of another size than its boxes, which are scaled",
        "has an orientation tag: its boxes are taken for those of the stored picture",
    ]
    drawn.crop((0, 0, 80, 64)).save(tmp_path / "plain.png")
    reason = refused(model, tmp_path / "plain.png", path)
    assert reason == "size differs: 80 x 64 px, annotated as 96 x 64"


def test_a_detectors_boxes_are_taken_whatever_it_calls_them(
    model: ExportedModel, tmp_path: Path
) -> None:
    draw_photo(tmp_path / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 30, 30], "category_id": 7}],
        "categories": [{"id": 7, "name": "face"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    (named,) = judged(model, tmp_path / "a.jpg", boxes=tmp_path / "boxes.json")
    assert named.box == (0, 0, 30, 30)
    del content["categories"], content["annotations"][0]["category_id"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert judged(model, tmp_path / "a.jpg", boxes=tmp_path / "boxes.json") == [named]


def test_a_detectors_boxes_in_another_format_are_refused_and_taken_with_the_option(
    model: ExportedModel, tmp_path: Path
) -> None:
    draw_photo(tmp_path / "a.jpg")
    faces = [face(i, 0, 1, [40 + i, 20, 70 + i, 50], area=900) for i in range(3)]
    path = write_json(tmp_path / "boxes.json", ["a.jpg"], faces)
    with pytest.raises(DataError, match="--box-format xyxy"):
        list(predict(model, [tmp_path / "a.jpg"], path))
    taken = list(predict(model, [tmp_path / "a.jpg"], path, "xyxy"))
    boxes = [one.box for one in taken if isinstance(one, Prediction)]
    assert boxes == [(40, 20, 30, 30), (41, 20, 30, 30), (42, 20, 30, 30)]


def test_a_picture_gets_the_boxes_of_its_base_name_only_if_no_other_has_them(
    model: ExportedModel, tmp_path: Path
) -> None:
    for name in ("real/0.jpg", "fake/0.jpg", "old/0.jpg"):
        draw_photo(tmp_path / name)
    boxes = write_json(tmp_path / "boxes.json", ["fake/0.jpg"], [face(0, 0, 1, [0, 0, 30, 30])])
    fake, real = predict(model, [tmp_path / "fake/0.jpg", tmp_path / "real/0.jpg"], boxes)
    assert isinstance(fake, Prediction)
    assert real == Refused(str(tmp_path / "real/0.jpg"), f"{boxes} lists no face in this picture")
    for one in predict(model, [tmp_path / "real/0.jpg", tmp_path / "old/0.jpg"], boxes):
        assert isinstance(one, Refused)
        assert one.reason == (
            f"{boxes} lists fake/0.jpg, which several of the pictures could be; give a path that"
            " ends in it"
        )
    (alone,) = judged(model, tmp_path / "old/0.jpg", boxes=boxes)
    assert alone.note == "its boxes are those of fake/0.jpg, by the base name alone"


@pytest.mark.parametrize("name", ["Images\\Train\\e\u0301.jpg", "Images/Train/\u00e9.JPG"])
def test_boxes_are_found_by_names_as_other_systems_write_them(
    model: ExportedModel, tmp_path: Path, name: str
) -> None:
    draw_photo(tmp_path / "Train/\u00e9.jpg")
    boxes = write_json(tmp_path / "boxes.json", [name], [face(0, 0, 0, [0, 0, 30, 30])])
    (found,) = judged(model, tmp_path / "Train/\u00e9.jpg", boxes=boxes)
    assert found.note is None


# the command


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["deepfake-study", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_prints_a_table_and_its_exit_code_says_whether_all_were_judged(
    model: ExportedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = tmp_path / "good.jpg"
    draw_photo(good)
    (expected,) = judged(model, good)
    assert called(monkeypatch, tmp_path / "model", good) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "good.jpg" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        str(good),
        "whole",
        f"{expected.probability:.3f}",
        expected.verdict,
    ]
    assert called(monkeypatch, tmp_path / "model", tmp_path / "absent.jpg", good, "--json") == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["faces"] == [
        {
            "picture": str(good),
            "box": None,
            "probability": expected.probability,
            "verdict": expected.verdict,
            "note": None,
        }
    ]
    assert document["model"]["weights_sha256"] == model.info.weights_sha256
    assert document["refused"][0]["picture"] == str(tmp_path / "absent.jpg")
    assert err == f"error: {tmp_path}/absent.jpg: No such file or directory\n"


@pytest.mark.slow
def test_the_command_loads_nothing_of_the_search(model: ExportedModel, tmp_path: Path) -> None:
    draw_photo(tmp_path / "photo.jpg")
    code = (
        "import sys; from study.cli.app import app\n"
        f"try: app(['predict', {str(tmp_path / 'model')!r}, {str(tmp_path / 'photo.jpg')!r}])\n"
        "except SystemExit as ended: print(ended.code, [m for m in ('mlflow', 'optuna',"
        " 'sqlalchemy', 'matplotlib', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENV, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model", "photo.jpg"}  # nothing written
