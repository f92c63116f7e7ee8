"""The studies that stand beside a search, their slots given: its finalists, a leak's two arms."""

from pathlib import Path
from typing import Literal, get_args

from deepfake.config import DataConfig
from study.config.schema import StudyConfig

Arm = Literal["photo", "face"]  # how its faces are grouped
ARMS: tuple[Arm, ...] = get_args(Arm)


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
            "box": "xywh",  # whatever the search's is
            "work_dir": folder / arm,
            "group_by": arm,
        }
    )
