"""What MLflow holds of a study, looked at and taken off: nothing is created."""

from typing import Self

from mlflow import MlflowClient

from study.config import StudyConfig, TrackingError
from study.connection import (
    LoggedRun,
    has_tables,
    logged_run,
    reached,
    refuse_deleted,
    search_runs,
    sqlite_path,
)
from study.spool import WEIGHTS
from study.tracking import REMOVED
from study.view import VIEW


class Shelf:
    """The experiment of one study, if there is one: a Tracker would create it."""

    def __init__(self, client: MlflowClient, experiment_id: str, study_id: str, uri: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.study_id = study_id
        self.uri = uri

    @classmethod
    def of(cls, config: StudyConfig, study_id: str) -> Self | None:
        """None if the study has no experiment there; TrackingError if it was deleted, too."""
        uri = config.tracking.uri
        with reached(uri):
            if (sqlite := sqlite_path(uri)) is not None and not has_tables(sqlite):
                return None  # a client would create them
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(config.name)
            if experiment is None:
                return None
            refuse_deleted(experiment, uri)
            return cls(client, str(experiment.experiment_id), study_id, uri)

    def runs(self) -> list[LoggedRun]:
        """Of slots, more than one of a slot if there are. Raises TrackingError."""
        with reached(self.uri):
            found = search_runs(self.client, self.experiment_id, self.study_id, "tags.slot != ''")
            return [logged_run(run) for run in found]

    def weights_bytes(self, run_id: str) -> int:
        """0 if the run has none. Raises TrackingError."""
        with reached(self.uri):
            folder = WEIGHTS.rpartition("/")[0]
            files = self.client.list_artifacts(run_id, folder)
            return sum(file.file_size or 0 for file in files if file.path == WEIGHTS)

    def is_registered(self, run_id: str) -> bool:
        """Whether a model of the registry came from the run. Raises TrackingError."""
        with reached(self.uri):
            return bool(self.client.search_model_versions(f"run_id = '{run_id}'"))

    def remove_weights(self, run_id: str) -> None:
        """For good; the run says so in a tag. Raises TrackingError, also if the store can't."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with reached(self.uri):
            where = self.client.get_run(run_id).info.artifact_uri
            store = get_artifact_repository(where, tracking_uri=self.uri)
            self.client.set_tag(run_id, *REMOVED)  # first: a kill in between leaves no riddle
            store.delete_artifacts(WEIGHTS)
        if self.weights_bytes(run_id):  # not every kind of store deletes
            raise TrackingError(f"run {run_id}: {where} does not delete {WEIGHTS}")


def runs_page(config: StudyConfig) -> str:
    """The part of the UI's address behind the host that shows the study's runs.

    Raises TrackingError if the study is not in the store.
    """
    uri = config.tracking.uri
    with reached(uri):
        experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(config.name)
        if experiment is not None:
            refuse_deleted(experiment, uri)
    if experiment is None:
        raise TrackingError(f"study '{config.name}' has no runs in {uri} yet")
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"#/experiments/{experiment.experiment_id}/runs?{query}"
