"""The study's YAML: every mistake is one line that names the key and the value."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake.config import ConfigError, Hyperparameters
from deepfake.prepare import Prepared, Summary
from study.config import Range, StudyConfig, fingerprint, public_yaml
from study.load import load_config
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

MISTAKES = {
    "train.learning_rate=0.1": r"unknown key 'train\.learning_rate'; did you mean 'space\.lr'\?",
    "train.batchsize=3": r"unknown key 'train\.batchsize'; did you mean 'train\.batch_size'\?",
    "data.fractions.tran=0.7": r"unknown key .*tran'; did you mean 'data\.fractions\.train'\?",
    "space.lr.lowest=1": r"unknown key 'space\.lr\.lowest'; did you mean 'space\.lr\.low'\?",
    "colour=blue": r"unknown key 'colour'; known here: baselines, data, name, space",
    "space.lr.low=-0.001": r"'space\.lr': low -0\.001 must be above 0 on a log scale",
    "space.lr=-0.001": r"'space\.lr': Input should be greater than 0, not -0\.001",
    "space.lr.high=1e-9": r"'space\.lr': low 1e-05 is not below high 1e-09",
    "space.lr=fast": r"'space\.lr': .*valid number.*\"fast\"",
    "space.dropout.high=1.5": r"'space\.dropout': .*less than 1, not 1\.5",
    "space.variant=[cnn, resnet]": r"'space\.variant\.1': Input should be 'cnn', .*\"resnet\"",
    "space.variant=[cnn, cnn]": r"'space\.variant': \['cnn', 'cnn'\] names one twice",
    "space.lr=0.002": r"'space': baseline 'cnn' is outside: lr 0\.001 is not the fixed 0\.002",
    "space.variant=cnn": r"baseline 'mobilenet_v2_frozen' is outside: variant",
    "train.batch_size=0": r"'train\.batch_size': Input should be greater than 0, not 0",
    "train.max_epochs=0.5": r"'train\.max_epochs': .*not 0\.5",
    "train.image_size.cnn=16": r"'train\.image_size\.cnn': .*greater than or equal to 32, not 16",
    "train.precision=fp16": r"'train\.precision': Input should be 'fp32' or 'bf16', not \"fp16\"",
    "train.weights=none.pth": r"'train\.weights': .*none\.pth is not a file",
    "data.fractions.train=0.8": r"'data\.fractions': train \+ val \+ test is 1\.1; .* sum to 1",
    "data.fractions.val=0": r"'data\.fractions\.val': Input should be greater than 0, not 0",
    "data.annotations=[]": r"'data\.annotations': .*at least 1 item",
    "data.margin=-1": r"'data\.margin': .*not -1",
    "data.group_by=person": r"'data\.group_by': Input should be 'photo' or 'face', not \"person\"",
    "data.photos_dir=null": r"'data\.photos_dir': .*not null",
    "study.n_trials=2": r"'study\.n_trials': 2 is below the 3 baselines",
    "study.lease_s=11": r"'study\.lease_s': 11 must be at least twice heartbeat_s, 10",
    "study.seed=-1": r"'study\.seed': .*not -1",
    "tracking.uri=mlruns": r"'tracking\.uri': 'mlruns' is neither sqlite:///path nor http",
    "baselines=3": r"'baselines' must be the path of a YAML, not 3",
    "baselines=none.yaml": r"baselines: .*none\.yaml: No such file",
    "name=a/b": r"'name': .*not \"a/b\"",
    "data=3": r"'data': Input should be a section of keys, not 3",
    "train": r"--set 'train': must be key=value",
    "train.lr_patience={": r"--set train\.lr_patience: the value is not YAML",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_with_key_and_value(override: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=MISTAKES[override]) as caught:
        make_config(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("name: [", "not YAML"),
        ("", "must be a mapping"),
        ("name: x\nbaselines: {file}\n", "'data' is missing"),
    ],
)
def test_a_file_of_the_wrong_shape_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content.replace("{file}", str(REPOSITORY / "configs/baselines.yaml")))
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*{message}"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_the_shipped_studies_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    loaded = [load_config(path) for path in CONFIGS if path.name != "baselines.yaml"]
    assert {config.name for config in loaded} == {"openforensics-report", "sample"}


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
        return fingerprint(make_config(*overrides), PREPARED, "weights")

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
