import os

import pytest

from deepfake.config import DataConfig
from deepfake.data.layouts.openforensics import read_annotations
from deepfake.data.photos.names import find_photos, resolve_photos
from deepfake.errors import DataError
from tests.support.photos import draw_photo, face, write_json


def found(file_names, photos_dir, follow_links=False):
    return resolve_photos(file_names, photos_dir, follow_links).photos


def test_photos_are_found_by_full_name_without_images_and_by_base_name(tmp_path):
    for name in ("Images/Train/a.jpg", "Train/b.jpg", "Train/Train/c.jpg"):
        draw_photo(tmp_path / name)
    names = [f"Images/Train/{letter}.jpg" for letter in "abc"]
    assert found(names, tmp_path) == {
        names[0]: tmp_path / "Images/Train/a.jpg",
        names[1]: tmp_path / "Train/b.jpg",
        names[2]: tmp_path / "Train/Train/c.jpg",
    }


def test_ambiguous_and_absent_photos_come_back_as_reasons(tmp_path):
    for name in ("Train/a.jpg", "Other/a.jpg"):
        draw_photo(tmp_path / name)
    too_long = "x" * 300 + ".jpg"
    assert found(["Images/a.jpg", "no.jpg", too_long], tmp_path) == {
        "Images/a.jpg": "ambiguous: Other/a.jpg, Train/a.jpg",
        "no.jpg": "absent",
        too_long: "absent",
    }


def test_a_folder_is_not_a_photo(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    assert found(["a.jpg"], tmp_path) == {"a.jpg": "absent"}


def test_the_photo_folder_is_walked_only_if_a_name_needs_it(tmp_path, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda root, **more: walks.append(root) or walk(root))
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
    assert found(["a.jpg"], tmp_path / "way_in") == {"a.jpg": tmp_path / "photos/real.jpg"}


def test_a_photo_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; set data\.photos_dir"):
        resolve_photos(["a.jpg"], tmp_path / "photos")


def test_a_file_that_another_name_has_is_never_taken_by_its_base_name(tmp_path):
    draw_photo(tmp_path / "fake/0.jpg")
    assert found(["real/0.jpg", "fake/0.jpg"], tmp_path) == {
        "real/0.jpg": "absent",
        "fake/0.jpg": tmp_path / "fake/0.jpg",
    }


def test_a_file_elsewhere_is_nobodys_where_two_names_could_mean_it(tmp_path):
    draw_photo(tmp_path / "all/0.jpg")
    reason = "ambiguous: all/0.jpg is all there is for several names"
    names = ["real/0.jpg", "fake/0.jpg"]
    assert found(names, tmp_path) == dict.fromkeys(names, reason)


def test_a_file_is_not_taken_without_images_where_a_name_has_it(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    assert found(["Images/a.jpg", "a.jpg"], tmp_path) == {
        "Images/a.jpg": "absent",
        "a.jpg": tmp_path / "a.jpg",
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Train\\a.jpg", "Train/a.jpg"),
        ("Images\\Train\\a.jpg", "Train/a.jpg"),
        ("Train\\a.jpg", "elsewhere/a.jpg"),
        ("M\u00fcller/\u00e9.jpg", "Mu\u0308ller/e\u0301.jpg"),
        ("Mu\u0308ller/e\u0301.jpg", "M\u00fcller/\u00e9.jpg"),
        ("M\u00fcller/\u00e9.jpg", "M\u00fcller/e\u0301.jpg"),  # each by another system
        ("Train/a.jpg", "Train/a.JPG"),
        ("Train/a.Jpeg", "other/a.JPEG"),
        ("./Train//a.jpg", "Train/a.jpg"),
    ],
)
def test_names_are_taken_as_other_systems_write_them(tmp_path, name, file):
    draw_photo(tmp_path / file)
    assert found([name], tmp_path) == {name: tmp_path / file}


def test_an_ending_in_another_case_is_taken_only_where_one_file_has_it(tmp_path):
    for name in ("a.JPG", "a.Jpg", "b.JPG", "x/b.jpg"):
        draw_photo(tmp_path / name)
    assert found(["a.jpg", "b.jpg"], tmp_path) == {
        "a.jpg": "ambiguous: a.JPG, a.Jpg",
        "b.jpg": tmp_path / "b.JPG",  # in the folder that it names
    }
    assert found(["A.JPG"], tmp_path) == {"A.JPG": "absent"}  # of the ending alone


def test_two_spellings_of_one_name_have_the_same_photo(tmp_path):
    draw_photo(tmp_path / "e\u0301.jpg")
    names = ["\u00e9.jpg", "e\u0301.jpg"]
    assert found(names, tmp_path) == dict.fromkeys(names, tmp_path / "e\u0301.jpg")


def test_a_name_with_a_backslash_of_its_own_is_taken_as_it_is(tmp_path):
    for name in ("a\\b.jpg", "a/b.jpg"):
        draw_photo(tmp_path / name)
    assert found(["a\\b.jpg"], tmp_path) == {"a\\b.jpg": tmp_path / "a\\b.jpg"}


def hub_cache(folder):
    """Two photos as links to blobs beside their folder, as a hub's client leaves them."""
    for name, blob in (("Train/a.jpg", "blobs/1f"), ("deep/Train/b.jpg", "blobs/2e")):
        draw_photo(folder / f"{blob}.jpg").save(folder / blob, "JPEG")
        link = folder / "snapshots" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(folder / blob)
    return folder / "snapshots"


def test_links_out_of_the_folder_are_followed_where_that_is_set(tmp_path):
    snapshots = hub_cache(tmp_path)
    (snapshots / "deep/round").symlink_to(snapshots)  # a walk must not go round
    assert found(["Train/a.jpg", "Images/b.jpg"], snapshots, follow_links=True) == {
        "Train/a.jpg": tmp_path / "blobs/1f",
        "Images/b.jpg": tmp_path / "blobs/2e",
    }
    with pytest.raises(DataError, match=r"'Train/a\.jpg' points outside .*data\.follow_links"):
        found(["Train/a.jpg"], snapshots)


def test_photos_found_by_their_base_name_alone_are_counted(tmp_path):
    for name in ("Train/a.jpg", "b.jpg", "c.JPG"):
        draw_photo(tmp_path / name)
    names = ["Images/Train/a.jpg", "Train/b.jpg", "Train/c.jpg", "Train/d.jpg"]
    assert resolve_photos(names, tmp_path).by_base_name == 2  # b and c


def test_no_photo_of_any_face_is_one_line(tmp_path):
    draw_photo(tmp_path / "faceless.jpg")
    annotations = read_annotations(
        [write_json(tmp_path / "a.json", ["x.jpg", "faceless.jpg"], [face(0, 0, 0, [0, 0, 9, 9])])]
    )
    data = DataConfig(
        annotations=(tmp_path / "a.json",), photos_dir=tmp_path, work_dir=tmp_path / "work"
    )
    with pytest.raises(DataError, match=r"none of 1 photos found \('x.jpg' is absent\); set"):
        find_photos(annotations, data)
