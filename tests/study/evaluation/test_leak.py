"""The price of a leak: a baseline on faces split by face and by photo."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from deepfake.data.layouts.openforensics import read_faces
from deepfake.data.prepare import load_prepared, prepare_data
from deepfake.data.splits import read_split
from deepfake.errors import DataError
from study.config.schema import StudyConfig
from study.config.siblings import leak_dir, leak_of
from study.evaluation.leak import write_seen
from study.slots.study import join
from tests.support.photos import draw_set
from tests.support.runs import Folder

MakeConfig = Callable[..., StudyConfig]


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> StudyConfig:
    path = draw_set(tmp_path / "photos", 30)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"width": 96, "height": 64}
    path.write_text(json.dumps(content))
    return make_config(
        f"data.annotations=[{path}]",
        f"data.photos_dir={path.parent}",
        f"data.work_dir={tmp_path}/faces",
    )


def test_both_arms_hold_the_faces_of_train_and_val_and_none_of_test(config: StudyConfig) -> None:
    data = config.data
    prepare_data(data)
    write_seen(data)
    seen = pd.concat([read_split(data.work_dir, split) for split in ("train", "val")])
    wanted = seen.sort_values("cutted_name", ignore_index=True)
    for arm, study in leak_of(config).items():
        of_arm = study.data
        assert of_arm.group_by == arm
        found = read_faces(of_arm.annotations).sort_values("cutted_name", ignore_index=True)
        pd.testing.assert_frame_equal(found[wanted.columns], wanted)
        sizes = found[["width", "height"]].drop_duplicates().to_numpy().tolist()
        assert sizes == [[96, 64]]  # or its crops would be others where photos were turned
        prepare_data(of_arm)
        assert load_prepared(of_arm).summary.faces == len(wanted)


def test_the_json_of_a_source_that_is_no_more_is_removed(config: StudyConfig) -> None:
    data = config.data
    prepare_data(data)
    write_seen(data)
    before = leak_of(config)["face"].data.annotations
    (leak_dir(data) / "an_earlier_source.json").touch()
    write_seen(data)
    assert leak_of(config)["face"].data.annotations == before


def test_photos_are_whole_in_one_arm_and_cut_in_the_other(config: StudyConfig) -> None:
    data = config.data
    prepare_data(data)
    write_seen(data)
    shared = {}
    for arm, study in leak_of(config).items():
        work_dir = prepare_data(study.data).work_dir
        train, val = (read_split(work_dir, split) for split in ("train", "val"))
        shared[arm] = set(train["image_id"]) & set(val["image_id"])
    assert shared["photo"] == set()
    assert shared["face"] != set()


def test_what_cant_be_written_is_one_line(config: StudyConfig) -> None:
    data = config.data
    prepare_data(data)
    leak_dir(data).touch()  # a file, where the folder would be
    with pytest.raises(DataError, match=r"leak: File exists; mend that"):
        write_seen(data)


@pytest.mark.slow
def test_the_price_is_measured_by_both_arms_and_prints_again_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 30, "train.max_epochs=1")
    options = ("--leak", "--baseline", "mobilenet_v2_frozen", "--seeds", "3", "--json")
    done = folder.run("audit", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["leak"]
    assert found["baseline"] == "mobilenet_v2_frozen"
    assert found["seeds"] == 3
    for name in ("nll", "auc", "accuracy"):
        arms = {arm: found["arms"][arm]["figures"][name]["value"] for arm in ("face", "photo")}
        difference = found["differences"][name]
        assert difference["value"] == pytest.approx(arms["face"] - arms["photo"])
        assert difference["low"] < difference["value"] < difference["high"]
    assert "mobilenet_v2_frozen" in found["sentence"]

    # the trainings are slots of studies beside the search, which has not begun
    for arm in ("photo", "face"):
        of_arm = leak_of(folder.study_config())[arm]
        stores = sorted(path.name for path in (of_arm.data.work_dir / "store").glob("*.npy"))
        assert stores == ["faces_33.npy"]  # the CNN's would not be read
        records = join(of_arm).records()
        assert [record.state for record in records] == ["complete"] * 3
        assert [record.rerun.seed for record in records if record.rerun] == [0, 1, 2]
    assert folder.call("status").returncode == 2
    assert folder.call("sync").returncode == 0

    again = folder.run("audit", *options)
    assert json.loads(again.stdout)["leak"] == found
    assert "0 of 3 slots to run" in again.stderr


def test_a_baseline_that_is_not_there_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24)
    done = folder.call("audit", "--leak", "--baseline", "vgg")
    assert done.returncode == 2
    assert "--baseline vgg: the baselines are cnn, mobilenet_v2_frozen" in done.stderr
    assert not (tmp_path / "mlruns").exists()
    done = folder.call("worker", "--leak", "photo")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "no study 'sample-leak-photo' with slots yet; begin it with: deepfake-study audit"
        in done.stderr
    )
    done = folder.call("worker", "--leak", "group")
    assert done.returncode == 2
    assert "Invalid value for '--leak': 'group' is not one of 'photo', 'face'" in done.stderr


@pytest.mark.slow
def test_both_arms_are_trained_on_the_device_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path, 30, "train.max_epochs=1")
    # as on a machine with a GPU, which without --device every worker would take
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = folder.call("audit", "--leak", "--seeds", "1", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "--device cpu" in done.stderr
    for arm in ("photo", "face"):
        (record,) = join(leak_of(folder.study_config())[arm]).records()
        assert record.state == "complete"
