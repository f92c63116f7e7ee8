"""A study on real photographs with pretrained weights, where both lie beside the repository."""

import json
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, Folder

SHARED = REPOSITORY.parent / "shared"
PHOTOS = SHARED / "data/photos"
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PHOTOS.is_dir() and WEIGHTS.is_file()), reason="no real photos or weights here"
    ),
]


def test_real_photos_give_all_baselines_and_a_comparison(tmp_path: Path) -> None:
    whole = json.loads((PHOTOS / "Train_poly.json").read_text())
    images = whole["images"][:80]
    ids = {image["id"] for image in images}
    faces = [face for face in whole["annotations"] if face["image_id"] in ids]
    (tmp_path / "part.json").write_text(
        json.dumps({**whole, "images": images, "annotations": faces})
    )
    folder = Folder(
        tmp_path,
        0,
        f"data.annotations=[{tmp_path}/part.json]",
        f"data.photos_dir={PHOTOS}",
        f"train.weights={WEIGHTS}",
        "train.image_size={cnn: 32, mobilenet_v2: 64}",
        "train.max_epochs=1",
        "study.n_trials=4",
        config="report",
    )
    prepared = folder.json("prepare")
    assert (prepared["photos"], prepared["faces"]) == (80, len(faces))
    assert prepared["dropped"] == {}
    done = folder.run("run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    evaluated = folder.json("evaluate")
    assert all(f["proof"]["recomputed"] == f["proof"]["logged"] for f in evaluated["finalists"])
    rows = folder.json("compare")["rows"]
    assert [row["source"] for row in rows] == ["report", "ours", "ours", "report", "ours", "best"]
    assert all(row["metrics"]["accuracy"] is not None for row in rows)
