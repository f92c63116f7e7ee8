import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms

from deepfake import splits, store
from deepfake.config import SPLITS, DataConfig, DataError
from deepfake.prepare import prepare
from deepfake.splits import Opening
from deepfake.store import Faces, ensure_store, normalise, store_path
from tests.photos import draw_set

CPU = torch.device("cpu")
OPENING = Opening(("best",), "0" * 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared work_dir of 48 faces with a store of 32 px. Never written to."""
    folder = tmp_path_factory.mktemp("made")
    path = draw_set(folder, n_photos=24)
    data = DataConfig(annotations=[path], photos_dir=folder, work_dir=folder / "work")
    return prepare(data, sides=[32], processes=1)


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
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DataError, match=f"needs {48 * 40 * 40 * 3} bytes, 1 are free"):
        ensure_store(work_dir, 40, made.crops_sha256)
    assert not store_path(work_dir, 40).exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_store(made, work_dir):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes a file may have
    try:
        with pytest.raises(DataError, match=r"faces_40\.npy: cannot be written: File too large"):
            ensure_store(work_dir, 40, made.crops_sha256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not store_path(work_dir, 40).exists()
    ensure_store(work_dir, 40, made.crops_sha256)
    assert np.load(store_path(work_dir, 40)).shape == (48, 40, 40, 3)


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


BUILD = """
import sys
from pathlib import Path
from deepfake.store import ensure_store

ensure_store(Path(sys.argv[1]), 64, sys.argv[2], 1, lambda *now: print("built", flush=True))
"""


@pytest.mark.slow
def test_of_two_processes_one_builds(made, work_dir):
    command = [sys.executable, "-c", BUILD, work_dir, made.crops_sha256]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=300)[0] for process in both) == ["", "built\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_normalise_is_bit_for_bit_torchvisions_on_every_byte_value():
    values = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(1, 16, 16, 3)
    pictures = np.concatenate([values, values // 3, values[:, ::-1] // 3 + 7]).astype(np.uint8)
    for channel in range(3):
        assert len(np.unique(pictures[..., channel])) == 256
    reference = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    expected = torch.stack([reference(Image.fromarray(picture)) for picture in pictures])
    images = normalise(torch.from_numpy(pictures))
    assert torch.equal(images, expected)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


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


def test_batches_in_order_hold_every_face_once_and_the_last_may_be_smaller(made):
    faces = Faces.load(made.work_dir, "train", 32)
    n = len(faces)
    batches = list(faces.batches(7, CPU))  # held all at once: none may overwrite another
    assert [len(labels) for _, labels in batches] == [7] * (n // 7) + [n % 7] * (n % 7 > 0)
    assert torch.equal(torch.cat([labels for _, labels in batches]), faces.labels)
    assert torch.equal(torch.cat([images for images, _ in batches]), normalise(faces.images))
    images = batches[0][0]
    assert images.shape == (7, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_larger_than_the_split_holds_all_of_it(made):
    faces = Faces.load(made.work_dir, "val", 32)
    ((images, labels),) = faces.batches(1000, CPU)
    assert len(images) == len(labels) == len(faces)


def test_shuffled_batches_follow_the_generator_and_keep_labels_with_images(made):
    faces = Faces.load(made.work_dir, "train", 32)

    def one_pass(seed):
        batches = list(faces.batches(8, CPU, torch.Generator().manual_seed(seed)))
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))

    (images, labels), (again, _), (other, _) = one_pass(1), one_pass(1), one_pass(2)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(1))
    assert torch.equal(images, normalise(faces.images[order]))
    assert torch.equal(labels, faces.labels[order])


def test_reading_batches_writes_nothing_to_disk(made):
    path = store_path(made.work_dir, 32)
    before = path.read_bytes()
    for images, _ in Faces.load(made.work_dir, "train", 32).batches(8, CPU):
        images.zero_()
    assert path.read_bytes() == before
