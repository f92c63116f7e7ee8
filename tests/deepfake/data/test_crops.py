import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from deepfake.config import DataConfig
from deepfake.data import crops
from deepfake.data.crops import crop_box, cut_faces
from deepfake.data.layouts.openforensics import read_faces
from deepfake.data.photos.names import resolve_photos
from deepfake.errors import DataError
from tests.support.photos import SIZE, draw_photo, draw_set, face, write_json

ROOT = Path(__file__).parents[3]


def jpeg(picture):
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def one_photo(folder, bboxes, name="a.jpg"):
    """A faces table of one photo, which the caller draws."""
    faces = [face(i, 0, i % 2, bbox) for i, bbox in enumerate(bboxes)]
    return read_faces([write_json(folder / "s.json", [name], faces)])


def cut(faces, folder, processes=1, progress=None, **settings):
    """Crops in a folder of their own, which must then hold nothing but whole JPEGs."""
    crops_dir = folder / "crops"
    data = DataConfig(
        annotations=(folder / "s.json",),
        photos_dir=folder,
        work_dir=folder,
        **settings,
    )
    photos = resolve_photos(faces["file_name"], folder).photos
    return crops_dir, cut_faces(faces, photos, data, crops_dir, processes, progress)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("bbox", "margin", "expected"),
    [
        ([10, 20, 30, 40], 0, (10, 20, 40, 60)),
        ([10, 20, 30, 40], 0.5, (0, 0, 55, 80)),  # 10 - 15 and 20 - 20 meet the edges
        ([10, 20, 20, 20], 0.25, (5, 15, 35, 45)),
        ([-5, -6, 30, 40], 0, (0, 0, 25, 34)),
        ([90, 70, 30, 40], 0, (90, 70, 100, 80)),
        ([10.4, 20.6, 30, 40], 0, (10, 21, 40, 61)),
        ([100, 20, 30, 40], 0, None),  # begins where the photo ends
        ([-30, 20, 30, 40], 0, None),  # ends where the photo begins
        ([10, 80, 30, 40], 0, None),
        ([10, 20, 0, 40], 0, None),
        ([10, 20, -5, 40], 0, None),
        ([10, 20, 0.3, 40], 0, None),  # less than a pixel
        ([-1e308, -1e308, 1.7e308, 1.7e308], 2, (0, 0, 100, 80)),
    ],
)
def test_a_box_is_cut_with_its_margin_and_clamped_to_the_photo(bbox, margin, expected):
    assert crop_box(bbox, (100, 80), margin) == expected


def test_a_crop_is_the_boxs_pixels_as_jpeg_of_quality_95(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    crops_dir, result = cut(one_photo(tmp_path, [[5, 6, 20, 30]]), tmp_path)
    with Image.open(tmp_path / "a.jpg") as photo:
        assert content_of(crops_dir) == {"s_0_0.jpg": jpeg(photo.crop((5, 6, 25, 36)))}
    assert result.dropped.empty
    assert result.clamped == 0


def test_boxes_are_in_stored_pixels_whatever_the_exif_orientation_says(tmp_path):
    picture = draw_photo(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    crops_dir, _ = cut(one_photo(tmp_path, [[60, 6, 30, 30]], "a.png"), tmp_path)
    assert content_of(crops_dir)["s_0_0.jpg"] == jpeg(picture.crop((60, 6, 90, 36)))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.jpg"),
        ("CMYK", "a.jpg"),
        ("P", "a.png"),
        ("RGBA", "a.png"),
        ("1", "a.png"),
        ("P", "a.gif"),
        ("RGB", "a.webp"),
        ("RGB", "a.bmp"),
        ("RGB", "a.tiff"),
    ],
)
def test_photos_of_any_mode_become_rgb(tmp_path, mode, name):
    draw_photo(tmp_path / "plain.png").convert(mode).save(tmp_path / name)
    crops_dir, result = cut(one_photo(tmp_path, [[5, 6, 30, 30]], name), tmp_path)
    assert result.dropped.empty
    with Image.open(crops_dir / "s_0_0.jpg") as crop, Image.open(tmp_path / name) as photo:
        assert crop.mode == "RGB"
        expected = jpeg(photo.convert("RGB").crop((5, 6, 35, 36)))
    assert content_of(crops_dir)["s_0_0.jpg"] == expected


def test_a_photos_comment_does_not_travel_into_its_crops(tmp_path):
    draw_photo(tmp_path / "plain.png").save(tmp_path / "a.jpg", comment=b"made by a generator")
    crops_dir, _ = cut(one_photo(tmp_path, [[5, 6, 30, 30]]), tmp_path)
    assert b"generator" not in content_of(crops_dir)["s_0_0.jpg"]


def test_each_photo_is_opened_once_for_all_its_faces(tmp_path, monkeypatch):
    draw_set(tmp_path, n_photos=3)
    draw_set(tmp_path, n_photos=3, stem="More")
    opened = []
    real_open = Image.open
    monkeypatch.setattr(
        crops.Image, "open", lambda path, **more: opened.append(path) or real_open(path, **more)
    )
    faces = read_faces([tmp_path / "Train_poly.json", tmp_path / "More.json"])
    crops_dir, _ = cut(faces, tmp_path)
    assert len(opened) == len(set(opened)) == 6
    assert len(content_of(crops_dir)) == 12


def test_what_cannot_be_cut_is_named_with_its_reason_and_stops_nothing(tmp_path):
    names = ["ok.jpg", "absent.jpg", "two.jpg", "text.jpg", "cut_off.jpg", "vast.png"]
    for name in ("ok.jpg", "x/two.jpg", "y/two.jpg", "whole.jpg"):
        draw_photo(tmp_path / name)
    (tmp_path / "text.jpg").write_text("not a picture")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "vast.png")
    bboxes = {
        0: [[5, 5, 20, 20], [SIZE[0], 5, 20, 20], [5, 5, 15, 40], [90, 5, 20, 20], [-4, 5, 20, 20]]
    }
    numbered = [(i, b) for i in range(6) for b in bboxes.get(i, [[5, 5, 20, 20]])]
    faces = [face(k, i, 0, b) for k, (i, b) in enumerate(numbered)]
    table = read_faces([write_json(tmp_path / "s.json", names, faces)])
    crops_dir, result = cut(table, tmp_path)
    assert result.dropped[["id_x", "reason"]].to_numpy().tolist() == [
        [1, "box outside the photo"],
        [2, "box under min_face_px"],  # 15 px wide
        [3, "box under min_face_px"],  # 20 px wide, 6 of them in the photo
        [5, "photo absent"],
        [6, "photo ambiguous: x/two.jpg, y/two.jpg"],
        [7, "photo unreadable: not a picture that Pillow can read"],
        [8, result.dropped["reason"][6]],
        [9, "photo over 200 megapixels: data.max_photo_megapixels is the limit"],
    ]
    assert result.dropped["reason"][6].startswith("photo unreadable: image file is truncated")
    assert not result.dropped["reason"].str.contains(str(tmp_path), regex=False).any()
    assert result.dropped["file_name"].tolist() == ["ok.jpg"] * 3 + names[1:]
    assert result.clamped == 1  # id 4; id 3 was clamped too, and dropped
    assert sorted(content_of(crops_dir)) == ["s_0_0.jpg", "s_0_4.jpg"]


def test_a_box_is_counted_as_clamped_when_only_its_margin_reaches_out(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    table = one_photo(tmp_path, [[2, 20, 20, 20], [30, 20, 20, 20]])
    assert cut(table, tmp_path, margin=0.2)[1].clamped == 1


def test_min_face_px_looks_at_the_box_without_its_margin(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    _, result = cut(one_photo(tmp_path, [[20, 20, 15, 20]]), tmp_path, margin=0.5)
    assert result.dropped["reason"].tolist() == ["box under min_face_px"]


def test_a_photo_over_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    draw_photo(tmp_path / "a.png", size=(1001, 1000))  # to 2 megapixels Pillow would only warn
    draw_photo(tmp_path / "small.png", size=(40, 40))
    faces = [face(0, 0, 0, [0, 0, 20, 20]), face(1, 1, 0, [0, 0, 20, 20])]
    table = read_faces([write_json(tmp_path / "s.json", ["a.png", "small.png"], faces)])
    decoded = []
    real_load = Image.Image.load
    monkeypatch.setattr(
        Image.Image, "load", lambda self: decoded.append(self.size) or real_load(self)
    )
    limit_of_pillow = Image.MAX_IMAGE_PIXELS
    _, result = cut(table, tmp_path, max_photo_megapixels=1)
    reason = "photo over 1 megapixels: data.max_photo_megapixels is the limit"
    assert result.dropped["reason"].tolist() == [reason]
    assert (1001, 1000) not in decoded
    assert limit_of_pillow == Image.MAX_IMAGE_PIXELS


def test_cutting_again_keeps_whole_crops_and_makes_only_what_is_missing(tmp_path):
    table = read_faces([draw_set(tmp_path, n_photos=3)])
    table.loc[5, "bbox"] = "[60, 40, 60, 20]"  # clamped
    table.loc[4, "bbox"] = "[60, 40, 3, 3]"  # dropped
    crops_dir, first = cut(table, tmp_path)
    whole = content_of(crops_dir)
    (crops_dir / "Train_poly_0_0.jpg").unlink()
    (crops_dir / "Train_poly_1_2.jpg").write_bytes(b"")  # what a power cut leaves
    (crops_dir / ".Train_poly_0_0.jpg.999.tmp").write_bytes(b"half")
    kept = crops_dir / "Train_poly_0_1.jpg"
    os.utime(kept, (1, 1))
    _, second = cut(table, tmp_path)
    assert content_of(crops_dir) == whole
    assert kept.stat().st_mtime == 1
    assert second.clamped == first.clamped == 1
    assert second.dropped.equals(first.dropped)


@pytest.mark.slow
def test_two_processes_give_the_same_as_one_and_count_photos(tmp_path):
    table = read_faces([draw_set(tmp_path, n_photos=40)])
    crops_dir, alone = cut(table, tmp_path)
    whole = content_of(crops_dir)
    for path in crops_dir.iterdir():
        path.unlink()
    told = []
    _, together = cut(table, tmp_path, processes=2, progress=lambda *now: told.append(now))
    assert content_of(crops_dir) == whole
    assert together.dropped.equals(alone.dropped)
    assert told == [("crops", 16, 40), ("crops", 32, 40), ("crops", 40, 40)]


def test_a_crop_that_cannot_be_written_is_the_disks_fault_not_the_photos(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    table = one_photo(tmp_path, [[5, 6, 50, 50]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # bytes a file may have
    try:
        with pytest.raises(DataError) as caught:
            cut(table, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{tmp_path}/crops/s_0_0.jpg: File too")
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path / "crops") == {}


POOL = """
import os, sys, time
from pathlib import Path
from deepfake.parallel import in_parallel

def stay(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    list(in_parallel(stay, [1, 2], 2))
"""


@pytest.mark.slow
def test_a_killed_parents_processes_end_with_it(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    pids = tmp_path / "pids"
    pids.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, pids], env=env)
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_running(path.name) for path in pids.iterdir()))


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # dead, and not yet reaped


def test_dropped_rows_are_the_same_on_every_machine(tmp_path):
    """The table holds names and ids of the JSON, and no path."""
    draw_photo(tmp_path / "a.jpg")
    table = one_photo(tmp_path, [[5, 6, 20, 3], [5, 6, 20, 20]])
    _, result = cut(table, tmp_path)
    assert json.loads(result.dropped.to_json(orient="records")) == [
        {
            "source": "s",
            "image_id": 0,
            "id_x": 0,
            "file_name": "a.jpg",
            "cutted_name": "s_0_0.jpg",
            "reason": "box under min_face_px",
        }
    ]
