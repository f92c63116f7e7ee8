"""A study on real photographs with pretrained weights, where both lie beside the repository."""

import json
from pathlib import Path

import pytest
import torch

from deepfake.export import load_exported
from tests.support.exported import both_ways
from tests.support.runs import REPOSITORY, Folder

SHARED = REPOSITORY.parent / "shared"
PHOTOS = SHARED / "data/photos"
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PHOTOS.is_dir() and WEIGHTS.is_file()), reason="no real photos or weights here"
    ),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Prepared and run: 80 photos, one epoch."""
    path = tmp_path_factory.mktemp("real")
    whole = json.loads((PHOTOS / "Train_poly.json").read_text())
    images = whole["images"][:80]
    ids = {image["id"] for image in images}
    faces = [face for face in whole["annotations"] if face["image_id"] in ids]
    (path / "part.json").write_text(json.dumps({**whole, "images": images, "annotations": faces}))
    folder = Folder(
        path,
        0,
        f"data.annotations=[{path}/part.json]",
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
    return folder


def test_real_photos_give_all_baselines_and_a_comparison(study: Folder) -> None:
    evaluated = study.json("evaluate", "--no-corruptions")
    assert all(f["proof"]["recomputed"] == f["proof"]["logged"] for f in evaluated["finalists"])
    rows = study.json("compare")["rows"]
    assert [row["source"] for row in rows] == ["report", "ours", "ours", "report", "ours", "best"]
    assert all(row["metrics"]["accuracy"] is not None for row in rows)


def test_an_exported_model_gives_real_faces_their_evaluated_probabilities(
    study: Folder, tmp_path: Path
) -> None:
    study.json("export", "--trial", "2", "--out", str(tmp_path / "model"))
    model = load_exported(tmp_path / "model", torch.device("cpu"))
    boxes = study.path / "part.json"
    evaluated, predicted = both_ways(model, study.path / "faces", PHOTOS, boxes)
    assert predicted == pytest.approx(evaluated, abs=1e-6)
    assert len({round(p, 6) for p in predicted}) > 10
