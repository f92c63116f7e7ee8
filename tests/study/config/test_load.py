"""KEY=VALUE, as --set, --params and --slurm take it; the rest of loading is in test_schema.py."""

from typing import Any

import pytest

from deepfake.errors import ConfigError
from study.config.load import key_value, yaml_value


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("lr=1e-3", ("lr", "1e-3")),
        (" space.lr.low = 0.1 ", ("space.lr.low", "0.1")),
        ("setup=export A=b", ("setup", "export A=b")),  # the first = parts them
        ("time=", ("time", "")),
    ],
)
def test_a_key_and_a_value_are_parted(text: str, pair: tuple[str, str]) -> None:
    assert key_value("--set", text, "a=1") == pair


@pytest.mark.parametrize("text", ["lr", "=3", " =3", "train.=3", ".lr=3", ""])
def test_what_is_no_pair_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match="must be key=value") as refused:
        key_value("--slurm", text, "time=240")
    assert str(refused.value) == f"--slurm {text!r}: must be key=value, such as time=240"


def test_a_key_is_offered_where_all_are_known() -> None:
    with pytest.raises(ConfigError, match="--params: unknown key 'droput'; did you mean 'dropout"):
        key_value("--params", "droput=0", "lr=3e-4", ["lr", "dropout"])
    with pytest.raises(ConfigError, match="unknown key 'zzz'; known here: dropout, lr"):
        key_value("--params", "zzz=0", "lr=3e-4", ["lr", "dropout"])


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("[1, a]", [1, "a"]), ("no", False), ("", None)]
)
def test_a_value_is_yaml_with_numbers_as_people_write_them(text: str, value: Any) -> None:
    assert yaml_value("--set", "a", text) == value


def test_a_value_that_is_no_yaml_is_refused_by_option_and_key() -> None:
    with pytest.raises(ConfigError, match="--slurm time: the value is not YAML: line 1, column 2"):
        yaml_value("--slurm", "time", "[")
