from pathlib import Path

import pytest
import yaml

from deepfake.baselines import load_baselines
from deepfake.config import TrainSettings
from deepfake.errors import ConfigError

BASELINES = Path(__file__).parents[2] / "configs" / "baselines.yaml"

# The report's table of published test figures, typed off the digest a second time:
# P(0), P(1), R(0), R(1), F1(0), F1(1), accuracy
PRINTED = {
    "cnn": (0.98, 0.99, 0.99, 0.98, 0.99, 0.98, 0.98),
    "mobilenet_v2_finetuned": (0.98, 0.99, 1.00, 0.98, 0.99, 0.99, 0.99),
}
COLUMNS = ("precision_0", "precision_1", "recall_0", "recall_1", "f1_0", "f1_1", "accuracy")
DROPOUT = {"cnn": 0.5, "mobilenet_v2_frozen": 0.2, "mobilenet_v2_finetuned": 0.2}


@pytest.fixture
def document():
    return yaml.safe_load(BASELINES.read_text())


@pytest.fixture
def refused(tmp_path):
    """The error that loading this document raises: one line that names the file."""

    def message(document):
        path = tmp_path / "baselines.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        with pytest.raises(ConfigError) as caught:
            load_baselines(path)
        assert str(caught.value).startswith(f"baselines: {path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def test_the_three_models_of_the_report_are_the_baselines_in_its_order():
    names = [baseline.name for baseline in load_baselines(BASELINES).baselines]
    assert names == ["cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned"]


def test_the_published_figures_are_the_ones_the_report_prints():
    published = {
        baseline.name: tuple(getattr(baseline.published, column) for column in COLUMNS)
        for baseline in load_baselines(BASELINES).baselines
        if baseline.published
    }
    assert published == PRINTED  # and none for the frozen one


def test_the_printed_f1_follows_from_printed_precision_and_recall_within_rounding():
    # a slip of the pen would show: each figure is rounded to two decimals, so F1 within 0.01
    for p0, p1, r0, r1, f0, f1, _ in PRINTED.values():
        assert 2 * p0 * r0 / (p0 + r0) == pytest.approx(f0, abs=0.0101)
        assert 2 * p1 * r1 / (p1 + r1) == pytest.approx(f1, abs=0.0101)


def test_each_baseline_trains_as_the_report_did():
    for baseline in load_baselines(BASELINES).baselines:
        assert baseline.params.variant == baseline.name
        assert (baseline.params.lr, baseline.params.weight_decay) == (1e-3, 1e-5)
        assert baseline.params.dropout == DROPOUT[baseline.name]


def test_the_settings_behind_the_figures_are_the_reports():
    on = load_baselines(BASELINES).published_on
    assert on.dataset == "OpenForensics Train"
    assert (on.real, on.fake) == (85006, 65860)
    assert on.image_size == {"cnn": 128, "mobilenet_v2": 224}
    assert (on.max_epochs, on.batch_size, on.weights) == (10, 32, "imagenet")


def test_the_settings_behind_the_figures_are_what_train_says_by_default():
    on, train = load_baselines(BASELINES).published_on, TrainSettings()
    assert on.image_size == train.image_size.model_dump()
    assert (on.max_epochs, on.batch_size, on.weights) == (
        train.max_epochs,
        train.batch_size,
        train.weights,
    )


def test_an_unknown_hyperparameter_is_refused_by_name(refused, document):
    document["baselines"][1]["params"]["learning_rate"] = 1e-3
    assert "baselines.1.params.learning_rate" in refused(document)


def test_a_missing_hyperparameter_is_refused_by_name(refused, document):
    del document["baselines"][0]["params"]["dropout"]
    assert "'baselines.0.params.dropout' is missing" in refused(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", -1e-3), ("lr", float("nan")), ("dropout", 1.0), ("weight_decay", float("inf"))],
)
def test_a_hyperparameter_out_of_range_is_refused_by_name(refused, document, key, value):
    document["baselines"][0]["params"][key] = value
    assert f"'baselines.0.params.{key}'" in refused(document)


def test_a_figure_in_percent_is_refused(refused, document):
    document["baselines"][0]["published"]["recall_1"] = 98
    assert "'baselines.0.published.recall_1'" in refused(document)


def test_an_unknown_variant_is_refused_with_the_known_ones(refused, document):
    document["baselines"][0]["params"]["variant"] = "resnet"
    message = refused(document)
    assert "'baselines.0.params.variant'" in message
    assert "'cnn', 'mobilenet_v2_frozen' or 'mobilenet_v2_finetuned'" in message


def test_two_baselines_of_one_name_are_refused(refused, document):
    document["baselines"][1]["name"] = "cnn"
    assert "['cnn', 'cnn', 'mobilenet_v2_finetuned'] are not unique" in refused(document)


def test_no_baseline_at_all_is_refused(refused, document):
    document["baselines"] = []
    assert "'baselines'" in refused(document)


@pytest.mark.parametrize("text", ["", "[]", "just text", "12"])
def test_a_file_of_another_shape_is_refused(refused, text):
    assert "Input should be a section of keys, not " in refused(text)


def test_a_file_that_is_not_yaml_is_refused_with_the_line(refused):
    message = refused("source: x\nbaselines: cnn: 1\n")
    assert "not YAML: line 2, column 15: mapping values are not allowed" in message


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "baselines.yaml"
    path.write_bytes(b"source: caf\xe9\n")
    with pytest.raises(ConfigError, match=f"baselines: {path}: byte 11 is not UTF-8") as caught:
        load_baselines(path)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_baselines(tmp_path / "nowhere.yaml")
