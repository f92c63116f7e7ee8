"""One YAML and --set overrides -> a StudyConfig, or one line that says what is wrong with it."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deepfake.baselines import Baselines, load_baselines
from deepfake.config import JSONS, JSONS_BY_SPLIT, ConfigError, Frozen, absolute
from study.config import StudyConfig

UNION_MEMBERS = ("number", "range", JSONS, JSONS_BY_SPLIT)  # in pydantic's errors; no keys

# What other tools call our keys: difflib alone would not find them.
SYNONYMS = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "batch": "batch_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "model": "variant",
    "models": "variant",
    "trials": "n_trials",
    "patience": "stop_patience",
    "json": "annotations",
    "images_dir": "photos_dir",
    "url": "storage",
}


def load_config(
    path: Path, overrides: Sequence[str] = (), storage: str | None = None
) -> StudyConfig:
    """The study that a YAML describes, with `key.path=value` overrides (values are YAML).

    storage replaces the file's study.storage; an override comes before both.

    Raises ConfigError, one line that names the file, the dotted key and the value.
    """
    document = _read_yaml(path)
    if storage is not None:
        _set(document, "study.storage", storage)
    for override in overrides:
        _override(document, override)
    document["baselines"] = _baselines(path, document)
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        # an unknown key first: what it left unset is only a consequence
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{path}: {explain(errors[0])}") from None
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
    document = _read_yaml(path)
    for override in overrides:
        _override(document, override)
    return _baselines(path, document)


def _baselines(path: Path, document: dict[str, Any]) -> Baselines:
    baselines = document.get("baselines")
    if not isinstance(baselines, str):
        shown = repr(baselines)[:80]
        raise ConfigError(f"{path}: 'baselines' must be the path of a YAML, not {shown}")
    return load_baselines(_absolute(baselines))


def _absolute(path: str) -> Path:
    try:
        return absolute(Path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not a text file"
        raise ConfigError(f"{path}: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping of sections (name, data, train, ...)")
    return document


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: must be key=value, such as train.batch_size=64")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value is not YAML") from error
    # YAML 1.1 reads 1e-3 as text: a number needs its point there
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)
    if key.strip() == "study" and isinstance(value, dict) and "storage" in value:
        # the command line is shown and handed on without it: a URL may hold a password
        raise ConfigError("--set study: give the storage on its own: --set study.storage=URL")
    _set(document, key.strip(), value)


def _set(document: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    place = document
    for section in sections:
        below = place.setdefault(section, {})
        if not isinstance(below, dict):
            below = place[section] = {}  # a fixed value gives way to a section, as space.lr.low
        place = below
    place[last] = value


def _known_keys(model: type[Frozen] = StudyConfig, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in _sections_in(field.annotation):
            yield from _known_keys(section, f"{prefix}{name}.")


def _sections_in(annotation: object) -> Iterator[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        if annotation is not Baselines:  # a file of its own
            yield annotation
        return
    for part in get_args(annotation):
        yield from _sections_in(part)


def _suggest(unknown: str) -> str:
    known = sorted(set(_known_keys()))
    section, _, last = unknown.rpartition(".")
    last = SYNONYMS.get(last, last)
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names, cutoff in ((siblings, 0.6), (anywhere, 0.7)):  # "colour" is no "blur"
        if near := difflib.get_close_matches(last, names, n=1, cutoff=cutoff):
            return f"did you mean '{names[near[0]]}'?"
    return f"known here: {', '.join(siblings)}"


def explain(error: ErrorDetails) -> str:
    """One line from pydantic's error: dotted key, what is wrong, the value."""
    key = ".".join(str(part) for part in error["loc"] if part not in UNION_MEMBERS)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {_suggest(key)}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":
        message = "Input should be a section of keys"
    if error["type"] == "value_error":  # raised above: names the key itself, and the value
        below, colon, rest = message.partition(": ")
        named = colon and re.fullmatch(r"[\w.]+", below)
        where = ".".join(part for part in (key, below if named else "") if part)
        return f"'{where}': {rest if named else message}"
    # a URL may hold a password, wherever it was put by mistake
    url = isinstance(error["input"], str) and re.match(r"[\w+.-]+:", error["input"])
    if url or "storage" in key or isinstance(error["input"], dict | list | tuple):
        return f"'{key}': {message}"
    return f"'{key}': {message}, not {json.dumps(error['input'], default=str)}"
