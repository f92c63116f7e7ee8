import json
import os
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from deepfake.config import DataConfig
from deepfake.data.feed import Faces
from deepfake.data.prepare import NotPrepared, Prepared, load_prepared, prepare_data
from deepfake.data.store import store_path
from deepfake.errors import DataError
from tests.support.photos import draw_set, face, write_json

ROOT = Path(__file__).parents[3]


def config(folder, **changes):
    settings = {
        "annotations": [folder / "Train_poly.json"],
        "photos_dir": folder,
        "work_dir": folder / "work",
    }
    return DataConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twelve photos with a real and a fake face each. Never written to."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_set(folder)
    return folder


@pytest.fixture(scope="module")
def done(drawn, tmp_path_factory):
    """The same, prepared. Never written to."""
    work_dir = tmp_path_factory.mktemp("done") / "work"
    prepare_data(config(drawn, work_dir=work_dir), processes=1)
    return work_dir


@pytest.fixture
def data(drawn, done, tmp_path):
    """A config whose work_dir is a prepared one of the test's own."""
    shutil.copytree(done, tmp_path / "work")
    return config(drawn, work_dir=tmp_path / "work")


def files(work_dir):
    """Name -> bytes of all that is kept; a lock file is none of it."""
    return {
        str(path.relative_to(work_dir)): path.read_bytes()
        for path in work_dir.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def rewritten(path, change):
    """The JSON at path, changed."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def stamps(work_dir):
    return {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.is_file()}


def test_photos_and_json_become_tables_crops_and_counts(tmp_path):
    draw_set(tmp_path)
    path = tmp_path / "Train_poly.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 12, "file_name": "Images/Train/none.jpg"})
    content["images"].append({"id": 13, "file_name": "Images/Train/faceless.jpg"})
    content["annotations"] += [
        face(24, 12, 1, [0, 0, 20, 20]),
        face(25, 0, 1, [0, 0, 15, 20]),
        face(26, 0, 0, [-1, 0, 20, 20]),
    ]
    path.write_text(json.dumps(content))
    prepared = prepare_data(config(tmp_path), processes=1)
    work_dir, summary = tmp_path / "work", prepared.summary
    assert prepared.work_dir == work_dir
    assert (summary.photos, summary.faces, summary.real, summary.fake) == (12, 25, 13, 12)
    assert summary.dropped == {"box under min_face_px": 1, "photo absent": 1}
    assert summary.clamped == 1
    assert (summary.photos_in_json, summary.real_in_json, summary.fake_in_json) == (14, 13, 14)
    assert {split: sum(of.values()) for split, of in summary.splits.items()} == pytest.approx(
        {"train": 0.7 * 25, "val": 0.15 * 25, "test": 0.15 * 25}, abs=2
    )
    faces = pd.read_csv(work_dir / "faces.csv")
    assert len(faces) == 27
    splits = pd.read_csv(work_dir / "splits.csv")
    by_split = faces.merge(splits).groupby(["split", "category_id"]).size().to_dict()
    assert by_split == {
        (split, label): n
        for split, counts in summary.splits.items()
        for label, n in enumerate(counts.values())
    }
    dropped = pd.read_csv(work_dir / "dropped.csv")
    assert dropped[["id_x", "reason"]].to_numpy().tolist() == [
        [24, "photo absent"],
        [25, "box under min_face_px"],
    ]
    crops = sorted((work_dir / "crops").iterdir())
    assert [path.name for path in crops] == sorted(splits["cutted_name"])
    assert sorted(path.name for path in work_dir.iterdir() if path.name != ".lock") == [
        "contact_sheet.jpg",
        "crops",
        "dropped.csv",
        "faces.csv",
        "prepared.json",
        "splits.csv",
    ]


def test_the_hashes_are_those_of_the_files(done, drawn):
    prepared = load_prepared(config(drawn, work_dir=done))
    assert prepared.splits_sha256 == sha256((done / "splits.csv").read_bytes()).hexdigest()
    assert prepared.faces_sha256 == sha256((done / "faces.csv").read_bytes()).hexdigest()
    lines = [
        f"{path.name} {sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted((done / "crops").iterdir())
    ]
    assert prepared.crops_sha256 == sha256("".join(lines).encode()).hexdigest()


def test_prepare_returns_what_load_prepared_reads(data):
    prepared = prepare_data(data, processes=1)
    assert isinstance(prepared, Prepared)
    assert prepared == load_prepared(data)


def test_preparing_again_touches_nothing_and_reads_no_photo(data, tmp_path):
    before = stamps(data.work_dir)
    told = []
    without_photos = data.model_copy(update={"photos_dir": tmp_path / "gone"})
    prepare_data(without_photos, processes=1, progress=lambda *now: told.append(now))
    assert stamps(data.work_dir) == before
    assert told == []


def test_stores_are_built_for_the_sides_asked_for(data):
    told = []
    prepared = prepare_data(
        data, sides=(32, 48), processes=1, progress=lambda *now: told.append(now)
    )
    assert told == [("store 32 px", 24, 24), ("store 48 px", 24, 24)]
    assert store_path(data.work_dir, 48).is_file()
    assert len(Faces.load(data.work_dir, "train", 32)) == sum(
        prepared.summary.splits["train"].values()
    )


@pytest.mark.parametrize("lost", ["crops/Train_poly_0_0.jpg", "splits.csv", "faces.csv"])
def test_a_lost_file_is_made_again_byte_for_byte(data, lost):
    before = files(data.work_dir)
    (data.work_dir / lost).unlink()
    prepare_data(data, processes=1)
    assert files(data.work_dir) == before


def bad_json(path):
    path.write_text("{")


def bad_box(path):
    path.write_text(path.read_text().replace("[2, 3, 24, 24]", "[2, 3, 24]"))


def bad_name(path):
    path.write_text(path.read_text().replace("Images/Train/Train_poly3", "../Train_poly3"))


def link_out(path):
    photo = path.parent / "Images/Train/Train_poly3.jpg"
    photo.rename(path.parent.parent / "moved.jpg")
    photo.symlink_to(path.parent.parent / "moved.jpg")


def no_photos(path):
    shutil.rmtree(path.parent / "Images")


def one_label(path):
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 0'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "No such file"),
        (bad_json, "not JSON"),
        (bad_box, "annotation 0: bbox"),
        (bad_name, "annotation 6.*outside the photo folder"),
        (link_out, "Train_poly3.jpg' points outside"),
        (no_photos, "none of 12 photos found"),
        (one_label, "no fake face"),
    ],
)
def test_bad_input_is_one_line_and_leaves_not_even_the_folder(tmp_path, spoil, words):
    folder = tmp_path / "photos"
    spoil(draw_set(folder))
    with pytest.raises(DataError, match=words) as caught:
        prepare_data(config(folder), processes=1)
    assert "\n" not in str(caught.value)
    assert not (folder / "work").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, ["data.seed was 0 and is now 1"]),
        ({"margin": 0.1, "min_face_px": 20}, ["margin was 0.0 and is now 0.1", "was 16", "20"]),
        ({"group_by": "face"}, ["data.group_by was photo and is now face"]),
        (
            {"fractions": {"train": 0.6, "val": 0.2, "test": 0.2}},
            ["fractions.train was 0.7 and is now 0.6", "fractions.val was 0.15 and is now 0.2"],
        ),
    ],
)
@pytest.mark.parametrize("command", [prepare_data, load_prepared])
def test_a_work_dir_made_with_other_settings_is_refused_by_name(data, changes, words, command):
    before = files(data.work_dir)
    with pytest.raises(DataError) as caught:
        command(DataConfig(**{**data.model_dump(), **changes}))
    assert [word for word in words if word not in str(caught.value)] == []
    assert "another folder, or delete this one" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(data.work_dir) == before


def test_a_work_dir_made_from_another_json_is_refused_by_name(tmp_path):
    path = draw_set(tmp_path)
    prepare_data(config(tmp_path), processes=1)
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=r"data\.annotations Train_poly\.json sha256 was \w+ and"):
        prepare_data(config(tmp_path), processes=1)
    more = draw_set(tmp_path, stem="More")
    both = config(tmp_path, annotations=[path, more])
    with pytest.raises(DataError, match=r"More\.json sha256 was absent and is now"):
        load_prepared(both)


def test_where_the_files_lie_is_no_setting(data, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "moved")
    (tmp_path / "work").rename(tmp_path / "also_moved")
    moved = config(tmp_path / "moved", work_dir=tmp_path / "also_moved")
    assert load_prepared(moved).summary.faces == 24


def test_an_interrupted_work_dir_is_not_continued_with_other_settings(data):
    settings = json.loads((data.work_dir / "prepared.json").read_text())["settings"]
    (data.work_dir / "prepared.json").unlink()
    (data.work_dir / "preparing.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"data\.seed was 0 and is now 5"):
        prepare_data(data.model_copy(update={"seed": 5}), processes=1)
    with pytest.raises(NotPrepared, match="run deepfake-study prepare"):
        load_prepared(data)
    assert prepare_data(data, processes=1).summary.faces == 24
    assert not (data.work_dir / "preparing.json").exists()


def test_crops_of_unknown_settings_are_not_taken_over(data):
    (data.work_dir / "prepared.json").unlink()
    with pytest.raises(DataError, match="made from unknown settings"):
        prepare_data(data, processes=1)


@pytest.mark.parametrize("name", ["splits.csv", "faces.csv"])
@pytest.mark.parametrize("command", [prepare_data, load_prepared])
def test_an_edited_table_is_refused_and_stays_as_it_is(data, name, command):
    path = data.work_dir / name
    edited = path.read_text().replace("train", "val").replace(",1,", ",0,")
    path.write_text(edited)
    with pytest.raises(DataError, match=f"{name}: changed since it was prepared"):
        command(data)
    assert path.read_text() == edited


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"settings": {"seed": 0}}'])
def test_a_damaged_manifest_is_refused_by_name(data, content):
    (data.work_dir / "prepared.json").write_text(content)
    with pytest.raises(DataError, match=r"prepared\.json: not readable"):
        load_prepared(data)


def test_an_empty_work_dir_is_not_prepared(drawn, tmp_path):
    with pytest.raises(NotPrepared, match="not prepared yet: run deepfake-study prepare"):
        load_prepared(config(drawn, work_dir=tmp_path))


def test_a_work_dir_that_cannot_be_made_is_one_line(drawn, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/work: Not a directory.*data\.work_dir"):
        prepare_data(config(drawn, work_dir=tmp_path / "file/work"), processes=1)


def test_photos_that_are_all_unreadable_are_one_line(tmp_path):
    faces = [face(i, i, i % 2, [i, 0, 20, 20]) for i in range(12)]
    write_json(tmp_path / "Train_poly.json", [f"{i}.jpg" for i in range(12)], faces)
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_text(f"no picture {i}")
    with pytest.raises(DataError, match=r"none of 12 faces .*\(0\.jpg: not a picture"):
        prepare_data(config(tmp_path), processes=1)


PREPARE = """
import sys
from pathlib import Path

def tell(stage, done, total):
    print(stage, done, total, flush=True)

if __name__ == "__main__":
    from deepfake.config import DataConfig
    from deepfake.data.prepare import prepare_data

    folder, work_dir, processes = sys.argv[1:]
    data = DataConfig(annotations=[Path(folder, "Train_poly.json")], photos_dir=folder,
                      work_dir=work_dir)
    print(prepare_data(data, processes=int(processes), progress=tell).splits_sha256, flush=True)
"""


def start(script, *arguments):
    script.write_text(PREPARE)
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_finds_it_done(drawn, done, tmp_path):
    both = [start(tmp_path / "prepare.py", drawn, tmp_path / "work", 1) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    expected = sha256((done / "splits.csv").read_bytes()).hexdigest()
    assert [lines[-1] for lines in printed] == [expected, expected]
    assert sorted(len(lines) for lines in printed) == [1, 3]  # crops, hashes and the result
    assert files(tmp_path / "work") == files(done)


def test_a_disk_too_small_for_the_stores_is_said_before_anything_is_cut(tmp_path, monkeypatch):
    draw_set(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DataError, match=r"the stores need 3\.6 MB \(224 px 3\.6 MB\), 0\.0 MB"):
        prepare_data(config(tmp_path), sides=[224], processes=1)  # 24 * 224 * 224 * 3
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_killed_while_cutting_and_run_again_it_gives_the_same_bytes(tmp_path):
    draw_set(tmp_path, n_photos=1000)
    prepare_data(config(tmp_path, work_dir=tmp_path / "whole"), processes=1)
    killed = start(tmp_path / "prepare.py", tmp_path, tmp_path / "work", 2)
    assert killed.stdout.readline() == "crops 16 1000\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    crops = tmp_path / "work/crops"
    assert not (tmp_path / "work/prepared.json").exists()
    n_cut = len(list(crops.glob("*.jpg")))
    assert 32 <= n_cut < 2000  # killed in the middle indeed
    kept = {path: path.stat().st_mtime_ns for path in crops.glob("*.jpg")}
    (crops / ".Train_poly_999_1999.jpg.1.tmp").write_bytes(b"half")
    prepare_data(config(tmp_path), processes=1)
    assert files(tmp_path / "work") == files(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_region_of_many_is_dropped_by_name_and_moves_nothing_else(drawn, done, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    region = {**face(99, 3, 1, [0, 0, 90, 60]), "iscrowd": 1}
    rewritten(tmp_path / "Train_poly.json", lambda c: c["annotations"].append(region))
    prepared = prepare_data(config(tmp_path), processes=1)
    assert prepared.summary.dropped == {"iscrowd": 1}
    dropped = pd.read_csv(tmp_path / "work/dropped.csv")
    assert dropped[["cutted_name", "reason"]].to_numpy().tolist() == [
        ["Train_poly_3_99.jpg", "iscrowd: a region of many"]
    ]
    for name in ("faces.csv", "splits.csv"):
        assert (tmp_path / "work" / name).read_bytes() == (done / name).read_bytes()


def test_what_was_read_otherwise_is_counted_in_the_summary(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)

    def swap(content):
        content["categories"] = [{"id": 0, "name": "Fake"}, {"id": 1, "name": "Real"}]
        content["annotations"][1]["category_id"] = 0

    rewritten(tmp_path / "Train_poly.json", swap)
    summary = prepare_data(config(tmp_path), processes=1).summary
    assert (summary.real, summary.fake) == (11, 13)
    assert summary.mended == {"labels read by their category's name": 24}


def test_a_work_dir_from_before_mended_was_counted_is_read(data):
    manifest = data.work_dir / "prepared.json"
    rewritten(manifest, lambda content: content["summary"].pop("mended"))
    assert load_prepared(data).summary.mended == {}
