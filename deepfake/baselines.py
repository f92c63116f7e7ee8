"""The report's configurations and its published figures, read from one YAML."""

from pathlib import Path

from pydantic import Field, ValidationError

from deepfake.config import Frozen, Hyperparameters
from deepfake.errors import ConfigError, explain, known_keys, read_yaml


class Figures(Frozen):
    """Test figures of one model; 0 is real, 1 is fake."""

    accuracy: float = Field(ge=0, le=1)
    precision_0: float = Field(ge=0, le=1)
    precision_1: float = Field(ge=0, le=1)
    recall_0: float = Field(ge=0, le=1)
    recall_1: float = Field(ge=0, le=1)
    f1_0: float = Field(ge=0, le=1)
    f1_1: float = Field(ge=0, le=1)


FIGURES = tuple(Figures.model_fields)  # the columns of the report's tables


class Baseline(Frozen):
    """One configuration of the report; published is None where the report prints no figures."""

    name: str = Field(pattern=r"^[\w.-]+$")
    params: Hyperparameters
    published: Figures | None = None


class Published(Frozen):
    """The data and settings behind the published figures: what makes ours comparable."""

    dataset: str
    real: int = Field(gt=0)  # faces in the JSON, before any is dropped
    fake: int = Field(gt=0)
    image_size: dict[str, int]
    max_epochs: int
    batch_size: int
    weights: str


class Baselines(Frozen):
    """What the report ran and printed."""

    source: str
    published_on: Published
    baselines: tuple[Baseline, ...] = Field(min_length=1)


def load_baselines(path: Path) -> Baselines:
    """Raises ConfigError if the file is absent or not of this shape."""
    try:
        found = Baselines.model_validate(read_yaml(path, "configs/baselines.yaml"))
    except ConfigError as error:
        raise ConfigError(f"baselines: {error}") from None
    except ValidationError as error:
        flaw = explain(error, set(known_keys(Baselines)))
        raise ConfigError(f"baselines: {path}: {flaw}") from None
    names = [baseline.name for baseline in found.baselines]
    if len(set(names)) < len(names):
        raise ConfigError(f"baselines: {path}: the names {names} are not unique")
    return found
