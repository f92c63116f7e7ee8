"""The commands of the data."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake.data.prepare import prepare_data
from tests.support.runs import Folder


@pytest.mark.slow
def test_prepare_says_what_it_left_and_a_second_time_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    first = folder.json("prepare")
    assert (first["photos"], first["faces"], first["real"], first["fake"]) == (12, 24, 12, 12)
    crops = {path: path.stat().st_mtime_ns for path in (folder.path / "faces/crops").iterdir()}
    assert first["contact_sheet"] == str(folder.path / "faces/contact_sheet.jpg")
    assert folder.json("prepare") == first
    assert f"look at what was cut: {first['contact_sheet']}" in folder.call("prepare").stdout
    assert crops == {p: p.stat().st_mtime_ns for p in (folder.path / "faces/crops").iterdir()}


@pytest.fixture
def late(tmp_path: Path) -> tuple[Folder, Callable[[], None]]:
    """A study of 24 photos, five of which are not there; and what brings them."""
    folder = Folder(tmp_path, 24, "train.max_epochs=1", "study.n_trials=3")
    photos = folder.path / "photos/Images/Train"
    missing = [photos / f"Train_poly{i}.jpg" for i in range(5)]
    for photo in missing:
        photo.rename(folder.path / photo.name)

    def come() -> None:
        for photo in missing:
            (folder.path / photo.name).rename(photo)

    return folder, come


@pytest.mark.slow
def test_prepare_takes_photos_in_that_came_since_and_says_that_the_splits_change(
    late: tuple[Folder, Callable[[], None]],
) -> None:
    folder, come = late
    first = folder.json("prepare")
    assert (first["faces"], first["dropped"]) == (38, {"photo absent": 10})
    come()
    again = folder.call("prepare", "--json")
    assert again.returncode == 0
    assert "5 photos are there now that were absent or unreadable" in again.stderr
    assert "all faces split anew" in again.stderr
    found = json.loads(again.stdout)
    assert (found["faces"], found["dropped"]) == (48, {})
    assert found["splits_sha256"] != first["splits_sha256"]
    assert folder.json("prepare") == found


@pytest.mark.slow
def test_a_begun_study_keeps_its_splits_and_is_refused_on_others(
    late: tuple[Folder, Callable[[], None]],
) -> None:
    folder, come = late
    begun = folder.call("run", "--workers", "1", "--timeout", "1s")
    assert "38 faces of 19 photos" in begun.stderr  # who prepares shows what was left out
    assert re.search(r"dropped: photo absent\W+10\b", begun.stderr)
    splits = (folder.path / "faces/splits.csv").read_bytes()
    come()
    said = folder.call("prepare")
    assert (said.returncode, "set data.work_dir to another folder" in said.stderr) == (0, True)
    assert "study 'sample' was begun without their faces" in " ".join(said.stderr.split())
    assert (folder.path / "faces/splits.csv").read_bytes() == splits
    data = folder.study_config().data
    prepare_data(data, processes=1, again=True)
    refused = folder.call("run", "--workers", "1")
    assert (refused.returncode, "splits" in refused.stderr) == (2, True)
