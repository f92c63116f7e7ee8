"""Every field of the YAML, out of range and misspelt: one line, from the file and from --set.

The fields come from the models: a new one without a row here fails.
"""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from deepfake.baselines import Baselines
from study.config.schema import StudyConfig
from tests.support.runs import REPOSITORY, Folder

WAYS = ("the file", "--set")
PATH = (3, "a path")
LIST = (3, "a list")
WHOLE = (0.5, "a whole number")
ABOVE_0 = (0, "greater than 0")
FROM_0 = (-1, "greater than or equal to 0")
UP_TO_1 = (1.5, "less than or equal to 1")
NUMBER = ("fast", "a number")
TRUTH = ("maybe", "true or false")

# a value that each field refuses, and what is said of those it takes
WRONG: dict[str, list[tuple[Any, str]]] = {
    "name": [("a/b", "letters, digits, _, . or -"), (3, "a text"), ("x" * 81, "at most 80")],
    "data.splits": [("new", "'drawn' or 'official'")],
    "data.annotations": [LIST, ([], "a list of one or more"), (None, "a list")],
    "data.photos_dir": [PATH, (None, "a path")],
    "data.follow_links": [TRUTH],
    "data.work_dir": [PATH],
    "data.box": [("corners", "'xywh', 'xyxy'")],
    "data.margin": [FROM_0, (2.5, "less than or equal to 2"), NUMBER],
    "data.min_face_px": [ABOVE_0, WHOLE],
    "data.max_photo_megapixels": [(0, "greater than or equal to 1"), (3000, "to 2000"), WHOLE],
    "data.fractions.train": [ABOVE_0, NUMBER],
    "data.fractions.val": [ABOVE_0],
    "data.fractions.test": [ABOVE_0],
    "data.group_by": [("person", "'photo' or 'face'")],
    "data.seed": [FROM_0, WHOLE],
    "train.image_size.cnn": [(16, "greater than or equal to 32"), (2000, "equal to 1024")],
    "train.image_size.mobilenet_v2": [(32, "greater than or equal to 33"), (2000, "1024")],
    "train.weights": [("none.pth", "give imagenet, none or a path"), (3, "a text")],
    "train.batch_size": [ABOVE_0, WHOLE, ([32], "a whole number")],
    "train.max_epochs": [ABOVE_0, WHOLE],
    "train.lr_factor": [ABOVE_0, (1, "less than 1")],
    "train.lr_patience": [FROM_0],
    "train.stop_patience": [ABOVE_0],
    "train.precision": [("fp16", "'fp32' or 'bf16'")],
    "train.threads": [ABOVE_0],
    "augment.flip.p": [UP_TO_1],
    "augment.downscale.p": [UP_TO_1],
    "augment.downscale.low": [(0, "greater than or equal to 0.05")],
    "augment.downscale.high": [UP_TO_1],
    "augment.blur.p": [UP_TO_1],
    "augment.blur.low": [(0, "greater than or equal to 0.1")],
    "augment.blur.high": [(11, "less than or equal to 10")],
    "augment.noise.p": [UP_TO_1],
    "augment.noise.low": [FROM_0],
    "augment.noise.high": [(101, "less than or equal to 100")],
    "augment.jpeg.p": [UP_TO_1],
    "augment.jpeg.low": [(0, "greater than or equal to 1")],
    "augment.jpeg.high": [(101, "less than or equal to 100"), (30.5, "a whole number")],
    "space.variant": [
        ("resnet", "'cnn', 'mobilenet_v2_frozen' or"),
        (None, "'cnn', 'mobilenet_v2_frozen' or"),
        ([], "one or more"),
    ],
    "space.lr": [ABOVE_0, NUMBER, (float("nan"), "a finite number")],
    "space.weight_decay": [FROM_0],
    "space.dropout": [FROM_0, (1, "less than 1")],
    "space.augment_p": [UP_TO_1],
    **{
        f"space.{name}.{end}": [TRUTH if end == "log" else NUMBER]
        for name in ("lr", "weight_decay", "dropout", "augment_p")
        for end in ("low", "high", "log")
    },
    "study.n_trials": [ABOVE_0, (2, "below the 3 baselines")],
    "study.objective": [("accuracy", "'val_loss' or 'robust_val_loss'")],
    "study.seed": [FROM_0],
    "study.sampler": [("grid", "'tpe' or 'random'")],
    "study.storage": [(3, "a text"), ([1], "a text")],
    "study.checkpoints_dir": [PATH],
    "study.prune_min_peers": [ABOVE_0],
    "study.prune_patience": [ABOVE_0],
    "study.max_attempts": [ABOVE_0],
    "study.max_lost": [ABOVE_0],
    "study.max_failed": [FROM_0],
    "study.heartbeat_s": [ABOVE_0, WHOLE],
    "study.lease_s": [ABOVE_0, (11, "at least twice heartbeat_s, 10")],
    "study.stall_s": [ABOVE_0],
    "tracking.uri": [("mlruns", "neither sqlite:///path nor http(s)://host:port"), (3, "a text")],
    "tracking.artifacts_dir": [PATH],
    "tracking.system_metrics_s": [
        FROM_0,
        (1e9, "less than or equal to 3600"),
        (1e-6, "neither 0 (none) nor at least 1"),
        NUMBER,
    ],
    "baselines": [(3, "the path of a YAML"), (None, "the path of a YAML")],
}


def keys(model: type[BaseModel] = StudyConfig, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every key of the YAML, and whether it takes a value: a section takes keys alone."""
    for name, field in model.model_fields.items():
        kinds = set(_kinds(field.annotation))
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        below = [section for section in sections if section is not Baselines]  # another file
        yield f"{prefix}{name}", not below or bool(kinds - {*below, type(None)})
        for section in below:
            yield from keys(section, f"{prefix}{name}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    if not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


KEYS = dict(keys())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Without photos: nothing is read of them before the settings are whole."""
    return Folder(tmp_path, 0)


def written(folder: Folder, key: str, value: Any, instead_of: str | None) -> None:
    """Make the folder's study a file that says value of key."""
    document = yaml.safe_load((REPOSITORY / "configs/sample.yaml").read_text())
    document["baselines"] = str(REPOSITORY / "configs/baselines.yaml")
    *sections, last = key.split(".")
    place = document
    for section in sections:
        below = place.get(section)
        place[section] = place = below if isinstance(below, dict) else {}
    if instead_of is not None:
        place.pop(instead_of.rpartition(".")[2], None)
    place[last] = value
    folder.config = folder.path / "study.yaml"
    folder.config.write_text(yaml.safe_dump(document))
    folder.overrides = []


def refused(folder: Folder, way: str, key: str, value: Any, instead_of: str | None = None) -> str:
    """What is said of a YAML, or of a --set, that says value of key."""
    if way == "--set":
        folder.overrides.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    else:
        written(folder, key, value, instead_of)
    done = folder.call("prepare")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {folder.config}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (folder.path / "faces").exists()
    return done.stderr


def test_every_field_has_a_value_that_it_refuses() -> None:
    assert set(WRONG) == {key for key, takes_value in KEYS.items() if takes_value}


VALUES = [(key, value, allowed) for key in WRONG for value, allowed in WRONG[key]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("key", "value", "allowed"), VALUES, ids=lambda v: str(v)[:24])
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_allowed(
    key: str, value: Any, allowed: str, way: str, folder: Folder
) -> None:
    line = refused(folder, way, key, value)
    assert f"'{key}'" in line or f"'{key}.0'" in line  # of a list, which one
    shown = value if isinstance(value, str) else json.dumps(value)
    assert shown[:60] in line.replace("a list", "[1]")  # a storage may hold a password
    assert allowed in line


def misspelt(name: str) -> Iterator[str]:
    """A letter dropped, two swapped, one typed twice."""
    if len(name) > 2:
        yield name[:1] + name[2:]
        yield name[:1] + name[2] + name[1] + name[3:]
    yield f"{name}_"
    yield f"{name}{name[-1]}"


def ways_to_misspell() -> Iterator[tuple[str, str, str]]:
    """Each key, by turns in the file and in --set."""
    for key in KEYS:
        section, dot, last = key.rpartition(".")
        for wrong, way in zip(misspelt(last), cycle(WAYS)):
            if wrong != last:
                yield f"{section}{dot}{wrong}", key, way


@pytest.mark.parametrize(("wrong", "right", "way"), list(ways_to_misspell()))
def test_a_misspelt_key_is_one_line_that_offers_the_right_one(
    wrong: str, right: str, way: str, folder: Folder
) -> None:
    line = refused(folder, way, wrong, 1, instead_of=right)
    said, offered = line.split("; did you mean ")
    assert said.endswith(f"unknown key '{wrong}'")
    assert f"'{right}'" in offered.removesuffix("?\n").split(" or ")


@pytest.mark.parametrize("section", [key for key, takes_value in KEYS.items() if not takes_value])
def test_a_section_that_is_none_is_one_line(section: str, folder: Folder) -> None:
    line = refused(folder, "the file", section, 3)
    assert f"'{section}': Input should be a section of keys, not 3" in line


# what is wrong only beside another field, or is a word of other tools
BESIDE = {
    "train.learning_rate=0.1": "unknown key 'train.learning_rate'; did you mean 'space.lr'?",
    "train.augment={}": "unknown key 'train.augment'; did you mean 'augment'?",
    "space.lr.lowest=1": "unknown key 'space.lr.lowest'; did you mean 'space.lr.low'?",
    "colour=blue": "unknown key 'colour'; known here: augment, baselines, data, name, space",
    "augment.jpeg.quality=30": "unknown key 'augment.jpeg.quality'; known here: high, low, p",
    "space.lr.low=-0.001": "'space.lr': low -0.001 must be above 0 on a log scale",
    "space.lr.high=1e-9": "'space.lr': low 1e-05 is not below high 1e-09",
    "space.dropout.high=1.5": "'space.dropout': Input should be less than 1, not 1.5",
    "space.variant=[cnn, cnn]": "'space.variant': ['cnn', 'cnn'] names one twice",
    "space.lr=0.002": "'space': baseline 'cnn' is outside: lr 0.001 is not the fixed 0.002; widen",
    "space.variant=cnn": "baseline 'mobilenet_v2_frozen' is outside: variant",
    "space.augment_p=0.5": "'space.augment_p': there is no section 'augment'",
    "data.fractions.train=0.8": "'data.fractions': train + val + test is 1.1; the three must sum",
    "augment.jpeg={low: 30}": "'augment.jpeg.p' is missing",
    "augment.blur={p: 1, low: 4}": "'augment.blur.low': 4 is above high 3",
    "data.splits=official": "'data.annotations': with splits: official it names the JSONs of each",
    "study.storage={a: 1}": "'study.storage': Input should be a text, not a section",
    "tracking.uri=sqlite:///:memory:": "'tracking.uri': Input should be a text, not a section",
    "train.batch_size={a: 1}": 'Input should be a whole number, not {"a": 1}',
}


@pytest.mark.parametrize("override", BESIDE)
def test_what_does_not_fit_together_is_one_line(override: str, folder: Folder) -> None:
    key, _, value = override.partition("=")
    assert BESIDE[override] in refused(folder, "--set", key, value)
