"""What a study takes of the disk, place by place."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from deepfake.prepare import CROPS
from study.config import StudyConfig
from study.tracking import sqlite_path


@dataclass(frozen=True)
class Usage:
    """What one thing takes."""

    what: str
    place: str
    n_bytes: int


def usage(config: StudyConfig) -> list[Usage]:
    """Of each place that is there."""
    work_dir, checkpoints = config.data.work_dir, config.checkpoints_dir
    url = make_url(config.study.storage.get_secret_value())
    sqlite = sqlite_path(config.tracking.uri)
    named = {
        "crops": work_dir / CROPS,
        "stores": work_dir / "store",
        "features": work_dir / "features",
        "checkpoints": checkpoints,
    }
    spools = sorted(checkpoints.glob("*/spool"))
    if url.get_backend_name() == "sqlite" and url.database:
        named["study database"] = Path(url.database)
    if sqlite is not None:
        named["MLflow's database"] = sqlite
        named["MLflow's artifacts"] = config.tracking.artifacts_dir / config.name
    found = [Usage(what, str(path), bytes_of(path)) for what, path in named.items()]
    found += [Usage("of them, spool", str(path), bytes_of(path)) for path in spools]
    return [usage for usage in found if Path(usage.place).exists()]


def bytes_of(path: Path) -> int:
    """What a file or a folder takes; what vanishes meanwhile takes nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        try:
            total += 0 if file.is_dir() else file.lstat().st_size
        except OSError:
            continue
    return total
