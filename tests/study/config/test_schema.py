"""The study's YAML and what it becomes; mistakes in it are cli/test_errors_of_settings.py's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deepfake.config import Hyperparameters
from deepfake.data.prepare import Prepared, Summary
from deepfake.errors import ConfigError
from study.config.fingerprint import fingerprint_of
from study.config.load import load_config
from study.config.schema import Range, StudyConfig, public_yaml
from tests.conftest import REPOSITORY

MakeConfig = Callable[..., StudyConfig]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))

PREPARED = Prepared(
    work_dir=Path("/data"),
    faces_sha256="faces",
    splits_sha256="splits",
    crops_sha256="crops",
    summary=Summary(
        photos=1,
        faces=1,
        real=1,
        fake=0,
        splits={},
        dropped={},
        clamped=0,
        photos_in_json=1,
        real_in_json=1,
        fake_in_json=0,
    ),
)


def test_the_shipped_studies_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    loaded = [load_config(path) for path in CONFIGS if path.name != "baselines.yaml"]
    assert {config.name for config in loaded} == {
        "openforensics-official",
        "openforensics-report",
        "sample",
    }


def test_relative_paths_are_of_the_folder_the_command_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        REPOSITORY / "configs/sample.yaml", [f"baselines={REPOSITORY}/configs/baselines.yaml"]
    )
    assert config.data.photos_dir == tmp_path / "data/sample"
    assert config.study.storage.get_secret_value() == f"sqlite:///{tmp_path}/mlruns/study.db"
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert config.checkpoints_dir == tmp_path / "mlruns/checkpoints/sample"


def test_an_override_reaches_any_key_and_is_yaml(make_config: MakeConfig) -> None:
    config = make_config(
        "data.fractions={train: 0.5, val: 0.25, test: 0.25}",
        "space.weight_decay=1e-5",  # YAML 1.1 would read text
        "train.batch_size=64",
    )
    assert (config.data.fractions.train, config.train.batch_size) == (0.5, 64)
    assert config.space.weight_decay == 1e-5
    assert make_config("space.lr.high=0.5").space.lr == Range(low=1e-5, high=0.5, log=True)


def test_the_environment_gives_the_storage_and_an_override_comes_before_it(
    make_config: MakeConfig,
) -> None:
    url = "postgresql+psycopg://me:secret@host/db"
    assert make_config(storage=url).study.storage.get_secret_value() == url
    both = make_config("study.storage=sqlite:////tmp/x.db", storage=url)
    assert both.study.storage.get_secret_value() == "sqlite:////tmp/x.db"


def test_a_password_is_in_no_text_of_a_configuration(make_config: MakeConfig) -> None:
    config = make_config(storage="postgresql+psycopg://me:c4nary@host/db")
    for text in (repr(config), str(config), public_yaml(config), config.model_dump_json()):
        assert "c4nary" not in text


def test_a_tracking_uri_takes_no_password_and_does_not_print_it(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        make_config("tracking.uri=http://me:c4nary@host:5000")
    assert "c4nary" not in str(caught.value)


def test_the_fingerprint_ignores_places_and_budget_but_no_setting_that_changes_a_figure(
    make_config: MakeConfig,
) -> None:
    def of(*overrides: str) -> dict[str, object]:
        return fingerprint_of(make_config(*overrides), PREPARED, "weights")

    assert of() == of(
        "study.n_trials=50", "study.storage=sqlite:////tmp/x.db", "data.work_dir=/tmp/x"
    )
    for override, key in {
        "train.batch_size=16": "train.batch_size",
        "train.threads=2": "train.threads",
        "space.lr.high=0.5": "space.lr.high",
        "study.seed=3": "study.seed",
    }.items():
        changed = of(override)
        assert {k for k, v in changed.items() if of().get(k) != v} == {key}


AUGMENT = "augment={jpeg: {p: 0.5}, flip: {p: 0.4}}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.augment_p=1.5", r"'space\.augment_p': .*less than or equal to 1, not 1\.5"),
        ("space.augment_p={low: 0, high: 2}", r"'space\.augment_p': .*than or equal to 1, not 2"),
        (
            "space.augment_p={low: 0.1, high: 1}",
            r"'space': baseline 'cnn' is outside: augment_p 0 is not in \[0\.1, 1\]",
        ),
    ],
)
def test_a_wrong_augment_p_is_named(override: str, message: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(AUGMENT, override)


def test_augment_with_nothing_to_augment_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    document = yaml.safe_load((REPOSITORY / "configs/baselines.yaml").read_text())
    document["baselines"] = [document["baselines"][1]]
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(document))
    only_frozen = (f"baselines={tmp_path}/frozen.yaml", "space.variant=mobilenet_v2_frozen")
    make_config(*only_frozen)
    with pytest.raises(
        ConfigError, match="'augment': the only variant, mobilenet_v2_frozen, sees"
    ):
        make_config(*only_frozen, AUGMENT)


def test_a_baselines_file_cannot_ask_for_augmentation(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    document = yaml.safe_load((REPOSITORY / "configs/baselines.yaml").read_text())
    document["baselines"][0]["params"]["augment_p"] = 0.5
    (tmp_path / "augmented.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="'baselines': 'cnn' names augment_p; baselines are not"):
        make_config(f"baselines={tmp_path}/augmented.yaml", AUGMENT)


def test_a_plain_study_does_not_mention_augment(make_config: MakeConfig) -> None:
    config = make_config()
    params = config.baselines.baselines[0].params
    for text in (
        public_yaml(config),
        str(fingerprint_of(config, PREPARED, "weights")),
        str(config.train_config(params, fixed=False).model_dump()),
        str(config.baseline_params(config.baselines.baselines[0]).model_dump()),
    ):
        assert "augment" not in text


def test_augment_is_part_of_the_fingerprint(make_config: MakeConfig) -> None:
    plain = fingerprint_of(make_config(), PREPARED, "weights")
    of = fingerprint_of(make_config(AUGMENT, "space.augment_p={low: 0, high: 1}"), PREPARED, "w")
    assert {key: value for key, value in of.items() if "augment" in key} == {
        "augment.flip.p": 0.4,
        "augment.jpeg.p": 0.5,
        "augment.jpeg.low": 30,
        "augment.jpeg.high": 95,
        "space.augment_p.low": 0.0,
        "space.augment_p.high": 1.0,
        "space.augment_p.log": False,
    }
    assert plain.keys() == {key for key in of if "augment" not in key}


def test_drawn_trials_are_augmented_and_no_baseline_and_no_frozen_backbone(
    make_config: MakeConfig,
) -> None:
    config = make_config(AUGMENT)
    drawn = {"lr": 1e-3, "weight_decay": 0, "dropout": 0.5}
    of = {v: Hyperparameters(variant=v, **drawn) for v in config.space.variant}
    for variant, params in of.items():
        assert config.train_config(params, fixed=True).augment is None
        augment = config.train_config(params, fixed=False).augment
        assert augment == (None if variant == "mobilenet_v2_frozen" else config.augment)


@pytest.mark.parametrize(
    ("space", "drawn", "jpeg_p"),
    [(None, None, 0.5), ("0.2", None, 0.1), ("0", None, None)]
    + [("{low: 0, high: 1}", p, 0.5 * p if p else None) for p in (0.0, 0.4, 1.0)],
)
def test_augment_p_scales_every_probability(
    space: str | None, drawn: float | None, jpeg_p: float | None, make_config: MakeConfig
) -> None:
    config = make_config(AUGMENT, *([f"space.augment_p={space}"] if space else []))
    params = Hyperparameters(variant="cnn", lr=1e-3, weight_decay=0, dropout=0.5, augment_p=drawn)
    augment = config.train_config(params, fixed=False).augment
    if jpeg_p is None:
        assert augment is None
    else:
        assert augment is not None
        assert augment.jpeg is not None
        assert augment.flip is not None
        assert (augment.jpeg.p, augment.flip.p) == pytest.approx((jpeg_p, 0.8 * jpeg_p))
        assert augment.jpeg.low == 30


def test_a_baseline_is_trained_in_fp32_whatever_the_others_are(make_config: MakeConfig) -> None:
    config = make_config("train.precision=bf16")
    params = Hyperparameters(variant="cnn", lr=1e-3, weight_decay=0, dropout=0.5)
    assert config.train_config(params, fixed=True).precision == "fp32"
    assert config.train_config(params, fixed=False).precision == "bf16"


@pytest.mark.parametrize(
    "override",
    [
        "study=postgresql://me:c4nary@host/db",
        "tracking.uri=postgresql://me:c4nary@host/db",
        "name=postgresql://me:c4nary@host/db",
    ],
)
def test_a_url_put_in_the_wrong_place_does_not_show_its_password(
    override: str, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(override)
    assert "c4nary" not in str(caught.value)


def test_a_storage_url_within_a_section_is_refused_without_showing_it() -> None:
    section = "study={n_trials: 3, storage: 'postgresql+psycopg://me:c4nary@host/db'}"
    with pytest.raises(ConfigError, match=r"--set study\.storage=URL") as caught:
        load_config(REPOSITORY / "configs/sample.yaml", [section])
    assert "c4nary" not in str(caught.value)
