"""The finalists under corruptions: rows, their table, and where a whole study shows them."""

import csv
import hashlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn

from deepfake.config import ImageSize, TrainConfig
from deepfake.data.arrays import Rows
from deepfake.data.feed import Faces
from deepfake.metrics.bootstrap import draw_photos
from deepfake.metrics.figures import measure, resample
from deepfake.training.loop import evaluate
from deepfake.transforms.corruptions import KINDS, SUITE, Corruption, Kind
from study.evaluation.artifacts import corruptions_figure
from study.evaluation.finalists import Contender
from study.evaluation.results import Row
from study.evaluation.robustness import (
    COLUMNS,
    FIGURES,
    first_seeds,
    rows_under_corruptions,
    steps,
    write_corruptions,
)
from study.report.test_plots import corruption_figures
from study.slots.training import Training
from tests.study.evaluation.test_evaluator import artifacts, run_of
from tests.support.runs import Folder

CPU = torch.device("cpu")
SIDE, N = 32, 60
CONFIG = TrainConfig(
    variant="cnn",
    lr=1e-3,
    weight_decay=0,
    dropout=0.2,
    image_size=ImageSize(cnn=SIDE),
    batch_size=8,
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    """Two of each photo; the fakes are a little brighter and finer grained."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 2, N)
    pixels = drawn.normal(110, 40, (N, SIDE, SIDE, 3)) * (1 + 0.2 * labels.reshape(N, 1, 1, 1))
    path = tmp_path_factory.mktemp("faces") / "faces.npy"
    np.save(path, pixels.clip(0, 255).astype(np.uint8))
    table = pd.DataFrame(
        {
            "cutted_name": [f"{face:02}.jpg" for face in range(N)],
            "source": "Train_poly",
            "image_id": np.arange(N) // 2,
        }
    )
    return Faces(table, Rows(path, 0, N), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))


def contender(model: str = "slot 3", seed: int = 0) -> Contender:
    nothing = cast(Any, SimpleNamespace())  # its record and its study are not looked at
    return Contender(Training(model, "candidate", 3, seed), nothing, nothing)


def rows_of(network: nn.Module, faces: Faces) -> list[Row]:
    logits_of = partial(evaluate, network, config=CONFIG, device=CPU)
    draws = draw_photos(faces.photos, faces.labels.numpy())
    return rows_under_corruptions(
        contender().training, "cnn", faces, logits_of(faces), logits_of, draws
    )


@pytest.fixture(scope="module")
def rows(faces: Faces, network: nn.Module) -> list[Row]:
    return rows_of(network, faces)


def test_the_clean_row_is_first_and_has_the_ordinary_figures(
    faces: Faces, network: nn.Module, rows: list[Row]
) -> None:
    metrics = measure(evaluate(network, faces, CONFIG, CPU), faces.labels, FIGURES)
    assert [(row["corruption"], row["level"]) for row in rows] == [
        ("clean", None),
        *((corruption.kind, corruption.value) for corruption in SUITE.values()),
    ]
    for figure in ("nll", "accuracy", "auc"):
        assert rows[0][figure] == metrics[figure]
    assert all(tuple(row) == COLUMNS for row in rows)


@pytest.mark.parametrize("name", ["jpeg_30", "blur_2", "noise_20", "brightness_1.3"])
def test_a_corrupted_row_is_what_the_corrupted_pixels_give_by_scikit_learn(
    faces: Faces, network: nn.Module, rows: list[Row], name: str
) -> None:
    corruption = SUITE[name]
    pixels = torch.from_numpy(np.load(faces.rows.path))
    # each face's noise is of its name
    digests = [hashlib.sha256(face.encode()).digest() for face in faces.table["cutted_name"]]
    seeds = torch.tensor([int.from_bytes(digest[:8]) >> 1 for digest in digests])
    images = corruption(pixels, seeds).permute(0, 3, 1, 2).double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        score = network(images.float()).double().softmax(1)[:, 1].numpy()
    (row,) = (
        r for r in rows if (r["corruption"], r["level"]) == (corruption.kind, corruption.value)
    )
    labels = faces.labels.numpy()
    assert row["accuracy"] == accuracy_score(labels, score >= 0.5)
    assert row["auc"] == pytest.approx(roc_auc_score(labels, score), abs=1e-9)
    assert row["nll"] == pytest.approx(log_loss(labels, score), abs=1e-6)
    assert row["nll"] != rows[0]["nll"]


def test_the_intervals_are_those_of_the_scorecards_bootstrap(
    faces: Faces, network: nn.Module, rows: list[Row]
) -> None:
    logits = evaluate(network, faces, CONFIG, CPU)
    photos = faces.table["image_id"].to_numpy()
    draws = draw_photos(photos, faces.labels.numpy())
    card = resample(logits, faces.labels, photos, draws, FIGURES)
    for figure in ("nll", "accuracy", "auc"):
        low, high = np.percentile(card[figure], [2.5, 97.5])
        found = rows[0][f"{figure}_low"], rows[0][f"{figure}_high"]
        assert found == pytest.approx((low, high), abs=1e-12)


def test_equal_scores_count_half_in_the_auc_of_a_resample() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    draws = np.array([[1, 1, 1, 1], [2, 1, 0, 0], [0, 2, 1, 1]], np.uint16)
    # all four; the pair of equals; a real at the bottom under all
    found = resample(logits, labels, np.arange(4), draws, ["auc"])
    assert found["auc"].tolist() == [7 / 8, 1 / 2, 1.0]


def test_one_training_of_each_model_is_measured_that_of_its_lowest_seed() -> None:
    all_of_them = [contender("slot 3", 1), contender("cnn", 2), contender("slot 3", 0)]
    found = first_seeds([*all_of_them, contender("cnn", 1)])
    trainings = [contender.training for contender in found]
    assert sorted((t.model, t.seed) for t in trainings) == [("cnn", 1), ("slot 3", 0)]


def test_levels_read_from_clean_to_harsh_and_factors_on_both_sides_of_clean(
    rows: list[Row],
) -> None:
    assert list(steps(rows, "slot 3", "jpeg")) == ["clean", "90", "70", "50", "30"]
    assert list(steps(rows, "slot 3", "downscale")) == ["clean", "0.75", "0.5", "0.25"]
    assert list(steps(rows, "slot 3", "contrast")) == ["0.7", "clean", "1.3"]
    assert steps(rows, "slot 3", "blur")["2"]["level"] == 2


def test_the_table_reads_back_and_its_clean_level_is_empty(
    rows: list[Row], tmp_path: Path
) -> None:
    write_corruptions(rows, tmp_path / "corruptions.csv")
    with (tmp_path / "corruptions.csv").open() as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert (read[0]["corruption"], read[0]["level"]) == ("clean", "")
    for row, line in zip(rows, read, strict=True):
        assert {name: float(line[name]) for name in COLUMNS[7:]} == {
            name: row[name] for name in COLUMNS[7:]
        }


def test_each_kind_has_a_figure_with_a_line_a_model(rows: list[Row]) -> None:
    baseline = [{**row, "model": "cnn", "role": "baseline", "accuracy": 0.3} for row in rows]
    figures = corruption_figures([*rows, *baseline])
    assert list(figures) == ["jpeg", "blur", "downscale", "noise", "brightness", "contrast"]
    ours, theirs = figures["noise"].data
    assert ours.y == tuple(row["accuracy"] for row in steps(rows, "slot 3", "noise").values())
    assert theirs.y == (0.3,) * 4
    assert (ours.line.dash, theirs.line.dash) == ("solid", "dot")
    assert corruption_figures([]) == {}
    picture = corruptions_figure([*rows, *baseline])
    assert isinstance(picture, Figure)
    assert len(picture.axes) == 12
    picture.savefig("/dev/null", format="png")


def test_a_corruption_that_is_added_is_measured_and_drawn(
    faces: Faces, network: nn.Module, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    gamma = Kind(
        "gamma",
        lambda images, level, seeds: images.float().div(255).pow(level).mul(255).round().byte(),
        neutral=1,
    )
    monkeypatch.setitem(KINDS, "gamma", gamma)
    for level in (0.5, 2):
        monkeypatch.setitem(SUITE, f"gamma_{level}", Corruption("gamma", level))
    now = rows_of(network, faces)
    assert now[: len(rows)] == rows
    assert list(steps(now, "slot 3", "gamma")) == ["0.5", "clean", "2"]
    assert corruption_figures(now)["gamma"].layout.xaxis.title.text == "gamma"
    assert len(corruptions_figure(now).axes) == 14


def files_of_test(folder: Folder) -> Path:
    """Of the study's own run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlruns/mlflow.db")
    parent_id = run_of(folder, 0).data.tags["mlflow.parentRunId"]
    return artifacts(client.get_run(parent_id)) / "test"


@pytest.mark.slow
def test_a_whole_evaluation_logs_the_table_and_the_report_draws_it(
    small_study: Folder, evaluated: dict[str, Any]
) -> None:
    found = evaluated
    folder = files_of_test(small_study)
    table = pd.read_csv(folder / "corruptions.csv")
    assert (folder / "corruptions.png").stat().st_size > 10_000
    rows = found["corruptions"]
    assert len(table) == len(rows) == len(found["finalists"]) * (1 + len(SUITE))
    models = {finalist["model"]: finalist for finalist in found["finalists"]}
    assert set(table["model"]) == set(models)
    analysed = {model["model"]: model["figures"] for model in found["analysis"]["models"]}
    for row in (row for row in rows if row["corruption"] == "clean"):
        for figure in ("nll", "accuracy", "auc"):
            assert row[figure] == models[row["model"]]["test"]["metrics"][figure]
            same = analysed[row["model"]][figure]  # of one seed
            ends = row[f"{figure}_low"], row[f"{figure}_high"]
            assert ends == pytest.approx((same["low"], same["high"]), abs=1e-9)
    assert table["nll"].tolist() == pytest.approx([row["nll"] for row in rows], abs=1e-15)

    assert small_study.call("report").returncode == 0
    page = (small_study.path / "small.html").read_text()
    assert 'id="corruptions-jpeg"' in page
    section = page.split('<section id="corruptions">')[1].split("</section>")[0]
    assert section.count("<tr>") == 1 + len(rows)


@pytest.mark.slow
def test_without_corruptions_there_is_no_table_and_the_report_says_so(
    small_copy: Folder,
) -> None:
    found = small_copy.json("evaluate", "--no-corruptions")
    assert found["corruptions"] is None
    assert small_copy.call("report", "--out", "without.html").returncode == 0
    page = (small_copy.path / "without.html").read_text()
    assert "not measured: evaluate ran with --no-corruptions" in page
    # of the evaluation before, which had another list, they would seem to be this one's
    folder = files_of_test(small_copy)
    assert (folder / "corruptions.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert (folder / "corruptions.png").stat().st_size < 10_000
