"""What the HTML report shows of the data, of photos that are drawn and of others."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from deepfake.config import SEEN, DataConfig
from deepfake.data.prepare import Prepared, prepare_data
from deepfake.data.splits import read_split
from deepfake.sample.dataset import draw_sample
from study.report.data_section import FACES, data_sheet
from tests.support.photos import draw_set


def config_of(folder: Path, annotations_json: Path) -> DataConfig:
    return DataConfig(
        annotations=(annotations_json,),
        photos_dir=annotations_json.parent,
        work_dir=folder / "faces",
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Prepared]:
    folder = tmp_path_factory.mktemp("drawn")
    data = config_of(folder, draw_sample(folder / "sample", 24, seed=7))
    return data, prepare_data(data)


def test_faces_of_train_and_val_are_shown_and_none_of_test(
    drawn: tuple[DataConfig, Prepared],
) -> None:
    data, prepared = drawn
    content, _ = data_sheet(data, prepared)
    sheets = content["sheets"]
    assert [(s["split"], s["label"]) for s in sheets] == [
        ("train", "real"),
        ("train", "fake"),
        ("val", "real"),
        ("val", "fake"),
    ]
    for sheet in sheets:
        assert sheet["of"] == prepared.summary.splits[sheet["split"]][sheet["label"]]
        assert len(sheet["faces"]) == min(FACES, sheet["of"])
        table = read_split(prepared.work_dir, sheet["split"])
        label = ("real", "fake").index(sheet["label"])
        mine = set(table.loc[table["category_id"] == label, "cutted_name"])
        assert {face["name"] for face in sheet["faces"]} <= mine
    face = sheets[0]["faces"][0]
    with Image.open(io.BytesIO(base64.b64decode(face["jpeg"]))) as picture:
        assert picture.size == face["size"]
        assert max(picture.size) <= 96


def test_the_contact_sheet_is_shown_as_prepare_drew_it(
    drawn: tuple[DataConfig, Prepared], tmp_path: Path
) -> None:
    data, prepared = drawn
    sheet = data_sheet(data, prepared)[0]["contact_sheet"]
    content = base64.b64decode(sheet["jpeg"])
    assert content == (prepared.work_dir / "contact_sheet.jpg").read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == sheet["size"]
    older = shutil.copytree(prepared.work_dir, tmp_path / "older")
    (older / "contact_sheet.jpg").unlink()
    assert data_sheet(data, replace(prepared, work_dir=older))[0]["contact_sheet"] is None


def test_the_same_splits_show_the_same_faces_and_others_do_not(
    drawn: tuple[DataConfig, Prepared],
) -> None:
    data, prepared = drawn
    again = replace(prepared, splits_sha256="f" * 64)
    first, second, other = (data_sheet(data, p)[0]["sheets"] for p in (prepared, prepared, again))
    assert first == second
    assert first[0]["faces"] != other[0]["faces"]


def test_drawn_photos_say_how_they_are_drawn_again(drawn: tuple[DataConfig, Prepared]) -> None:
    content, _ = data_sheet(*drawn)
    assert content["drawn"] == "--photos 24 --seed 7"


def test_sizes_are_shares_of_each_label_and_photos_of_others_are_not_called_drawn(
    tmp_path: Path,
) -> None:
    data = config_of(tmp_path, draw_set(tmp_path / "photos", 20))  # real 24 px, fake 30 px
    prepared = prepare_data(data)
    names = read_split(prepared.work_dir, "train")["cutted_name"]
    for name in names:
        (prepared.work_dir / "crops" / name).unlink()
    content, figure = data_sheet(data, prepared)
    assert content["drawn"] is None
    assert [row["px"] for row in content["sizes"]] == [[24] * 3, [30] * 3] * 2
    assert [(list(bars.x), list(bars.y)) for bars in figure.data] == [(["23 to 32"], [1.0])] * 2
    assert [list(bars.customdata) for bars in figure.data] == [
        [sum(prepared.summary.splits[split][label] for split in SEEN)]
        for label in ("real", "fake")
    ]
    gone = {face["jpeg"] for sheet in content["sheets"][:2] for face in sheet["faces"]}
    assert gone == {None}
