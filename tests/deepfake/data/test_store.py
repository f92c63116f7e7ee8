import json
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from deepfake.config import SPLITS
from deepfake.data import splits, store
from deepfake.data.feed import Faces
from deepfake.data.splits import Opening
from deepfake.data.store import check_room, ensure_store, meta_path, store_path, stores_bytes
from deepfake.errors import DataError
from deepfake.files import unfinished_path
from tests.support.forked import Process
from tests.support.photos import prepared_set

CPU = torch.device("cpu")
OPENING = Opening(("best",), "0" * 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared work_dir of 48 faces with a store of 32 px. Never written to."""
    folder = tmp_path_factory.mktemp("made")
    return prepared_set(folder, [32])


@pytest.fixture
def work_dir(made, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(made.work_dir, tmp_path / "work")


def by_pillow(work_dir, name, side):
    with Image.open(work_dir / "crops" / name) as crop:
        return crop.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("side", [32, 77])
def test_row_i_is_the_crop_as_pillow_resizes_it_split_after_split(made, work_dir, side):
    array = np.load(ensure_store(work_dir, side, made.crops_sha256))
    assert array.dtype == np.uint8
    table = pd.read_csv(work_dir / "splits.csv")
    order = [
        name for split in SPLITS for name in sorted(table["cutted_name"][table["split"] == split])
    ]
    assert array.shape == (48, side, side, 3)
    for row, name in zip(array, order, strict=True):
        assert row.tobytes() == by_pillow(work_dir, name, side).tobytes()


def test_a_store_is_built_once_and_again_only_for_other_crops(made, work_dir):
    path = store_path(work_dir, 32)
    stamp = path.stat().st_mtime_ns
    assert ensure_store(work_dir, 32, made.crops_sha256) == path
    assert path.stat().st_mtime_ns == stamp
    ensure_store(work_dir, 32, "f" * 64)
    assert path.stat().st_mtime_ns > stamp
    assert json.loads(path.with_suffix(".json").read_text())["crops_sha256"] == "f" * 64


def test_what_a_killed_build_left_is_no_store_and_is_built_over(made, work_dir):
    path = store_path(work_dir, 32)
    whole = path.read_bytes()
    path.with_suffix(".json").unlink()
    path.write_bytes(whole[:1000])
    path.with_name(".faces_32.npy.tmp").write_bytes(b"x" * 10 * len(whole))
    with pytest.raises(DataError, match="not built yet: run deepfake-study prepare"):
        Faces.load(work_dir, "train", 32)
    ensure_store(work_dir, 32, made.crops_sha256)
    assert path.read_bytes() == whole
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == [
        "faces_32.json",
        "faces_32.npy",
    ]


def test_an_array_whose_origin_was_not_yet_written_down_is_no_store(made, work_dir, monkeypatch):
    """Else new rows could pass for those of the crops the old note names."""

    def die(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_whole", die)
        with pytest.raises(KeyboardInterrupt):
            ensure_store(work_dir, 32, "f" * 64)
    told = []
    ensure_store(work_dir, 32, made.crops_sha256, 1, lambda *now: told.append(now))
    assert told == [("store 32 px", 48, 48)]


def test_a_disk_without_room_is_refused_with_both_numbers(made, work_dir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DataError, match=r"need 0\.2 MB \(40 px 0\.2 MB\), 0\.0 MB are free"):
        ensure_store(work_dir, 40, made.crops_sha256)
    assert not store_path(work_dir, 40).exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_store(made, work_dir):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes a file may have
    try:
        with pytest.raises(DataError, match=r"faces_40\.npy: File too large"):
            ensure_store(work_dir, 40, made.crops_sha256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not store_path(work_dir, 40).exists()
    ensure_store(work_dir, 40, made.crops_sha256)
    assert np.load(store_path(work_dir, 40)).shape == (48, 40, 40, 3)


def test_a_store_of_other_crops_gives_its_room_to_the_new_one(made, work_dir, monkeypatch):
    """It could serve nobody, and the disk may not hold both."""
    old = ensure_store(work_dir, 40, "f" * 64)
    seen = []
    monkeypatch.setattr(store, "check_room", lambda *asked: seen.append(old.exists()))
    ensure_store(work_dir, 40, made.crops_sha256)
    assert seen == [False]


def test_a_damaged_crop_is_named(made, work_dir):
    crop = next((work_dir / "crops").iterdir())
    crop.write_bytes(crop.read_bytes()[:300])
    with pytest.raises(DataError, match=f"{crop.name}: not a whole crop"):
        ensure_store(work_dir, 40, made.crops_sha256)


def test_two_threads_build_what_one_builds_and_count_the_faces(made, work_dir):
    one = ensure_store(work_dir, 40, made.crops_sha256, processes=1).read_bytes()
    told = []
    store_path(work_dir, 40).unlink()
    ensure_store(work_dir, 40, made.crops_sha256, 2, lambda *now: told.append(now))
    assert store_path(work_dir, 40).read_bytes() == one
    assert told == [("store 40 px", 48, 48)]


def build(work_dir, crops_sha256):
    ensure_store(work_dir, 64, crops_sha256, 1, lambda *now: print("built", flush=True))


@pytest.mark.slow
def test_of_two_processes_one_builds(made, work_dir):
    both = [Process(None, build, work_dir, made.crops_sha256) for _ in range(2)]
    assert sorted(process.communicate()[0] for process in both) == ["", "built\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_a_split_is_loaded_with_its_own_images_labels_and_rows(made):
    n_loaded = 0
    for split in SPLITS:
        faces = Faces.load(made.work_dir, split, 32, OPENING)
        names = faces.table["cutted_name"].tolist()
        assert len(faces) == len(names) == len(faces.images)
        assert faces.labels.dtype == torch.int64
        # draw_set numbers faces so: even ids are real, odd ones fake
        assert faces.labels.tolist() == [int(name[:-4].rpartition("_")[2]) % 2 for name in names]
        for image, name in zip(faces.images, names, strict=True):
            assert image.numpy().tobytes() == by_pillow(made.work_dir, name, 32).tobytes()
        n_loaded += len(faces)
    assert n_loaded == 48


def test_the_test_split_stays_closed_without_an_opening(made):
    with pytest.raises(splits.SplitClosed):
        Faces.load(made.work_dir, "test", 32)


def test_a_side_without_a_store_is_refused_by_name(made):
    with pytest.raises(DataError, match=r"faces_99\.npy: not built yet"):
        Faces.load(made.work_dir, "train", 99)


def test_a_store_of_another_splits_csv_is_refused(work_dir):
    path = work_dir / "splits.csv"
    path.write_text(path.read_text().replace("val", "train"))
    with pytest.raises(DataError, match=r"built for another splits\.csv"):
        Faces.load(work_dir, "train", 32)


def test_a_store_that_ends_too_early_is_named(work_dir):
    path = store_path(work_dir, 32)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(DataError, match=r"faces_32\.npy: ends within row 1[23]"):
        list(Faces.load(work_dir, "train", 32).batches(8, CPU))


# the room that stores take


@pytest.fixture
def free(monkeypatch):
    """Sets what is free on every disk, in bytes."""

    def set_free(n_bytes):
        usage = shutil._ntuple_diskusage(10**12, 10**12 - n_bytes, n_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return set_free


def test_a_store_takes_three_bytes_a_pixel():
    assert stores_bytes(150_000, [224]) == 22_579_200_000  # 150,000 * 224 * 224 * 3
    assert stores_bytes(150_000, [128, 224]) == 7_372_800_000 + 22_579_200_000


def test_the_size_of_all_stores_together_is_said_before_any_is_built(tmp_path, free, caplog):
    caplog.set_level("INFO")
    free(79 * 10**9)
    check_room(tmp_path / "not" / "there", 150_000, [128, 224])
    (record,) = caplog.records
    assert record.getMessage() == (
        "stores of 150000 faces: 30.0 GB (128 px 7.4 GB, 224 px 22.6 GB), 79.0 GB free"
    )


def test_a_disk_too_small_is_refused_with_what_is_needed_what_is_free_and_the_way_out(
    tmp_path, free
):
    free(29_951_999_999)  # a byte too few
    with pytest.raises(DataError) as refused:
        check_room(tmp_path, 150_000, [128, 224])
    assert str(refused.value) == (
        f"{tmp_path}: the stores need 30.0 GB (128 px 7.4 GB, 224 px 22.6 GB), 30.0 GB are free;"
        " make room, or set data.work_dir to another disk"
    )
    free(29_952_000_000)
    check_room(tmp_path, 150_000, [128, 224])


def test_a_store_that_is_there_takes_no_more_room(tmp_path, free, caplog):
    caplog.set_level("INFO")
    built = store_path(tmp_path, 224)
    built.parent.mkdir()
    meta_path(built).touch()
    free(8 * 10**9)
    check_room(tmp_path, 150_000, [128, 224])
    assert "stores of 150000 faces: 7.4 GB (128 px 7.4 GB), 8.0 GB free" in caplog.text
    free(0)
    check_room(tmp_path, 150_000, [224])  # nothing is missing


def test_what_a_killed_build_left_counts_as_free_because_it_is_written_over(tmp_path, free):
    left = unfinished_path(store_path(tmp_path, 128))
    left.parent.mkdir()
    left.write_bytes(b"x" * 4_000_000)
    free(1_000_000)
    check_room(tmp_path, 100, [128])  # 4.9 MB
    with pytest.raises(DataError, match=r"need 9\.8 MB \(128 px 9\.8 MB\), 5\.0 MB are free"):
        check_room(tmp_path, 200, [128])


def test_a_store_folder_that_is_a_link_is_asked_for_the_room_of_its_own_disk(
    tmp_path, monkeypatch
):
    (tmp_path / "other disk").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/store").symlink_to(tmp_path / "other disk")
    asked = []
    usage = shutil._ntuple_diskusage(10**12, 0, 10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    check_room(tmp_path / "work", 100, [128])
    assert [path.resolve() for path in asked] == [tmp_path / "other disk"]
