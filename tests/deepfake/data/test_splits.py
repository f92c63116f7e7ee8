import json

import numpy as np
import pandas as pd
import pytest

from deepfake.config import SPLITS, DataConfig, Fractions
from deepfake.data import splits
from deepfake.data.layouts import COLUMNS
from deepfake.data.prepare import prepare_data
from deepfake.data.splits import (
    Opening,
    assign_splits,
    groups_of,
    pictures_of,
    read_split,
    write_csv,
)
from deepfake.errors import DataError
from tests.support.photos import draw_set

FRACTIONS = Fractions()


def faces_of(photos, source="s"):
    """A faces table; photos holds the labels of each photo's faces, as in [(0, 1), (1,)]."""
    rows = [
        (
            face,
            image,
            label,
            "[0, 0, 20, 20]",
            f"{image}.jpg",
            f"{source}_{image}_{face}.jpg",
            source,
        )
        for image, labels in enumerate(photos)
        for face, label in enumerate(labels)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def random_photos(n, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2, rng.integers(1, 6)).tolist() for _ in range(n)]


def counts(faces, table):
    """(split, label) -> faces."""
    joined = faces.merge(table, on="cutted_name", validate="one_to_one")
    assert len(joined) == len(faces)
    return joined.groupby(["split", "category_id"]).size().to_dict()


@pytest.mark.parametrize("seed", range(2))
def test_faces_of_one_image_never_straddle_two_splits(seed):
    first, second = faces_of(random_photos(40, seed)), faces_of(random_photos(40, seed), "t")
    faces = pd.concat([first, second], ignore_index=True)
    table = assign_splits(faces, FRACTIONS, "photo", seed)
    joined = faces.merge(table, on="cutted_name")
    assert joined.groupby(["source", "image_id"])["split"].nunique().max() == 1
    # the same image_id in two JSONs is two photos, and they do part
    assert joined.groupby("image_id")["split"].nunique().max() == 2


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.3, 0.2)])
def test_on_900_photos_each_split_has_its_share_of_each_label_within_a_photo(seed, shares):
    faces = faces_of(random_photos(900, seed))  # up to 5 faces a photo
    fractions = Fractions(train=shares[0], val=shares[1], test=shares[2])
    got = counts(faces, assign_splits(faces, fractions, "photo", seed))
    for split, share in zip(SPLITS, shares, strict=True):
        for label in (0, 1):
            wanted = share * (faces["category_id"] == label).sum()
            assert abs(got[split, label] - wanted) <= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "photos",
    [
        [(0,)] * 5 + [(1,)] * 5,
        [(0,)] * 7 + [(1,)] * 3,  # one fake photo for each split, and no other way
        [(0, 1)] * 10,
        [(0, 0)] * 3 + [(1, 1)] * 3 + [(0, 1)] * 4,
        [(0,)] * 9 + [(0, 1, 1), (1,), (1, 1, 1, 1)],
        [(0,)] * 97 + [(1,)] * 3,
    ],
)
def test_every_split_has_both_labels_from_ten_photos_up(photos, seed):
    faces = faces_of(photos)
    got = counts(faces, assign_splits(faces, FRACTIONS, "photo", seed))
    assert set(got) == {(split, label) for split in SPLITS for label in (0, 1)}


def test_split_by_face_every_split_has_its_exact_share(tmp_path):
    faces = faces_of([(0, 1)] * 100)
    got = counts(faces, assign_splits(faces, FRACTIONS, "face", 0))
    assert got == {(s, k): n for s, n in zip(SPLITS, (70, 15, 15), strict=True) for k in (0, 1)}


def test_split_by_face_photos_do_straddle():
    faces = faces_of([(0, 1)] * 100)
    joined = faces.merge(assign_splits(faces, FRACTIONS, "face", 0), on="cutted_name")
    assert joined.groupby("image_id")["split"].nunique().max() == 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(tmp_path):
    faces = faces_of(random_photos(30, 1))
    shuffled = faces.sample(frac=1, random_state=3).reset_index(drop=True)
    for name, table, seed in (
        ("a", faces, 7),
        ("b", faces, 7),
        ("c", faces, 8),
        ("d", shuffled, 7),
    ):
        write_csv(assign_splits(table, FRACTIONS, "photo", seed), tmp_path / name)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b == d
    assert a != c
    lines = a.decode().splitlines()
    assert lines[0] == "cutted_name,split"
    assert lines[1:] == sorted(lines[1:])


def test_the_split_of_seed_0_is_the_one_written_down_here():
    """A study's fingerprint rests on it: another scikit-learn must not draw another split."""
    table = assign_splits(faces_of([(0,), (1,)] * 6), FRACTIONS, "photo", 0)
    held_out = table[table["split"] != "train"]
    assert dict(held_out.to_numpy().tolist()) == {
        "s_1_0.jpg": "test",
        "s_6_0.jpg": "val",
        "s_8_0.jpg": "test",
        "s_9_0.jpg": "val",
    }


def test_any_non_negative_seed_is_taken():
    assert len(assign_splits(faces_of([(0, 1)] * 10), FRACTIONS, "photo", 2**70)) == 20


def test_a_split_left_with_one_label_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"no fake face \(of 2 in all.*add photos or raise data\."):
        assign_splits(faces_of([(0,)] * 10 + [(1,)] * 2), FRACTIONS, "photo", 0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_photos_for_three_splits_are_refused(n):
    with pytest.raises(DataError, match=f"{n} photos .* can't fill train, val and test"):
        assign_splits(faces_of([(0, 1)] * n), FRACTIONS, "photo", 0)


@pytest.mark.parametrize(
    "n",
    [10, 11, 13, 16, 20, 27, *(pytest.param(n, marks=pytest.mark.slow) for n in range(28, 70, 6))],
)
def test_any_number_of_photos_is_split_at_any_fractions(n):
    """scikit-learn refuses many combinations of sizes and strata: none of them is asked for."""
    faces = faces_of([(0, 1)] * n)
    for shares in ((0.7, 0.15, 0.15), (0.2, 0.2, 0.6), (1 / 3, 1 / 3, 1 / 3), (0.9, 0.08, 0.02)):
        fractions = Fractions(train=shares[0], val=shares[1], test=shares[2])
        got = counts(faces, assign_splits(faces, fractions, "photo", 0))
        for split, share in zip(SPLITS, shares, strict=True):
            assert abs(got[split, 0] - share * n) <= 1.5


@pytest.fixture
def work_dir(tmp_path):
    """Splits of twelve photos called NA and 007; one face has no crop."""
    faces = pd.concat([faces_of([(0, 1)] * 6, "NA"), faces_of([(0, 1)] * 6, "007")])
    write_csv(faces, tmp_path / "faces.csv")
    write_csv(assign_splits(faces[1:], FRACTIONS, "photo", 0), tmp_path / "splits.csv")
    return tmp_path


def test_a_split_is_read_as_rows_of_faces_csv_in_the_order_of_their_names(work_dir):
    opening = Opening(("best",), "0" * 64)
    parts = [read_split(work_dir, split, opening) for split in SPLITS]
    assert sum(map(len, parts)) == 23
    for split, part in zip(SPLITS, parts, strict=True):
        table = pd.read_csv(work_dir / "splits.csv")
        names = table.loc[table["split"] == split, "cutted_name"].tolist()
        assert part["cutted_name"].tolist() == sorted(names)
        assert part.columns.tolist() == list(COLUMNS)
    assert set(pd.concat(parts)["source"]) == {"NA", "007"}
    assert parts[0].dtypes["category_id"] == np.int64


def test_the_test_split_stays_closed_without_an_opening(work_dir):
    with pytest.raises(splits.SplitClosed):
        read_split(work_dir, "test")
    assert issubclass(splits.SplitClosed, PermissionError)
    assert len(read_split(work_dir, "val")) == 4


# photos that are one picture

BLOCKS = 20_000  # bytes: beginning, middle and end are not all of it


def written(folder, **contents):
    """name -> the path of a file with that content."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_photos_of_the_same_bytes_are_one_picture_by_the_first_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, BLOCKS, dtype=np.uint8).tobytes()
    other = bytearray(noise)
    other[BLOCKS // 4] ^= 1  # where no block is read
    photos = written(tmp_path, c=noise, a=noise, b=bytes(other), d=noise[:-1], e=b"")
    assert pictures_of(photos) == {"c": "a", "a": "a", "b": "b", "d": "d", "e": "e"}


def test_names_of_one_file_are_one_picture_and_an_absent_one_is_its_own(tmp_path):
    (path,) = written(tmp_path, x=b"1").values()
    found = pictures_of({"x": path, "./x": path, "y": "absent", "z": "absent"})
    assert found == {"x": "./x", "./x": "./x", "y": "y", "z": "z"}


def test_a_photo_that_is_gone_is_its_own_picture(tmp_path):
    assert pictures_of({"x": tmp_path / "x", "y": tmp_path / "y"}) == {"x": "x", "y": "y"}


def table(*photos):
    """A face for each (image_id, file_name)."""
    rows = [{"source": "s", "image_id": n, "file_name": name} for n, name in photos]
    return pd.DataFrame(rows)


def test_faces_of_one_picture_are_one_group_numbered_by_its_first_photo():
    faces = table((5, "a"), (3, "b"), (3, "b"), (9, "c"), (7, "a"))
    own = {name: name for name in "abc"}
    assert groups_of(faces, None, "photo").tolist() == [1, 0, 0, 3, 2]
    assert groups_of(faces, own, "photo").tolist() == [1, 0, 0, 2, 1]
    assert groups_of(faces, {**own, "c": "b"}, "photo").tolist() == [1, 0, 0, 0, 1]
    assert groups_of(faces, own, "face").tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def copied(tmp_path):
    """20 photos of two faces, the first six of them under another name and id as well."""
    path = draw_set(tmp_path, 20)
    content = json.loads(path.read_text())
    for image in content["images"][:6]:
        copy = f"Images/Train/also_{image['id']}.jpg"
        (tmp_path / copy).write_bytes((tmp_path / image["file_name"]).read_bytes())
        content["images"].append({**image, "id": 100 + image["id"], "file_name": copy})
    copies = [
        {**face, "id": 1000 + face["id"], "image_id": 100 + face["image_id"]}
        for face in content["annotations"]
        if face["image_id"] < 6
    ]
    content["annotations"] += copies
    path.write_text(json.dumps(content))
    return DataConfig(annotations=(path,), photos_dir=tmp_path, work_dir=tmp_path / "work")


@pytest.mark.parametrize("seed", range(3))
def test_a_copied_photo_goes_to_its_originals_split_and_is_counted(copied, seed):
    summary = prepare_data(copied.model_copy(update={"seed": seed}), processes=1).summary
    assert summary.mended == {"photos that are the picture of another": 6}
    assert summary.warnings == ()
    faces, splits = (pd.read_csv(copied.work_dir / f"{name}.csv") for name in ("faces", "splits"))
    places = faces.merge(splits, on="cutted_name")
    assert places.groupby(places["image_id"] % 100)["split"].nunique().max() == 1


def test_a_picture_in_two_splits_is_said_where_splits_are_drawn_by_face(copied):
    summary = prepare_data(copied.model_copy(update={"group_by": "face"}), processes=1).summary
    (warning,) = summary.warnings
    assert warning.startswith("pictures in two splits: ")
    assert "deepfake-study audit CONFIG" in warning


def test_one_box_of_a_copied_photo_with_another_label_is_refused_naming_both(copied):
    (path,) = copied.annotations
    content = json.loads(path.read_text())
    content["annotations"][-1]["category_id"] = 0  # of 1011, the copy of 11
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 11 .*fake .*annotation 1011 .*real .*also_5"):
        prepare_data(copied, processes=1)
    assert not copied.work_dir.exists()
