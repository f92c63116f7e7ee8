"""The commands of the data."""

from pathlib import Path

import pytest

from tests.support.runs import Folder


@pytest.mark.slow
def test_prepare_says_what_it_left_and_a_second_time_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    first = folder.json("prepare")
    assert (first["photos"], first["faces"], first["real"], first["fake"]) == (12, 24, 12, 12)
    crops = {path: path.stat().st_mtime_ns for path in (folder.path / "faces/crops").iterdir()}
    assert folder.json("prepare") == first
    assert crops == {p: p.stat().st_mtime_ns for p in (folder.path / "faces/crops").iterdir()}
