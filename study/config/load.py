"""One YAML and --set overrides -> a StudyConfig, or one line that says what is wrong with it."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepfake.baselines import Baselines, load_baselines
from deepfake.config import absolute
from deepfake.errors import ConfigError, explain, known_keys, parse_yaml, read_yaml, suggest
from study.config.schema import StudyConfig

KNOWN = sorted(set(known_keys(StudyConfig, apart=(Baselines,))))


def load_config(
    path: Path, overrides: Sequence[str] = (), storage: str | None = None
) -> StudyConfig:
    """The study that a YAML describes, with `key.path=value` overrides (values are YAML).

    storage replaces the file's study.storage; an override comes before both.

    Raises ConfigError, one line that names the file, the dotted key and the value.
    """
    document = _read(path)
    if storage is not None:
        _set(document, "study.storage", storage)
    for override in overrides:
        _override(document, override)
    if "baselines" in document:  # else what is there may be a misspelling of it
        document["baselines"] = _baselines(path, document)
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, KNOWN)}") from None
    weights = config.train.weights
    if weights in ("imagenet", "none"):
        return config
    file = _absolute(weights)
    if not file.is_file():
        raise ConfigError(
            f"{path}: 'train.weights': {file} is not a file; give imagenet, none or a path"
        )
    train = config.train.model_copy(update={"weights": str(file)})
    return config.model_copy(update={"train": train})


def load_published(path: Path, overrides: Sequence[str] = ()) -> Baselines:
    """What a study's YAML names as baselines, though its data and weights may be elsewhere.

    Raises ConfigError as load_config does.
    """
    document = _read(path)
    for override in overrides:
        _override(document, override)
    return _baselines(path, document)


def _baselines(path: Path, document: dict[str, Any]) -> Baselines:
    baselines = document.get("baselines")
    if not isinstance(baselines, str):
        shown = json.dumps(baselines, default=str)[:80]
        raise ConfigError(f"{path}: 'baselines' must be the path of a YAML, not {shown}")
    return load_baselines(_absolute(baselines))


def _absolute(path: str) -> Path:
    try:
        return absolute(Path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read(path: Path) -> dict[str, Any]:
    document = read_yaml(path, "configs/sample.yaml")
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping of sections (name, data, train, ...)")
    return document


def key_value(
    option: str, text: str, such_as: str, known: Collection[str] = ()
) -> tuple[str, str]:
    """Both sides of KEY=VALUE, as --set and other options take it. known: the keys there are.

    Raises ConfigError, one line, for what is no pair and for a key that is not known.
    """
    key, equals, value = (side.strip() for side in text.partition("="))
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"{option} {text!r}: must be key=value, such as {such_as}")
    if known and key not in known:
        raise ConfigError(f"{option}: unknown key '{key}'; {suggest(key, known)}")
    return key, value


def yaml_value(option: str, key: str, text: str) -> Any:
    """A value of KEY=VALUE, read as YAML. Raises ConfigError."""
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{option} {key}: the value is not YAML: {error}") from None
    # YAML 1.1 reads 1e-3 as text: a number needs its point there
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _override(document: dict[str, Any], override: str) -> None:
    key, text = key_value("--set", override, "train.batch_size=64")
    value = yaml_value("--set", key, text)
    if key == "study" and isinstance(value, dict) and "storage" in value:
        # the command line is shown and handed on without it: a URL may hold a password
        raise ConfigError("--set study: give the storage on its own: --set study.storage=URL")
    _set(document, key, value)


def _set(document: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    place = document
    for section in sections:
        below = place.setdefault(section, {})
        if not isinstance(below, dict):
            below = place[section] = {}  # a fixed value gives way to a section, as space.lr.low
        place = below
    place[last] = value
