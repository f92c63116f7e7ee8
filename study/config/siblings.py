"""The studies that stand beside a search, their slots given: its finalists, a leak's two arms."""

from pathlib import Path
from typing import Literal, get_args

from deepfake.config import DataConfig
from deepfake.errors import ConfigError
from study.config.schema import Kind, StudyConfig

Arm = Literal["photo", "face"]  # how its faces are grouped
ARMS: tuple[Arm, ...] = get_args(Arm)

# which command begins a study of each kind, and goes on with it
BEGUN_BY: dict[Kind, tuple[str, ...]] = {
    "search": ("run",),
    "final": ("evaluate", "--seeds", "N"),
    "leak-photo": ("audit", "--leak"),
    "leak-face": ("audit", "--leak"),
}


def final_of(config: StudyConfig) -> StudyConfig:
    """The study of config's finalists, in the same stores."""
    return config.beside("final")


def leak_of(config: StudyConfig) -> dict[Arm, StudyConfig]:
    """The pair that prices a leak: the same faces, split by photo and by face.

    Their JSONs are those that lie in leak_dir by now.
    """
    return {
        "photo": config.beside("leak-photo", split_by(config.data, "photo")),
        "face": config.beside("leak-face", split_by(config.data, "face")),
    }


def arm_named(name: str) -> Arm:
    """Raises ConfigError."""
    for arm in ARMS:
        if name == arm:
            return arm
    raise ConfigError(f"--leak {name}: the splits are by {' or by '.join(ARMS)}")


def leak_dir(data: DataConfig) -> Path:
    """Where the pair's JSONs are, and a work_dir for each of the two."""
    return data.work_dir / "leak"


def all_beside(config: StudyConfig) -> list[StudyConfig]:
    """Every study that may be there beside it."""
    return [final_of(config), *leak_of(config).values()]


def split_by(data: DataConfig, arm: Arm) -> DataConfig:
    """The faces of the JSONs in leak_dir, in a work_dir of their own."""
    folder = leak_dir(data)
    return data.model_copy(
        update={
            "splits": "drawn",  # whatever the search's are
            "annotations": tuple(sorted(folder.glob("*.json"), key=lambda path: path.stem)),
            "work_dir": folder / arm,
            "group_by": arm,
        }
    )
