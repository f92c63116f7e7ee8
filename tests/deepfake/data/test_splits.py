import numpy as np
import pandas as pd
import pytest

from deepfake.config import SPLITS, Fractions
from deepfake.data import splits
from deepfake.data.layouts import COLUMNS
from deepfake.data.splits import Opening, assign_splits, read_split, write_csv
from deepfake.errors import DataError

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
