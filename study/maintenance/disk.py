"""What a study takes of the disk, place by place."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from deepfake.data import CROPS
from study.config import StudyConfig, all_beside
from study.tracking import sqlite_path


@dataclass(frozen=True)
class Usage:
    """What one thing takes."""

    what: str
    place: str
    n_bytes: int


def usage(config: StudyConfig) -> list[Usage]:
    """Of each place that is there, of the study and of those beside it."""
    work_dir = config.data.work_dir
    places = [
        ("crops", work_dir / CROPS),
        ("stores", work_dir / "store"),
        ("features", work_dir / "features"),
        *_of_checkpoints(config, ""),
    ]
    url = make_url(config.study.storage.get_secret_value())
    if url.get_backend_name() == "sqlite" and url.database:
        places.append(("study database", Path(url.database)))
    if (sqlite := sqlite_path(config.tracking.uri)) is not None:
        places.append(("MLflow's database", sqlite))
        places.append(("MLflow's artifacts", config.tracking.artifacts_dir / config.name))
    for beside in all_beside(config):
        of = f" of {beside.name}"
        if beside.data.work_dir != work_dir:
            places.append((f"data{of}", beside.data.work_dir))
        places += _of_checkpoints(beside, of)
        if sqlite is not None:
            places.append((f"MLflow's artifacts{of}", config.tracking.artifacts_dir / beside.name))
    return [Usage(what, str(path), bytes_of(path)) for what, path in places if path.exists()]


def _of_checkpoints(config: StudyConfig, of: str) -> list[tuple[str, Path]]:
    checkpoints = config.checkpoints_dir
    spools = sorted(checkpoints.glob("*/spool"))
    return [(f"checkpoints{of}", checkpoints), *((f"of them, spool{of}", s) for s in spools)]


def bytes_of(path: Path) -> int:
    """What a file or a folder takes; what vanishes meanwhile takes nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        try:
            total += 0 if file.is_dir() else file.lstat().st_size
        except OSError:
            continue
    return total
