"""What a user can mend, in one line: settings, data, a machine without room or permission."""

import difflib
import errno
import json
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError


class UserError(ValueError):
    """What a user can mend: one line that names the place, the value and the way out."""


class ConfigError(UserError):
    """A setting is wrong; the message names its dotted key."""


class DataError(UserError):
    """A file of the data is wrong; the message names the file and the row or id."""


JSONS, JSONS_BY_SPLIT = "list of JSONs", "JSONs by split"  # told apart first, for the errors' sake

FIXED, RANGE, CHOICE = "one value", "range", "list of values"  # of a space, likewise
UNION_MEMBERS = (FIXED, RANGE, CHOICE, JSONS, JSONS_BY_SPLIT)  # in pydantic's errors; no keys

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
# pydantic's words for Python's types are not those of a YAML
_OWN_WORDS = {
    "model_type": "Input should be a section of keys",
    "tuple_type": "Input should be a list",
    "int_parsing": "Input should be a whole number",
    "int_type": "Input should be a whole number",
    "int_from_float": "Input should be a whole number",
    "float_parsing": "Input should be a number",
    "float_type": "Input should be a number",
    "bool_parsing": "Input should be true or false",
    "bool_type": "Input should be true or false",
    "string_type": "Input should be a text",
    "path_type": "Input should be a path",
    "too_short": "Input should be a list of one or more",
    "string_pattern_mismatch": (
        "Input should be letters, digits, _, . or -, at most 80, the first a letter or digit"
    ),
}
# of a file that nobody named in a setting
_WAYS_OUT = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "allow it, or name another place",
    errno.EPERM: "allow it, or name another place",
}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"'{key.value}' is there twice: keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, like: str) -> Any:
    """What a YAML holds. like: one that is there, for who named another file.

    Raises ConfigError, one line that names the file and the line in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a YAML such as {like}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8: save it as UTF-8, or name a YAML such as "
            f"{like}"
        ) from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Raises ValueError, one line."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        problem = " ".join(f"{error.problem}".split())
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        if "'\\t'" in problem:
            problem += ": indent with spaces, not tabs"
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{where}{problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # the second: a date such as 2024-13-01
        raise ValueError(one_line(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def known_keys(
    model: type[BaseModel], apart: tuple[type[BaseModel], ...] = (), prefix: str = ""
) -> Iterator[str]:
    """Every dotted key of a section, and of those within it. apart: sections in another file."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in _sections_in(field.annotation):
            if section not in apart:
                yield from known_keys(section, apart, f"{prefix}{name}.")


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _sections_in(part)


def explain(mistakes: ValidationError, known: Collection[str]) -> str:
    """One line from what pydantic found: dotted key, what is wrong, the value.

    known: every key there is, to offer the one that was meant.
    """
    # an unknown key first, a missing one last: they may be consequences of one another
    order = {"extra_forbidden": 0, "missing": 2}
    error = min(mistakes.errors(), key=lambda e: order.get(e["type"], 1))
    key = ".".join(str(part) for part in error["loc"] if part not in UNION_MEMBERS)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {suggest(key, known)}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # raised by a section: names the key itself, and the value
        below, colon, rest = message.partition(": ")
        named = colon and re.fullmatch(r"[\w.]+", below)
        where = ".".join(part for part in (key, below if named else "") if part)
        return f"'{where}': {rest if named else message}"
    message = _OWN_WORDS.get(error["type"], message)
    message += f", not {_shown(key, error['input'])}"
    return f"'{key}': {message}" if key else message


def _shown(key: str, value: object) -> str:
    text = json.dumps(value, default=str)
    # a URL may hold a password, wherever it was put by mistake
    if "storage" in key or re.search(r"[\w+.-]+:/", text):
        match value:
            case dict():
                return "a section"
            case list() | tuple():
                return "a list"
            case str():
                return "a URL"
    return text if len(text) <= 80 else f"{text[:80]}..."


def suggest(unknown: str, known: Collection[str]) -> str:
    """The key that was meant, or those that there are."""
    section, _, last = unknown.rpartition(".")
    last = SYNONYMS.get(last, last)
    plain = ".".join(part for part in section.split(".") if not part.isdecimal())  # baselines.1.x
    below = [key.rpartition(".")[2] for key in sorted(known) if key.rpartition(".")[0] == plain]
    siblings = {name: f"{section}.{name}" if section else name for name in below}
    anywhere = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    for names, cutoff in ((siblings, 0.6), (anywhere, 0.7)):  # "colour" is no "blur"
        if near := _nearest(last, names, cutoff):
            return f"did you mean {' or '.join(repr(names[name]) for name in near)}?"
    return f"known here: {', '.join(siblings)}"


def _nearest(word: str, words: Collection[str], cutoff: float) -> list[str]:
    """The nearest; several that are equally near."""
    near = difflib.get_close_matches(word, words, n=3, cutoff=cutoff)
    likeness = [difflib.SequenceMatcher(None, name, word).ratio() for name in near]
    return sorted(name for name, like in zip(near, likeness, strict=True) if like == likeness[0])


@contextmanager
def writing_data(place: Path) -> Iterator[None]:
    """Raises DataError for what the block can't write below data.work_dir.

    place: what the line names where the system names no file.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or place}: {one_line(error, path=False)}; mend that, or set"
            " data.work_dir to another place, then run the same command again: it continues"
        ) from None


def of_machine(error: Exception) -> str | None:
    """What a machine has no room or no permission for; None for any other error."""
    if isinstance(error, OSError) and error.errno in _WAYS_OUT:
        where = error.filename or "a file"
        return f"{where}: {error.strerror}; {_WAYS_OUT[error.errno]}"
    if out_of_memory(error):
        return (
            f"out of memory ({first_sentence(error)}); end what else uses it, lower "
            "train.batch_size, or choose another --device"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine."""
    torch = sys.modules.get("torch")  # who has not imported it has not run out of its memory
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    of_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or of_cpu


def one_line(error: BaseException, limit: int | None = 300, *, path: bool = True) -> str:
    """What an error says, in one line of at most limit characters; its type if it says nothing.

    path=False: of the system's errors without the path, for who names it in a better place.
    """
    bare = not path and isinstance(error, OSError) and error.strerror
    return " ".join(f"{bare or error}".split())[:limit] or type(error).__name__


def first_sentence(error: BaseException) -> str:
    """The first sentence, in one line: behind it torch tells how its allocator is set."""
    return one_line(error, None).split(". ")[0][:200]
