"""What must not change while a study lives, and what differs where it did."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deepfake.errors import UserError
from study.config.schema import StudyConfig

if TYPE_CHECKING:
    from deepfake.data import Prepared


class StudyMismatch(UserError):
    """This worker's data or settings are not those the study was created with."""


def refuse_other(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises StudyMismatch naming what differs between two fingerprints."""
    differing = [
        f"{key} was {_short(theirs.get(key))}, is {_short(ours.get(key))}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise StudyMismatch(
            f"study '{name}' was created with other data or settings ({'; '.join(differing)}); "
            "undo the change, or begin a new study: deepfake-study run CONFIG --new"
        )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a sha256


def settings_of(config: StudyConfig) -> dict[str, Any]:
    """What of its YAML must not change while a study runs, by dotted key."""
    train = config.train.model_dump(mode="json", exclude={"weights"})
    settings = {"train": train, "space": config.space.model_dump(mode="json")}
    if config.augment is not None:
        settings["augment"] = config.augment.model_dump(mode="json")
    # what is as usual has no key
    unusual = config.study.model_dump(include={"objective", "sampler"}, exclude_defaults=True)
    baselines = {b.name: b.params.model_dump(mode="json") for b in config.baselines.baselines}
    return {
        **dict(flattened(settings)),
        **{f"baselines.{key}": value for key, value in flattened(baselines)},
        "study.seed": config.study.seed,
        **{f"study.{key}": value for key, value in unusual.items()},
    }


def fingerprint_of(
    config: StudyConfig, prepared: "Prepared", weights_sha256: str
) -> dict[str, Any]:
    """What must not change while a study runs, by dotted key. No paths, budget or places."""
    corruptions = {}
    if config.study.robust:
        from deepfake.transforms import suite_sha256

        corruptions = {"corruptions (sha256)": suite_sha256()}
    return {
        **settings_of(config),
        **corruptions,
        "train.weights (sha256)": weights_sha256,
        "data faces.csv (sha256)": prepared.faces_sha256,  # its labels
        "data splits.csv (sha256)": prepared.splits_sha256,
        "data crops (sha256)": prepared.crops_sha256,
    }


def flattened(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
