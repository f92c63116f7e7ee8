"""Files and folders are there whole or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake.files import sha256_of, unfinished_path, whole, write_whole


def half_a_file(path: Path) -> None:
    path.write_bytes(b"half")


def half_a_folder(path: Path) -> None:
    path.mkdir()
    (path / "half").touch()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("begin", [half_a_file, half_a_folder])
@pytest.mark.parametrize("end", [OSError, KeyboardInterrupt])
def test_what_does_not_end_well_leaves_the_path_as_it_was(
    begin: Callable[[Path], None], end: type[BaseException], shared: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    begin(path)
    before = sorted(tmp_path.rglob("*"))

    def stop_half_way() -> None:
        with whole(path, shared=shared) as unfinished:
            begin(unfinished)
            raise end

    with pytest.raises(end):
        stop_half_way()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [half_a_file, half_a_folder])
def test_what_a_killed_run_left_is_written_over(
    left: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    left(unfinished_path(path))
    write_whole(path, b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"whole"


def test_of_two_who_share_a_path_neither_touches_what_the_other_has_begun(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    theirs = unfinished_path(path, os.getpid() + 1)
    half_a_file(theirs)
    write_whole(path, b"whole", shared=True)
    assert (path.read_bytes(), theirs.read_bytes()) == (b"whole", b"half")


def test_a_full_disk_found_when_all_is_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    write_whole(path, b"old")

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]
    assert path.read_bytes() == b"old"
    write_whole(path, b"new", durable=False)  # asks the disk for nothing
    assert path.read_bytes() == b"new"


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
