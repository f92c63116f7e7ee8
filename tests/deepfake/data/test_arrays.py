import shutil

import pytest

from deepfake.data.arrays import check_room, meta_path, store_path, stores_bytes
from deepfake.errors import DataError
from deepfake.files import unfinished_path


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
