"""OpenForensics' own splits: each JSON has its split, and there may be more test sets than one."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deepfake.audit.leaks import audit
from deepfake.config import DataConfig
from deepfake.data.feed import Faces
from deepfake.data.prepare import load_prepared, prepare_data
from deepfake.data.splits import Opening, SplitClosed, read_split
from deepfake.errors import DataError
from deepfake.timing import measure_data
from study.config.load import load_config
from study.config.schema import public_yaml
from study.config.siblings import ARMS, split_by
from study.evaluation.analysis import analyse
from study.evaluation.leak import write_seen
from study.evaluation.predictions import read_predictions
from tests.support.photos import draw_set
from tests.support.runs import REPOSITORY, Folder

JSONS = {
    "train": "Train_poly",
    "val": "Val_poly",
    "test": "Test-Dev_poly",
    "test-challenge": "Test-Challenge_poly",
}
COUNTS = {  # real and fake faces
    "train": {"real": 12, "fake": 12},
    "val": {"real": 4, "fake": 8},
    "test": {"real": 6, "fake": 6},
    "test-challenge": {"real": 2, "fake": 6},
}


def draw_four(folder: Path) -> None:
    for number, (split, stem) in enumerate(JSONS.items()):
        of = COUNTS[split]
        draw_set(folder, of["fake"], stem, seed=100 * number, n_real=of["real"])


def config(folder: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "splits": "official",
        "annotations": {split: [folder / f"{stem}.json"] for split, stem in JSONS.items()},
        "photos_dir": folder,
        "work_dir": folder / "work",
    }
    return DataConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Prepared, with a store. Never written to."""
    folder = tmp_path_factory.mktemp("official")
    draw_four(folder)
    prepare_data(config(folder), [32], processes=1)
    return config(folder)


def test_each_face_is_in_the_split_of_its_json(data: DataConfig) -> None:
    assert load_prepared(data).summary.splits == COUNTS
    splits = pd.read_csv(data.work_dir / "splits.csv")
    assert splits["cutted_name"].is_monotonic_increasing
    for name, split in zip(splits["cutted_name"], splits["split"], strict=True):
        assert name.startswith(f"{JSONS[split]}_")


def test_a_split_may_have_several_jsons(tmp_path: Path) -> None:
    draw_four(tmp_path)
    more = draw_set(tmp_path, 3, "More", seed=900)
    both = config(tmp_path).model_dump()["annotations"]
    both["val"] = [*both["val"], more]
    prepared = prepare_data(config(tmp_path, annotations=both), processes=1)
    assert prepared.summary.splits["val"] == {"real": 7, "fake": 11}


@pytest.mark.parametrize("split", ["test", "test-challenge"])
def test_no_test_set_is_read_without_an_opening(data: DataConfig, split: str) -> None:
    for read in (read_split, lambda folder, name: Faces.load(folder, name, 32)):
        with pytest.raises(
            SplitClosed, match=f"split '{split}' is read by study/evaluation alone"
        ):
            read(data.work_dir, split)


def test_with_one_the_store_gives_each_test_set_its_own_faces(data: DataConfig) -> None:
    opening = Opening(("best",), "0" * 64)
    for split, of in COUNTS.items():
        faces = Faces.load(data.work_dir, split, 32, opening)
        assert set(faces.table["source"]) == {JSONS[split]}
        assert len(faces) == len(faces.images) == sum(of.values())
        assert int(faces.labels.sum()) == of["fake"]
    starts = json.loads((data.work_dir / "store/faces_32.json").read_text())["rows"]
    assert list(starts) == list(JSONS)  # train and val first: what a frozen backbone embeds


def test_another_split_of_the_same_json_is_other_data(data: DataConfig) -> None:
    exchanged = config(data.photos_dir).model_dump()["annotations"]
    exchanged["val"], exchanged["test"] = exchanged["test"], exchanged["val"]
    changed = config(data.photos_dir, annotations=exchanged)
    with pytest.raises(DataError, match="split of Val_poly was val and is now test"):
        load_prepared(changed)


def test_an_estimate_knows_the_faces_of_train_and_val(tmp_path: Path) -> None:
    draw_four(tmp_path)
    before = measure_data(config(tmp_path), [])
    prepare_data(config(tmp_path), processes=1)
    for amount in (before, measure_data(config(tmp_path), [])):
        assert (amount.train, amount.val, amount.faces) == (24, 12, 56)


# drawn splits are what they were


def test_a_drawn_data_set_is_described_as_ever(tmp_path: Path) -> None:
    path = draw_set(tmp_path)
    drawn = DataConfig(annotations=[path], photos_dir=tmp_path, work_dir=tmp_path / "work")
    prepared = prepare_data(drawn, processes=1)
    settings = json.loads((tmp_path / "work/prepared.json").read_text())["settings"]
    sha256 = settings.pop("annotations Train_poly.json sha256")
    assert list(settings.items()) == [
        ("margin", 0.0),
        ("min_face_px", 16),
        ("group_by", "photo"),
        ("seed", 0),
        ("fractions.train", 0.7),
        ("fractions.val", 0.15),
        ("fractions.test", 0.15),
    ]
    # of the commit before there were official splits
    assert sha256.startswith("482613e36e30")
    assert prepared.faces_sha256.startswith("3ee18b99e11f")
    assert prepared.splits_sha256.startswith("2eac3f80a2c2")


def test_a_drawn_study_does_not_mention_official_splits() -> None:
    config = load_config(REPOSITORY / "configs/sample.yaml", storage="sqlite:////tmp/x.db")
    assert "splits" not in yaml.safe_load(public_yaml(config))["data"]


# the audit


def test_a_training_photo_in_a_further_test_set_is_a_leak(tmp_path: Path) -> None:
    draw_four(tmp_path)
    photos = tmp_path / "Images/Train"
    shutil.copyfile(photos / "Train_poly3.jpg", photos / "Test-Challenge_poly1.jpg")
    prepare_data(config(tmp_path), processes=1)
    (leak,) = audit(config(tmp_path), processes=1).leaks
    assert (leak.kind, leak.later.split, leak.earlier.split) == (
        "pixels",
        "test-challenge",
        "train",
    )
    assert leak.later.file_name.endswith("Test-Challenge_poly1.jpg")


def test_two_test_sets_may_share_photos(tmp_path: Path) -> None:
    draw_four(tmp_path)
    draw_set(tmp_path, 6, JSONS["test-challenge"], seed=200, n_real=2)  # as those of test
    prepare_data(config(tmp_path), processes=1)
    found = audit(config(tmp_path), processes=1)
    assert (found.leaks, found.near_faces, found.photos) == ([], [], 32)


def test_the_price_of_a_leak_is_measured_on_splits_drawn_from_train_and_val(
    tmp_path: Path,
) -> None:
    draw_four(tmp_path)
    prepare_data(config(tmp_path), processes=1)
    write_seen(config(tmp_path))
    for arm in ARMS:
        of_arm = split_by(config(tmp_path), arm)
        summary = prepare_data(of_arm, processes=1).summary
        assert list(summary.splits) == ["train", "val", "test"]
        assert (summary.real, summary.fake) == (16, 20)  # no face of a test set


# through the command


class OfficialFolder(Folder):
    def __init__(self, path: Path, *overrides: str) -> None:
        by_split = ", ".join(f"{s}: [{path}/photos/{stem}.json]" for s, stem in JSONS.items())
        own = ("data.splits=official", f"data.annotations={{{by_split}}}")
        super().__init__(path, 0, *own, *overrides)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn")
    draw_four(path / "photos")
    one_label = draw_set(path / "photos", 4, "Fakes", seed=500, n_real=0)
    assert one_label.is_file()
    return path


MISTAKES = {
    "data.annotations={train: [a.json], val: [b.json]}": (
        "'data.annotations': has no split test, only train, val"
    ),
    "data.annotations={}": "'data.annotations': has no split train, only an empty mapping",
    "data.annotations.tset=[more.json]": (
        "'data.annotations': split 'tset' is neither train nor val nor a test set, whose name "
        "begins with test"
    ),
    "data.annotations.test_2=[more.json]": "split 'test_2' is neither train nor val nor a test",
    "data.annotations.test-two=[photos/Val_poly.json]": (
        "Val_poly.json is named twice, in val and in test-two"
    ),
    "data.annotations.val=[photos/Val_poly.json, photos/Val_poly.json]": (
        "Val_poly.json is named twice, in val and in val"
    ),
    "data.annotations=[photos/Train_poly.json]": (
        "'data.annotations': with splits: official it names the JSONs of each split"
    ),
    "data.splits=drawn": (
        "'data.annotations': names the splits train, val, test, test-challenge: set splits to"
        " official, or give a list"
    ),
    "data.splits=offical": "'data.splits': Input should be 'drawn' or 'official'",
    "data.annotations.val=[]": "'data.annotations.val': Input should be a list of one or more",
    "data.annotations.test=photos/Val_poly.json": "'data.annotations.test': Input should be a li",
    "data.fractions={train: 0.8, val: 0.1, test: 0.1}": (
        "'data.fractions': says nothing of official splits; leave it out"
    ),
    "data.group_by=face": "'data.group_by': says nothing of official splits",
    "data.seed=3": "'data.seed': says nothing of official splits",
    "data.annotations.test=[none.json]": "none.json: No such file",
    "data.annotations.test-two=[photos/Fakes.json]": (
        "data.annotations.test-two: its JSONs hold no real face that can be used"
    ),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(drawn: Path, override: str) -> None:
    done = OfficialFolder(drawn, override).call("prepare")
    assert (done.returncode, done.stdout) == (2, "")
    assert MISTAKES[override] in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in drawn.iterdir()} == {"photos"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> OfficialFolder:
    """Prepared, run and evaluated by the real commands."""
    path = tmp_path_factory.mktemp("study")
    draw_four(path / "photos")
    study = OfficialFolder(path, "name=official", "train.max_epochs=1", "study.n_trials=4")
    for command in (["run"], ["evaluate", "--no-corruptions"]):
        done = study.run(*command)
        assert done.returncode == 0, done.stderr
    return study


@pytest.mark.slow
def test_every_test_set_is_in_the_table_and_in_its_own_analysis(
    study: OfficialFolder,
) -> None:
    (table,) = (study.path / "mlruns/artifacts").rglob("predictions.csv.gz")
    predictions = read_predictions(table)
    rows = predictions.drop_duplicates(["split", "cutted_name"]).groupby("split").size()
    assert rows.to_dict() == {
        split: sum(of.values()) for split, of in COUNTS.items() if split != "train"
    }
    found = study.json("compare")
    assert found["analysis"]["split"] == "test"
    assert list(found["test_sets"]) == ["test-challenge"]
    baselines = study.study_config().baselines
    for analysed in (found["analysis"], found["test_sets"]["test-challenge"]):
        alone = asdict(analyse(predictions, baselines, analysed["split"]))
        assert json.loads(json.dumps(alone)) == analysed
    challenge = found["test_sets"]["test-challenge"]
    assert (challenge["real"], challenge["fake"]) == (2, 6)
    assert challenge["prior"]["val_fake_share"] == pytest.approx(8 / 12)
    assert challenge["prior"]["test_fake_share"] == 0.75
    shares = {"train": 0.5, "val": 8 / 12, "test": 0.5, "test-challenge": 0.75}
    assert found["fake_shares"] == pytest.approx(shares)
    said = study.json("compare", "--predictions", str(table), "--split", "test-challenge")
    assert said == challenge


@pytest.mark.slow
def test_compare_shows_each_test_set_its_shift_and_that_the_splits_are_not_the_reports(
    study: OfficialFolder,
) -> None:
    found = study.json("compare")
    assert not found["comparable"]
    assert any("data.splits: official" in why for why in found["differences"])
    assert not any("the data are not" in why for why in found["differences"])
    shown = " ".join(study.call("compare").stdout.split())
    assert "split test-challenge: 2 real and 6 fake faces of 6 photos" in shown
    assert "train 50.0 %, val 66.7 %, test 50.0 %, test-challenge 75.0 %" in shown
    for shares in (
        "50.0 % of the faces in test are fake and 66.7 % in validation: accuracy",
        "75.0 % of the faces in test-challenge are fake",
    ):
        assert shares in shown
    assert shown.count("too few seeds to tell") == 6  # three baselines on each test set


@pytest.mark.slow
def test_a_slot_of_the_opened_list_shows_every_test_set(study: OfficialFolder) -> None:
    (proven,) = study.json("evaluate", "--trial", "0")["finalists"]
    assert proven["test"]["faces"] == 12
    assert proven["test_sets"]["test-challenge"]["faces"] == 8
    assert "test-challenge acc" in study.call("evaluate", "--trial", "0").stdout


@pytest.mark.slow
def test_the_page_and_the_model_card_name_the_further_test_set(study: OfficialFolder) -> None:
    done = study.call("report", "--out", "page.html")
    assert done.returncode == 0, done.stderr
    page = (study.path / "page.html").read_text()
    assert "Further test set: test-challenge" in page
    assert '<th scope="row">test-challenge</th><td class="n">2</td><td class="n">6</td>' in page
    done = study.call("export", "--trial", "0", "--out", "model")
    assert done.returncode == 0, done.stderr
    card = (study.path / "model/README.md").read_text()
    assert "test-challenge at 0.5" in card
    assert "each with a split of its own" in card
