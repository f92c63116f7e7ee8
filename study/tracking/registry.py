"""MLflow's model registry: what a study found, under names that deployments can rely on."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch import nn

from deepfake.export import ModelInfo
from study.tracking.tracker import Tracker

CHAMPION, REPORT_BASELINE = "champion", "report-baseline"  # aliases


def stands_for(tracker: Tracker, alias: str) -> str | None:
    """The sha256 of the weights that an alias points at; None if there is none.

    Raises TrackingError.
    """
    with tracker.reached():
        try:
            version = tracker.client.get_model_version_by_alias(tracker.config.name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # no model yet, or no such alias
            raise
    return version.tags.get("weights_sha256")


def register(
    tracker: Tracker,
    run_id: str,
    network: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    alias: str | None = None,
) -> str:
    """The registry's URI of an exported model, logged as a traced graph (pt2, no pickle).

    network: on the CPU, in eval mode. files: go along. alias: points at it from now on. What the
    run has registered or logged already, of the same weights, temperature and threshold, is not
    registered or logged twice. Raises TrackingError.
    """
    name, client = tracker.config.name, tracker.client
    tags = {
        "slot": str(info.trained.slot),
        "variant": info.variant,
        "weights_sha256": info.weights_sha256,
        "temperature": repr(info.temperature),
        "threshold": repr(info.threshold),
    }
    with tracker.reached():
        with _unless_there():
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        same = [v for v in versions if v.run_id == run_id and tags.items() <= v.tags.items()]
        version = same[0] if same else _version(tracker, run_id, network, info, files, tags)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    return f"models:/{name}/{version.version}"


def _version(
    tracker: Tracker,
    run_id: str,
    network: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    tags: dict[str, str],
) -> ModelVersion:
    logged = _logged_before(tracker, run_id, tags)
    if logged is None:
        logged = _log_model(tracker, run_id, network, info, files, tags)
    # not models:/ID as its source: the SQL registry asks the global tracking URI for it
    return tracker.client.create_model_version(
        tracker.config.name, logged.artifact_location, run_id, tags, model_id=logged.model_id
    )


def _logged_before(tracker: Tracker, run_id: str, tags: dict[str, str]) -> LoggedModel | None:
    """What a process that was killed before it could register it has logged whole."""
    found = tracker.client.search_logged_models(
        [tracker.experiment_id], f"source_run_id = '{run_id}'"
    )
    whole = [model for model in found if model.status == LoggedModelStatus.READY]
    return next((model for model in whole if tags.items() <= model.tags.items()), None)


def _log_model(
    tracker: Tracker,
    run_id: str,
    network: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    tags: dict[str, str],
) -> LoggedModel:
    import mlflow.pytorch  # seconds
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    # not mlflow.pytorch.log_model: it wants the run active, and so sets its status anew
    client = tracker.client
    logged = client.create_logged_model(tracker.experiment_id, info.variant, run_id, tags)
    faces, float32 = (-1, 3, info.side_px, info.side_px), np.dtype("float32")
    signature = ModelSignature(
        Schema([TensorSpec(float32, faces)]), Schema([TensorSpec(float32, (-1, 2))])
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of weights that are not on the CPU
        mlflow.pytorch.save_model(
            network,
            f"{folder}/model",
            mlflow_model=Model(logged.artifact_location, run_id, model_id=logged.model_id),
            signature=signature,
            input_example=np.zeros((2, *faces[1:]), np.float32),  # 1 would fix the batch at 1
            serialization_format="pt2",
            pip_requirements=[f"torch=={info.trained.torch.partition('+')[0]}"],
            extra_files=[str(path) for path in files],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


@contextmanager
def _unless_there() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
