"""Re-evaluation: the proof from logged weights, and test opened for a frozen list."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from deepfake.config import ImageSize, TrainConfig
from deepfake.data.feed import Faces
from deepfake.data.prepare import load_prepared
from deepfake.data.splits import SplitClosed, read_split
from deepfake.models.build import build_model
from study.config.load import load_config
from study.evaluation.evaluator import Evaluator, ProofFailed
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.worker.inputs import Inputs
from study.worker.setup import study_fingerprint
from tests.support.runs import REPOSITORY, Folder
from tests.support.small_study import SLOTS

pytestmark = pytest.mark.slow


def slots_of(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Slots:
    monkeypatch.chdir(folder.path)
    return join(load_config(REPOSITORY / "configs/sample.yaml", folder.overrides))


def run_of(folder: Folder, slot: int) -> Run:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids, f"tags.slot = '{slot}'")
    return run


def artifacts(run: Run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def network_of(run: Run) -> nn.Module:
    """The CNN of a run, rebuilt without the study."""
    params = {name: float(run.data.params[name]) for name in ("lr", "weight_decay", "dropout")}
    network = build_model(TrainConfig(variant="cnn", image_size=ImageSize(cnn=32), **params), None)
    network.load_state_dict(load_file(artifacts(run) / "weights/best.safetensors"))
    return network.eval()


def test_the_best_and_the_baselines_are_proven_bit_for_bit_on_the_same_hardware(
    small_study: Folder, evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [finalist["model"] for finalist in evaluated["finalists"]]
    drawn = [r for r in slots_of(small_study, monkeypatch).records() if not r.baseline]
    best = min((r for r in drawn if r.state == "complete"), key=lambda r: r.best_loss or 9.0)
    names = ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
    assert models == [f"slot {best.number}", *names]
    for finalist in evaluated["finalists"]:
        proof = finalist["proof"]
        assert proof["same_hardware"]
        # a frozen backbone's head learned from stored features, embedded in other batches
        off = 1e-5 if finalist["variant"] == "mobilenet_v2_frozen" else 0
        assert abs(proof["recomputed"] - proof["logged"]) <= off
    assert evaluated["finalists"][0]["slot"] == best.number
    assert evaluated["finalists"][0]["proof"]["logged"] == best.best_loss


def test_the_test_figures_are_those_of_scikit_learn(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = slots_of(small_study, monkeypatch)
    finalist = slots.attributes()["evaluation"]["finalists"][1]
    assert finalist["model"] == "cnn"
    network = network_of(run_of(small_study, finalist["slot"]))

    # read without the project: the store's rows of the split, normalised as torchvision does
    work_dir = small_study.path / "faces"
    meta = json.loads((work_dir / "store/faces_32.json").read_text())
    start, stop = meta["rows"]["test"]
    pixels = np.load(work_dir / "store/faces_32.npy")[start:stop]
    images = torch.stack(
        [normalize(to_tensor(p), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for p in pixels]
    )
    names = pd.read_csv(work_dir / "splits.csv").query("split == 'test'")["cutted_name"]
    faces = pd.read_csv(work_dir / "faces.csv").set_index("cutted_name")
    labels = faces.loc[sorted(names), "category_id"].to_numpy()
    with torch.inference_mode():
        score = network(images).softmax(1)[:, 1].numpy()

    metrics = finalist["test"]["metrics"]
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, score >= 0.5, zero_division=0
    )
    assert finalist["test"]["faces"] == len(labels)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, score >= 0.5))
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, score), abs=1e-6)
    for label in (0, 1):
        assert metrics[f"precision_{label}"] == pytest.approx(precision[label])
        assert metrics[f"recall_{label}"] == pytest.approx(recall[label])
        assert metrics[f"f1_{label}"] == pytest.approx(f1[label])


def test_the_opening_and_the_figures_are_in_mlflow(
    small_study: Folder, evaluated: dict[str, Any]
) -> None:
    run = run_of(small_study, 0)
    assert 0 <= run.data.metrics["test_accuracy"] <= 1
    matrix = json.loads((artifacts(run) / "test/confusion_matrix.json").read_text())
    assert matrix == evaluated["finalists"][1]["test"]["confusion"]
    assert (artifacts(run) / "test/confusion_matrix.png").exists()
    client = MlflowClient(tracking_uri=f"sqlite:///{small_study.path}/mlruns/mlflow.db")
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["opening_sha256"] == evaluated["opening"]["sha256"]


def test_curves_and_the_faces_that_were_mistaken_are_in_mlflow(
    small_study: Folder, evaluated: dict[str, Any]
) -> None:
    run = run_of(small_study, 0)
    client = MlflowClient(tracking_uri=f"sqlite:///{small_study.path}/mlruns/mlflow.db")
    folder = artifacts(client.get_run(run.data.tags["mlflow.parentRunId"])) / "test"
    pngs = {path.stem for path in folder.glob("*.png")}
    assert pngs >= {"roc", "precision_recall", "reliability", "errors_real_as_fake"}
    errors = json.loads((folder / "errors.json").read_text())
    assert errors["predictions_sha256"] == evaluated["predictions_sha256"]
    confusion = {f["model"]: f["test"]["confusion"] for f in evaluated["finalists"]}
    splits = pd.read_csv(small_study.path / "faces/splits.csv").set_index("cutted_name")["split"]
    faces = pd.read_csv(small_study.path / "faces/faces.csv").set_index("cutted_name")
    assert len(errors["galleries"]) == 2 * len(confusion)
    for gallery in errors["galleries"]:
        truth = ("real_as_fake", "fake_as_real").index(gallery["kind"])
        assert gallery["errors"] == confusion[gallery["model"]][truth][1 - truth]
        for face in gallery["faces"]:
            assert splits[face["name"]] == "test"
            assert faces.loc[face["name"], "category_id"] == truth
            assert face["jpeg"]


def test_evaluating_again_opens_nothing_new(
    small_study: Folder, evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = small_study.json("evaluate")
    assert again["opening"] == evaluated["opening"]
    assert again["finalists"] == evaluated["finalists"]
    assert len(slots_of(small_study, monkeypatch).attributes()["openings"]) == 1


def test_a_slot_outside_the_list_is_proven_and_its_test_figures_stay_closed(
    small_study: Folder,
) -> None:
    best = small_study.json("status")["best"]["slot"]
    outsider = next(n for n in range(3, SLOTS) if n != best)
    closed = small_study.json("evaluate", "--trial", str(outsider))
    assert closed["finalists"][0]["test"] is None
    assert closed["finalists"][0]["val"]["faces"] > 0
    opened = small_study.json("evaluate", "--trial", "0")
    assert opened["finalists"][0]["test"]["faces"] > 0


def test_weights_that_changed_since_they_were_logged_fail_the_proof(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifacts(run_of(small_study, 0)) / "weights/best.safetensors"
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)
    state = load_file(path)
    (last,) = (name for name, value in state.items() if value.shape == (2,))
    state[last] = state[last] + torch.tensor([0.0, 0.5])
    save_file(state, path)
    try:
        evaluator = Evaluator(slots_of(small_study, monkeypatch), torch.device("cpu"))
        with pytest.raises(ProofFailed, match=re.escape("slot 0: its validation loss is")):
            evaluator.evaluate_slot(0)
    finally:
        kept.replace(path)


def test_an_unfinished_study_keeps_its_test_split_closed(
    small_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_study.path)
    overrides = [*small_study.overrides, "name=begun"]
    config = load_config(REPOSITORY / "configs/sample.yaml", overrides)
    inputs = Inputs.load(config, load_prepared(config.data))
    slots = create_or_join(config, study_fingerprint(config, inputs))
    done = small_study.call("evaluate", "--set", "name=begun")
    assert done.returncode == 2
    assert "study 'begun' has 5 unfinished slots; finish it first" in done.stderr
    assert "openings" not in slots.attributes()


def test_the_test_split_is_closed_to_everyone_else(small_study: Folder) -> None:
    with pytest.raises(SplitClosed):
        read_split(small_study.path / "faces", "test")
    with pytest.raises(SplitClosed):
        Faces.load(small_study.path / "faces", "test", 32)


def test_compare_puts_ours_beside_the_reports_figures(small_study: Folder) -> None:
    found = small_study.json("compare")
    assert [(row["model"], row["source"]) for row in found["rows"]][:5] == [
        ("cnn", "report"),
        ("cnn", "ours"),
        ("mobilenet_v2_frozen", "ours"),
        ("mobilenet_v2_finetuned", "report"),
        ("mobilenet_v2_finetuned", "ours"),
    ]
    assert found["rows"][5]["source"] == "best"
    report = found["rows"][0]["metrics"]
    assert (report["accuracy"], report["precision_1"], report["f1_0"]) == (0.98, 0.99, 0.99)
    assert not found["comparable"]
    assert any("not OpenForensics" in why for why in found["differences"])
    low, high = found["rows"][1]["intervals"]["auc"]
    assert 0 <= low <= found["rows"][1]["metrics"]["auc"] <= high <= 1
    assert "not like for like" in small_study.call("compare").stdout
