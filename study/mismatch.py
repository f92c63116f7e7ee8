"""Whether a worker's data and settings are those that a study was created with."""

from typing import Any

from deepfake.errors import UserError


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
