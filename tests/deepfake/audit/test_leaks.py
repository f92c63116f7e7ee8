"""Planted leaks and shortcuts that the audit must find, and clean data where it finds none."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.audit import Audit, audit, leaks as audit_module
from deepfake.config import SPLITS, DataConfig, Split
from deepfake.data.layouts import COLUMNS
from deepfake.data.prepare import NotPrepared, load_prepared, prepare_data
from deepfake.data.splits import read_places, read_split
from deepfake.errors import DataError
from deepfake.sample.dataset import draw_sample
from tests.support.photos import draw_photo, draw_set, face, write_json
from tests.support.runs import REPOSITORY, Folder

PHOTOS = REPOSITORY.parent / "shared/data/photos"  # real ones, where they lie here

Copy = Callable[[Path, Path], object]


def config(folder: Path, *annotations: str, **changes: Any) -> DataConfig:
    return DataConfig(
        annotations=tuple(folder / name for name in annotations or ("Train_poly.json",)),
        photos_dir=folder,
        work_dir=folder / "work",
        **changes,
    )


def audited(data: DataConfig) -> Audit:
    prepare_data(data, processes=1)
    return audit(data, processes=1)


def split_of(data: DataConfig) -> dict[str, Split]:
    """Of each photo's file_name, in its first face's."""
    places = read_places(data.work_dir).drop_duplicates("file_name")
    return dict(zip(places["file_name"], places["split"], strict=True))


def flags(found: Audit) -> list[str]:
    return [verdict.probe for verdict in found.probes if verdict.flagged]


def reencode(photo: Path, to: Path) -> None:
    with Image.open(photo) as original:
        smaller = original.resize((round(original.width * 0.92), round(original.height * 0.92)))
        smaller.save(to, quality=55)


def same_pixels(photo: Path, to: Path) -> None:
    """In a file of other bytes: prepare keeps equal ones in one split."""
    to.write_bytes(photo.read_bytes() + b"\0")


def parted(copies: dict[str, str], splits: dict[str, Split]) -> set[frozenset[str]]:
    """Each copy and its original, where they are not in one split."""
    return {frozenset(pair) for pair in copies.items() if splits[pair[0]] != splits[pair[1]]}


def pairs(found: Audit) -> set[frozenset[str]]:
    return {frozenset((leak.later.file_name, leak.earlier.file_name)) for leak in found.leaks}


def add_copies(annotations_json: Path, copy: Copy, n: int) -> dict[str, str]:
    """Under new names and ids, each with its photo's faces; {copy: original}, file_names."""
    content = json.loads(annotations_json.read_text())
    images, faces = content["images"], content["annotations"]
    n_photos, copies, face_ids = len(images), {}, itertools.count(100_000)
    for image in images[:n]:
        name = f"Images/Train/also_{image['id']}.jpg"
        copy(annotations_json.parent / image["file_name"], annotations_json.parent / name)
        copies[name] = image["file_name"]
        number = n_photos + image["id"]
        images.append({**image, "id": number, "file_name": name})
        for of_photo in [f for f in faces if f["image_id"] == image["id"]]:
            faces.append({**of_photo, "id": next(face_ids), "image_id": number})
    annotations_json.write_text(json.dumps(content))
    return copies


# nothing planted


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """60 drawn photos, prepared. Never written to."""
    folder = tmp_path_factory.mktemp("sample")
    draw_sample(folder, 60)
    data = config(folder)
    prepare_data(data, processes=1)
    return data


@pytest.mark.slow
def test_a_drawn_sample_has_no_leak_and_no_flag(sample: DataConfig) -> None:
    told: list[tuple[str, int, int]] = []
    found = audit(sample, processes=1, progress=lambda *now: told.append(now))
    assert (found.photos, found.photos_not_found) == (60, 0)
    assert (found.leaks, found.near_faces, flags(found)) == ([], [], [])
    assert [verdict.probe for verdict in found.probes] == [
        "geometry",
        "colours",
        "encoding",
        "surroundings",
    ]
    assert [now for now in told if now[0] == "photos"][-1] == ("photos", 60, 60)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(sample: DataConfig) -> None:
    assert audit(sample, processes=2) == audit(sample, processes=1)


def test_labels_are_read_of_train_and_val_alone(
    sample: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(work_dir: Path, split: Split) -> pd.DataFrame:
        asked.append(split)
        return read_split(work_dir, split)

    monkeypatch.setattr(audit_module, "read_split", read)
    audit(sample, processes=1)
    assert sorted(asked) == ["train", "val"]
    places = read_places(sample.work_dir)
    assert set(places.columns) == {*COLUMNS, "split"} - {"category_id"}
    assert set(places["split"]) == set(SPLITS)


# leaks


@pytest.mark.parametrize(
    ("copy", "kind"), [(same_pixels, "pixels"), (reencode, "near")], ids=["pixels", "reencoded"]
)
def test_a_photo_copied_under_another_name_is_found_wherever_it_falls(
    copy: Copy, kind: str, tmp_path: Path
) -> None:
    copies = add_copies(draw_set(tmp_path, 30), copy, n=8)
    data = config(tmp_path)
    found = audited(data)
    splits = split_of(data)
    wanted = parted(copies, splits)
    assert any("test" in {splits[name] for name in pair} for pair in wanted)
    assert len(wanted) < len(copies)  # a copy beside its photo in one split is no leak
    assert pairs(found) == wanted
    assert len(found.leaks) == len(wanted)
    for leak in found.leaks:
        assert leak.kind == kind
        assert (leak.later.split, leak.earlier.split) == (
            splits[leak.later.file_name],
            splits[leak.earlier.file_name],
        )
        assert SPLITS.index(leak.later.split) > SPLITS.index(leak.earlier.split)
        for place in (leak.later, leak.earlier):
            assert f"{place.file_name} ({place.split}, Train_poly image " in str(leak)


def test_a_file_that_two_jsons_name_is_one_photo(tmp_path: Path) -> None:
    twice, other = draw_set(tmp_path, 20), draw_set(tmp_path, 12, stem="Test", seed=50)
    again = tmp_path / "Again.json"
    again.write_text(twice.read_text())
    of_splits = {"train": (twice,), "val": (again,), "test": (other,)}
    data = config(tmp_path).model_copy(update={"splits": "official", "annotations": of_splits})
    found = audited(data)
    assert found.photos == 32
    (warning,) = load_prepared(data).summary.warnings
    assert warning.startswith("pictures in two splits: 20, ")
    assert {leak.kind for leak in found.leaks} == {"pixels"}
    assert {leak.later.source != leak.earlier.source for leak in found.leaks} == {True}
    assert {leak.later.file_name == leak.earlier.file_name for leak in found.leaks} == {True}


def test_faces_of_one_photo_in_two_splits_are_named_by_its_id(tmp_path: Path) -> None:
    draw_set(tmp_path, 30)
    data = config(tmp_path, group_by="face")
    found = audited(data)
    places = read_places(data.work_dir)
    parted = places.groupby("image_id")["split"].nunique()
    assert (
        sorted(leak.later.image_id for leak in found.leaks) == parted[parted == 2].index.tolist()
    )
    assert {leak.kind for leak in found.leaks} == {"id"}
    assert {leak.later.image_id - leak.earlier.image_id for leak in found.leaks} == {0}


def test_a_face_pasted_into_other_photos_is_listed_and_no_leak(tmp_path: Path) -> None:
    content = json.loads(draw_sample(tmp_path, 30).read_text())
    first = {f["image_id"]: f for f in reversed(content["annotations"])}

    def photo_of(i: int) -> tuple[Path, tuple[int, int, int, int]]:
        x, y, w, h = (round(value) for value in first[i]["bbox"])
        return tmp_path / content["images"][i]["file_name"], (x, y, x + w, y + h)

    path, box = photo_of(0)
    with Image.open(path) as photo:
        pasted = photo.crop(box)
    for i in range(1, 5):
        path, box = photo_of(i)
        with Image.open(path) as photo:
            photo.paste(pasted.resize((box[2] - box[0], box[3] - box[1])), box)
            photo.save(path, quality=85)
    data = config(tmp_path)
    found = audited(data)
    splits = split_of(data)
    pasted_into = [splits[content["images"][i]["file_name"]] for i in range(5)]
    earliest = min(pasted_into, key=SPLITS.index)
    later = [
        f"Train_poly_{i}_{first[i]['id']}.jpg" for i in range(5) if pasted_into[i] != earliest
    ]
    assert later  # else the seed has to be another
    assert sorted(str(pair.later.cutted_name) for pair in found.near_faces) == sorted(later)
    assert found.leaks == []


# shortcuts


def one_face_each(
    folder: Path, shoot: Callable[[Path, int, int], None], n: int = 90
) -> DataConfig:
    """n photos of one face each, by turns real and fake; shoot(path, i, label) makes one."""
    names = [f"Images/Train/{i}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        shoot(folder / name, i, i % 2)
    faces = [face(i, i, i % 2, [20 + i % 7, 10 + i % 5, 30, 30]) for i in range(n)]
    write_json(folder / "Train_poly.json", names, faces)
    return config(folder)


def test_noise_gives_no_flag(tmp_path: Path) -> None:
    data = one_face_each(tmp_path, lambda path, i, label: draw_photo(path, seed=i))
    assert flags(audited(data)) == []


def test_a_label_written_into_jpeg_quality_is_flagged(tmp_path: Path) -> None:
    def shoot(path: Path, i: int, label: int) -> None:
        draw_photo(path, seed=i).save(path, quality=(95, 94)[label])

    found = audited(one_face_each(tmp_path, shoot))
    assert flags(found) == ["encoding"]
    assert found.probes[2].auc == 1.0
    assert found.leaks == []


def test_a_label_written_into_the_photos_border_is_flagged(tmp_path: Path) -> None:
    def shoot(path: Path, i: int, label: int) -> None:
        photo = draw_photo(path, seed=i)
        within = photo.crop((18, 8, 62, 52))  # every face
        brighter = photo.point(lambda value: min(value + 60 * label, 255))
        mask = np.hypot(*np.mgrid[-1:1:44j, -1:1:44j]) < 0.62
        brighter.paste(within, (18, 8), Image.fromarray(mask))
        brighter.save(path, quality=95)

    assert "surroundings" in flags(audited(one_face_each(tmp_path, shoot)))


def test_a_label_written_into_the_boxes_is_flagged(tmp_path: Path) -> None:
    found = audited(config(draw_set(tmp_path, 30).parent))  # real 24 px, fake 30 px
    assert "geometry" in flags(found)


# joins


def test_a_json_of_which_no_photo_is_found_is_refused(tmp_path: Path) -> None:
    draw_set(tmp_path, 20)
    write_json(tmp_path / "Val_poly.json", ["elsewhere/a.jpg"], [face(0, 0, 1, [0, 0, 20, 20])])
    data = config(tmp_path, "Train_poly.json", "Val_poly.json")
    with pytest.raises(DataError, match=r"Val_poly\.json: none of its 1 photos.*elsewhere/a"):
        audited(data)


def test_photos_without_a_crop_are_counted(tmp_path: Path) -> None:
    path = draw_set(tmp_path, 20)
    path.write_text(path.read_text().replace("Train_poly7.jpg", "nowhere.jpg"))
    found = audited(config(tmp_path))
    assert (found.photos, found.photos_not_found) == (19, 1)


def test_a_photo_that_is_gone_or_damaged_since_is_named(tmp_path: Path) -> None:
    draw_set(tmp_path, 20)
    data = config(tmp_path)
    prepare_data(data, processes=1)
    photo = tmp_path / "Images/Train/Train_poly3.jpg"
    photo.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"Train_poly3\.jpg: .*not a picture .*; put it back"):
        audit(data, processes=1)
    draw_photo(photo, size=(40, 10))
    with pytest.raises(DataError, match=r"Train_poly3\.jpg: box .* another photo now"):
        audit(data, processes=1)
    photo.unlink()
    with pytest.raises(DataError, match=r"photo 'Images/Train/Train_poly3\.jpg' of \w+ is absent"):
        audit(data, processes=1)


def test_what_was_not_prepared_is_not_audited(tmp_path: Path) -> None:
    draw_set(tmp_path, 12)
    with pytest.raises(NotPrepared, match="run deepfake-study prepare"):
        audit(config(tmp_path), processes=1)


# real photographs


def write_part(path: Path, n_photos: int) -> list[str]:
    """A JSON of the first real photos; their file_names."""
    content = json.loads((PHOTOS / "Train_poly.json").read_text())
    images = content["images"][:n_photos]
    ids = {image["id"] for image in images}
    faces = [f for f in content["annotations"] if f["image_id"] in ids]
    path.write_text(json.dumps({**content, "images": images, "annotations": faces}))
    return [image["file_name"] for image in images]


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real photos here")
def test_real_photos_have_no_leak(tmp_path: Path) -> None:
    write_part(tmp_path / "Train_poly.json", 300)
    found = audited(config(tmp_path).model_copy(update={"photos_dir": PHOTOS}))
    assert (found.photos, found.leaks) == (300, [])


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real photos here")
def test_a_real_photo_saved_again_under_another_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "Images/Train").mkdir(parents=True)
    for name in write_part(tmp_path / "Train_poly.json", 30):
        shutil.copyfile(PHOTOS / name, tmp_path / name)
    copies = add_copies(tmp_path / "Train_poly.json", reencode, n=10)
    data = config(tmp_path)
    found = audited(data)
    wanted = parted(copies, split_of(data))
    assert wanted
    assert pairs(found) == wanted
    assert {leak.kind for leak in found.leaks} == {"near"}


# the command


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, 30)


@pytest.mark.slow
def test_a_leak_is_exit_code_2_and_a_line_naming_both_photos(folder: Folder) -> None:
    copies = add_copies(folder.path / "photos/Train_poly.json", same_pixels, n=8)
    done = folder.call("audit", "--json")
    assert done.returncode == 2
    leaks = json.loads(done.stdout)["leaks"]
    *lines, way_out = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(leaks) > 0
    for line, leak in zip(lines, leaks, strict=True):
        for place in (leak["later"], leak["earlier"]):
            assert f"{place['file_name']} ({place['split']}, " in line
        names = {leak["later"]["file_name"], leak["earlier"]["file_name"]}
        assert names in [set(pair) for pair in copies.items()]
    assert f"photos in two splits: {len(leaks)}; take one of each pair out" in way_out
    assert not (folder.path / "faces/store").exists()


@pytest.mark.slow
def test_a_shortcut_is_a_warning_and_exit_code_0(folder: Folder) -> None:
    done = folder.call("audit")  # the real boxes are 24 px, the fake 30 px
    assert done.returncode == 0
    assert "geometry alone predicts the label: AUC 1.00 (1.00 to 1.00) on val" in done.stderr
    assert "flagged" in done.stdout
    assert "30 photos read" in done.stdout


@pytest.mark.slow
def test_many_leaks_are_cut_short_with_the_way_out(folder: Folder) -> None:
    add_copies(folder.path / "photos/Train_poly.json", shutil.copyfile, n=30)
    done = folder.call("audit", "--set", "data.group_by=face")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 22
    assert "more: --json names them all" in lines[20]
    assert "set data.group_by to photo" in lines[21]


def test_a_join_that_matches_nothing_is_one_line(folder: Folder) -> None:
    path = folder.path / "photos/Train_poly.json"
    path.write_text(path.read_text().replace("Images/Train/", "Images/Val/V"))
    done = folder.call("audit")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "none of 30 photos found ('Images/Val/VTrain_poly0.jpg' is absent)" in done.stderr


def test_annotations_of_images_that_are_not_there_are_one_line(folder: Folder) -> None:
    path = folder.path / "photos/Train_poly.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] += 1000
    path.write_text(json.dumps(content))
    done = folder.call("audit")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "annotation 0: image_id 0 has no entry in 'images'" in done.stderr


@pytest.mark.slow
def test_a_prepared_folder_whose_photos_went_is_refused(folder: Folder) -> None:
    assert folder.call("audit").returncode == 0
    shutil.rmtree(folder.path / "photos/Images")
    done = folder.call("audit")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "none of 30 photos found" in done.stderr
