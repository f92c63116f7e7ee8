import os

import pytest

from deepfake.data import photos
from deepfake.data.photos import resolve_photos
from deepfake.errors import DataError
from tests.support.photos import draw_photo


def test_photos_are_found_by_full_name_without_images_and_by_base_name(tmp_path):
    for name in ("Images/Train/a.jpg", "Train/b.jpg", "Train/Train/c.jpg"):
        draw_photo(tmp_path / name)
    names = [f"Images/Train/{letter}.jpg" for letter in "abc"]
    assert resolve_photos(names, tmp_path) == {
        names[0]: tmp_path / "Images/Train/a.jpg",
        names[1]: tmp_path / "Train/b.jpg",
        names[2]: tmp_path / "Train/Train/c.jpg",
    }


def test_ambiguous_and_absent_photos_come_back_as_reasons(tmp_path):
    for name in ("Train/a.jpg", "Other/a.jpg"):
        draw_photo(tmp_path / name)
    too_long = "x" * 300 + ".jpg"
    assert resolve_photos(["Images/a.jpg", "no.jpg", too_long], tmp_path) == {
        "Images/a.jpg": "ambiguous: Other/a.jpg, Train/a.jpg",
        "no.jpg": "absent",
        too_long: "absent",
    }


def test_a_folder_is_not_a_photo(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    assert resolve_photos(["a.jpg"], tmp_path) == {"a.jpg": "absent"}


def test_the_photo_folder_is_walked_only_if_a_name_needs_it(tmp_path, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(photos.os, "walk", lambda root: walks.append(root) or walk(root))
    for name in ("Images/a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg"):
        draw_photo(tmp_path / name)
    resolve_photos(["Images/a.jpg", "Images/b.jpg"], tmp_path)
    assert walks == []
    resolve_photos(["Images/a.jpg", "c.jpg", "d.jpg"], tmp_path)
    assert walks == [tmp_path]


@pytest.mark.parametrize("link", ["Images/a.jpg", "elsewhere/a.jpg"])
def test_a_photo_that_is_a_link_out_of_the_folder_is_refused_by_name(tmp_path, link):
    draw_photo(tmp_path / "secret.jpg")
    inside = tmp_path / "photos" / link
    inside.parent.mkdir(parents=True)
    inside.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"'Images/a\.jpg' points outside"):
        resolve_photos(["Images/a.jpg"], tmp_path / "photos")


def test_a_photo_that_is_a_link_within_the_folder_is_taken(tmp_path):
    draw_photo(tmp_path / "photos/real.jpg")
    (tmp_path / "photos/a.jpg").symlink_to("real.jpg")
    (tmp_path / "way_in").symlink_to("photos")
    assert resolve_photos(["a.jpg"], tmp_path / "way_in") == {
        "a.jpg": tmp_path / "photos/real.jpg"
    }


def test_a_photo_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; set data\.photos_dir"):
        resolve_photos(["a.jpg"], tmp_path / "photos")
