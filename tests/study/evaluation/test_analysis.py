"""Everything from the table alone: figures, verdicts, the report's cells, the command."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from deepfake.baselines import load_baselines
from deepfake.metrics.calibration import Chosen, choose_threshold
from deepfake.metrics.figures import measure
from study.evaluation.analysis import analyse
from study.evaluation.predictions import (
    COLUMNS,
    LOGITS,
    PredictionsError,
    read_predictions,
    write_predictions,
)
from study.evaluation.results import Analysis, Comparison, Sides, Welch
from study.evaluation.verdict import headline, prior_sentence, sentence
from tests.support.nulls import draw_faces
from tests.support.runs import REPOSITORY, Folder

BASELINES = load_baselines(REPOSITORY / "configs/baselines.yaml")
MODELS = {
    "cnn": ("baseline", 0, 1.0),
    "mobilenet_v2_frozen": ("baseline", 1, 1.0),
    "mobilenet_v2_finetuned": ("baseline", 2, 1.0),
    "slot 7": ("candidate", 7, 2.0),
    "slot 9": ("candidate", 9, 1.5),
    "slot 4": ("diagnostic", 4, 2.5),
}


def table(seeds=3, splits=("val", "test"), photos=60):
    """Models of growing margin; the sharpest candidate is slot 7."""
    rng = np.random.default_rng(0)
    parts = []
    for split in splits:
        faces = draw_faces(rng, photos)
        sign = 2 * faces["label"].to_numpy() - 1
        for model, (role, slot, factor) in MODELS.items():
            for seed in range(seeds):
                margin = factor + rng.normal(0, 1, len(faces))
                score = (sign * margin).astype(np.float32)
                own = {"split": split, "model": model, "role": role, "slot": slot, "seed": seed}
                logits = {"logit_real": np.float32(0), "logit_fake": score}
                parts.append(faces.assign(**own, **logits))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def analysed(predictions, split="test"):
    """As --json prints it."""
    found = analyse(predictions, BASELINES, split, resamples=200)
    return json.loads(json.dumps(asdict(found), allow_nan=False))


@pytest.fixture(scope="module")
def found():
    return analysed(table())


def of_model(found, model):
    (only,) = (entry for entry in found["models"] if entry["model"] == model)
    return only


def test_figures_are_scikit_learns_means_over_the_seeds(found):
    for model in MODELS:
        rows = table().query("split == 'test' and model == @model").groupby("seed")
        figures = of_model(found, model)["figures"]
        score = [(r["logit_fake"] - r["logit_real"]).to_numpy(float) for _, r in rows]
        labels = [r["label"].to_numpy() for _, r in rows]
        pairs = list(zip(labels, score, strict=True))
        nll = [log_loss(y, 1 / (1 + np.exp(-s))) for y, s in pairs]
        assert figures["nll"]["by_seed"] == pytest.approx(nll, abs=1e-9)
        assert figures["nll"]["value"] == pytest.approx(np.mean(nll))
        assert figures["nll"]["sd_of_seeds"] == pytest.approx(np.std(nll, ddof=1))
        auc = np.mean([roc_auc_score(y, s) for y, s in pairs])
        assert figures["auc"]["value"] == pytest.approx(auc)
        accuracy = np.mean([accuracy_score(y, s >= 0) for y, s in pairs])
        assert figures["accuracy"]["value"] == pytest.approx(accuracy)


def test_every_figure_lies_in_its_interval(found):
    for model in found["models"]:
        for name, figure in model["figures"].items():
            if name == "recall_1_at_far_1pct":
                assert figure is None  # too few reals
            else:
                assert figure["low"] <= figure["value"] <= figure["high"]
    nll = of_model(found, "cnn")["figures"]["nll"]
    assert 0 < nll["high"] - nll["low"] < nll["value"]


def test_the_split_is_counted(found):
    test = table().query("split == 'test' and model == 'cnn' and seed == 0")
    assert found["faces"] == len(test)
    assert (found["real"], found["fake"]) == tuple((test["label"] == c).sum() for c in (0, 1))
    assert found["photos"] == test["image_id"].nunique()


def test_the_best_candidate_temperatures_and_thresholds_come_from_validation_alone(found):
    whole = table()
    rows = whole["split"] == "test"
    factor = np.where(whole.loc[rows, "model"] == "slot 9", 3, -1).astype(np.float32)
    whole.loc[rows, "logit_fake"] *= factor
    other = analysed(whole)
    assert found["best"] == other["best"] == "slot 7"
    for model in MODELS:
        for chosen in ("val_nll", "temperature", "threshold"):
            assert of_model(found, model)[chosen] == of_model(other, model)[chosen]


def test_each_baseline_is_compared_and_diagnostics_are_not(found):
    comparisons = found["comparisons"]
    assert [c["baseline"] for c in comparisons] == list(MODELS)[:3]
    assert {c["candidate"] for c in comparisons} == {"slot 7"}
    assert {c["verdict"] for c in comparisons} == {"better"}
    first = comparisons[0]
    nll = [of_model(found, model)["figures"]["nll"]["value"] for model in ("slot 7", "cnn")]
    assert first["nll"]["difference"]["value"] == pytest.approx(nll[0] - nll[1])
    errors = [1 - of_model(found, m)["figures"]["accuracy"]["value"] for m in ("slot 7", "cnn")]
    assert first["error_rate"]["candidate"] == pytest.approx(errors[0])
    assert first["error_reduction"] == pytest.approx(1 - errors[0] / errors[1])


def test_the_order_of_rows_and_a_way_through_the_file_change_no_figure(found, tmp_path):
    write_predictions(table().sample(frac=1, random_state=1), tmp_path / "p.csv.gz")
    assert analysed(read_predictions(tmp_path / "p.csv.gz")) == found


def test_all_of_it_comes_back_from_json(found):
    again = TypeAdapter(Analysis).validate_python(found)
    assert again == analyse(table(), BASELINES, resamples=200)


def test_two_seeds_are_too_few_for_a_verdict():
    found = analysed(table(seeds=2))
    assert {c["verdict"] for c in found["comparisons"]} == {"too few seeds"}
    assert "too few seeds to tell slot 7 from cnn" in found["comparisons"][0]["sentence"]
    assert {cell["verdict"] for cell in found["published"]["cells"]} == {"inconclusive"}


def test_without_a_candidate_nothing_is_compared():
    found = analysed(table().query("role == 'baseline'"))
    assert (found["best"], found["comparisons"]) == (None, [])


def test_any_named_split_can_be_analysed():
    whole = table(splits=("val", "test_dev"))
    assert analysed(whole, "test_dev")["split"] == "test_dev"
    with pytest.raises(PredictionsError, match="no split 'test'"):
        analysed(whole)


def test_the_shift_of_the_prior_is_counted_and_said(found):
    labels = {s: table().query("model == 'cnn' and split == @s")["label"] for s in ("val", "test")}
    prior = found["prior"]
    assert prior["val_fake_share"] == pytest.approx(labels["val"].mean())
    assert prior["test_fake_share"] == pytest.approx(labels["test"].mean())
    fakes = table().query("split == 'val' or label == 1 or image_id % 3 == 0")
    shifted = analysed(fakes)
    assert shifted["prior"]["test_fake_share"] > prior["test_fake_share"] + 0.1
    assert shifted["prior"]["sentence"].startswith(
        f"{100 * shifted['fake'] / shifted['faces']:.1f} % of the faces in test are fake and"
        f" {100 * prior['val_fake_share']:.1f} % in validation: accuracy, precision,"
    )


def test_a_small_shift_is_said_to_be_none():
    small = "too small a difference to matter"
    assert prior_sentence("test", 0.42, 0.4295).endswith(f"42.0 % in validation: {small}")
    assert small not in prior_sentence("test", 0.42, 0.44)


def test_what_is_said_to_move_with_the_prior_moves_and_nothing_else():
    rows = table().query("split == 'test' and model == 'cnn' and seed == 0")
    many_reals = pd.concat([rows] + [rows.query("label == 0")] * 3)
    cards, chosen = [], Chosen(temperature=1.3, threshold=0.4)
    for faces in (rows, many_reals):
        logits = torch.from_numpy(faces[list(LOGITS)].to_numpy(np.float32))
        labels = torch.from_numpy(faces["label"].to_numpy(copy=True))
        cards.append(measure(logits, labels, chosen=chosen))
        cards[-1]["threshold"] = choose_threshold(logits, labels)
    stays = {n for n, v in cards[0].items() if v == pytest.approx(cards[1][n])}
    assert stays == {"recall_0", "recall_1", "balanced_accuracy", "auc", "eer", "threshold"}


def test_the_reports_cells_are_ruled_for_each_printed_figure(found):
    cells = found["published"]["cells"]
    assert [(c["model"], c["figure"]) for c in cells[:2]] == [
        ("cnn", "accuracy"),
        ("cnn", "precision_0"),
    ]
    assert len(cells) == 14  # the frozen backbone has none
    assert cells[0]["verdict"] == "not reproduced"  # about 0.84, not 0.98
    assert "reproduced" not in {c["verdict"] for c in cells}
    for cell in cells:
        assert cell["low"] < cell["ours"] < cell["high"]


def test_a_figure_without_an_error_is_no_surer_than_three_in_its_photos():
    perfect = table(photos=40)
    sign = 2 * perfect["label"] - 1
    perfect["logit_fake"] = (5 * sign).astype(np.float32)
    (cell,) = (
        c
        for c in analysed(perfect)["published"]["cells"]
        if (c["model"], c["figure"]) == ("mobilenet_v2_finetuned", "recall_0")
    )
    test = perfect.query("split == 'test'")
    rarer = min(test[test["label"] == label]["image_id"].nunique() for label in (0, 1))
    assert (cell["printed"], cell["ours"], cell["high"]) == (1.0, 1.0, 1.0)
    assert cell["low"] == pytest.approx(1 - 3 / rarer)
    assert cell["verdict"] == "inconclusive"


def comparison(verdict, value=0.0, p=0.5, errors=(0.01, 0.015), baseline="cnn"):
    found = Welch(value, value - 0.004, value + 0.004, 8.0, p)
    return Comparison(
        candidate="slot 7",
        baseline=baseline,
        seeds=(5, 5),
        verdict=verdict,
        p_adjusted=p,
        nll=Sides(0.03, 0.03 - value, found),
        auc=Sides(0.9, 0.9, found),
        error_rate=Sides(*errors, found),
        error_reduction=1 - errors[0] / errors[1],
    )


def test_the_verdict_is_a_sentence():
    assert sentence(comparison("better", -0.01, 0.0123)) == (
        "slot 7 is better than cnn: NLL 0.0300 against 0.0400, lower by 0.0100 (95 % interval "
        "of the difference -0.0140 to -0.0060; adjusted p 0.012); error rate 1.00 % against "
        "1.50 %, 33 % fewer errors"
    )
    assert sentence(comparison("worse", 0.01, 0.0001, errors=(0.03, 0.02))) == (
        "slot 7 is worse than cnn: NLL 0.0300 against 0.0200, higher by 0.0100 (95 % interval "
        "of the difference +0.0060 to +0.0140; adjusted p below 0.001); error rate 3.00 % "
        "against 2.00 %, 50 % more errors"
    )
    said = sentence(comparison("not distinguishable", -0.001, 0.7, errors=(0.02, 0.02)))
    assert said.startswith("slot 7 is not distinguishable from cnn: NLL")
    assert said.endswith("adjusted p 0.700); error rate 2.00 % against 2.00 %")


def test_an_interval_without_0_that_is_no_proof_says_why():
    said = sentence(comparison("not distinguishable", -0.005, 0.06))
    assert "adjusted p 0.060, for the interval is of this comparison alone" in said


def compare(folder, *options):
    overrides = [f"baselines={REPOSITORY}/configs/baselines.yaml", "train.weights=elsewhere.pth"]
    sets = [part for override in overrides for part in ("--set", override)]
    config = str(REPOSITORY / "configs/sample.yaml")
    return Folder(folder, 0).typed("compare", config, *options, *sets)


@pytest.mark.slow
def test_the_command_needs_the_file_alone(tmp_path):
    write_predictions(table(), tmp_path / "p.csv.gz")
    done = compare(tmp_path, "--predictions", "p.csv.gz", "--json")
    found = json.loads(done.stdout)
    assert found == json.loads(json.dumps(asdict(analyse(table(), BASELINES))))
    shown = compare(tmp_path, "--predictions", "p.csv.gz").stdout
    assert found["comparisons"][0]["sentence"] in " ".join(shown.split())
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv.gz"}


def test_what_is_wrong_with_the_file_is_one_line(tmp_path):
    table().drop(columns=LOGITS[0]).to_csv(tmp_path / "p.csv", index=False)
    done = compare(tmp_path, "--predictions", "p.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: p.csv: column 'logit_real' is missing")
    assert done.stderr.count("\n") == 1


def test_the_headline_has_the_verdicts_on_all_baselines_the_strongest_word_first() -> None:
    verdicts = [("cnn", "not distinguishable"), ("b", "better"), ("c", "better"), ("d", "worse")]
    found = [comparison(verdict, baseline=name) for name, verdict in verdicts]
    said = "on the test split: slot 7 is better than b and c, worse than d"
    assert headline(found) == f"{said}, not distinguishable from cnn"
    few = comparison("too few seeds", baseline="x")
    assert headline([few]) == "on the test split: too few seeds to tell slot 7 from x"
    assert headline([found[1], few]) == (
        "on the test split: slot 7 is better than b; too few seeds to tell it from x"
    )
