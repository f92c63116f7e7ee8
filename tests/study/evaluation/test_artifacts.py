"""What an evaluation leaves in MLflow beside its table, and how a page gets it again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from study.config.schema import StudyConfig
from study.evaluation.artifacts import curves_and_galleries, logged_curves_and_galleries
from study.slots.study import create_or_join
from study.tracking.store import TrackingError
from study.tracking.tracker import Tracker
from tests.study.evaluation.test_analysis import table

SHA = "a" * 64
PNGS = {"roc", "precision_recall", "reliability", "errors_real_as_fake", "errors_fake_as_real"}
PNGS |= {
    f"errors_{baseline}_{kind}"
    for baseline in ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
    for kind in ("real_as_fake", "fake_as_real")
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory):
    """Of test_analysis' table, with a picture of each face."""
    crops_dir = tmp_path_factory.mktemp("crops")
    predictions = table()
    for name in predictions["cutted_name"].unique():
        Image.new("RGB", (40, 50)).save(crops_dir / name, "JPEG")
    return curves_and_galleries(predictions, "slot 7", SHA, crops_dir)


def test_the_best_candidate_and_the_baselines_are_shown_and_no_diagnostics(files) -> None:
    assert set(files) == {
        "test/curves.json",
        "test/errors.json",
        *(f"test/{name}.png" for name in PNGS),
    }
    models = ["slot 7", "cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned"]
    curves, errors = (json.loads(files[f"test/{name}.json"]) for name in ("curves", "errors"))
    assert [model["model"] for model in curves["models"]] == models
    assert [g["model"] for g in errors["galleries"]][::2] == models
    assert all(face["jpeg"] for g in errors["galleries"] for face in g["faces"])


@pytest.mark.slow
def test_a_page_gets_those_of_its_evaluation_and_no_others(
    files, make_config: Callable[..., StudyConfig], tmp_path: Path
) -> None:
    config = make_config()
    tracker = Tracker(config, create_or_join(config, {"study.seed": 0}))
    with pytest.raises(TrackingError, match="can't be read"):
        logged_curves_and_galleries(tracker, SHA)
    tracker.log_study({}, files)
    found = logged_curves_and_galleries(tracker, SHA)
    assert found["curves"] == json.loads(files["test/curves.json"])["models"]
    assert found["galleries"] == json.loads(files["test/errors.json"])["galleries"]
    with pytest.raises(TrackingError, match="to another evaluation or is incomplete"):
        logged_curves_and_galleries(tracker, "b" * 64)
    tracker.log_study({}, {"test/errors.json": files["test/errors.json"][:1000]})
    with pytest.raises(
        TrackingError, match=r"errors\.json belongs to another evaluation or is incomplete"
    ):
        logged_curves_and_galleries(tracker, SHA)
