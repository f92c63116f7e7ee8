"""MLflow's runs, metrics and artifacts of one study: written, and looked at again."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made there
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.types import ColSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deepfake.data import COLUMNS
from study.config import StudyConfig, public_yaml
from study.slots import Slots, State
from study.tracking.client import (
    AWAY,
    OPEN_S,
    REMOVED,
    in_one_line,
    logged_run,
    reached,
    refuse_deleted,
    search_runs,
    tables,
)
from study.tracking.provenance import Dataset, source_tags
from study.tracking.spool import EPOCH_METRICS, Spool
from study.tracking.store import STATUS, WEIGHTS, LoggedRun, TrackingError, sqlite_path

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line a retry

NUMBERS = ("id_x", "image_id", "category_id")  # of the faces table's columns; others are text
MAX_METRICS = 1000  # that MLflow takes in one call
ENDED = ("FINISHED", "KILLED", "FAILED")
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # and again would be refused again
_PUT_BACK = "put that artifact back, or name another slot"


class Tracker:
    """The MLflow experiment of one study, and the study's parent run in it."""

    def __init__(self, config: StudyConfig, slots: Slots) -> None:
        """Finds both, or creates them. Raises TrackingError if the store can't be reached."""
        self.config = config
        self.slots = slots
        self.study_id = slots.study_id
        self._of_study: set[Dataset] = set()  # that the parent run has, by this process
        with self.reached(), tables(config.tracking.uri):
            self.client = MlflowClient(tracking_uri=config.tracking.uri)
            self.experiment_id = self._experiment()
            self.parent_id = self._parent()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """TrackingError, one line, for whatever goes wrong between here and MLflow."""
        with reached(self.config.tracking.uri):
            yield

    # one slot's run being written; for callers within reached()

    def find_run(self, slot: int) -> LoggedRun | None:
        """The run of a slot, whichever attempt began it."""
        run = self._find(f"tags.slot = '{slot}'")
        return None if run is None else logged_run(run)

    def create_run(self, slot: int, at_ms: int, name: str, tags: Mapping[str, str]) -> LoggedRun:
        own = {"mlflow.parentRunId": self.parent_id, "study_id": self.study_id, "slot": str(slot)}
        said = {key: value for key, value in tags.items() if value}
        run = self.client.create_run(self.experiment_id, at_ms, {**said, **own}, name)
        return logged_run(run)

    def restart_run(self, run: LoggedRun, name: str, tags: Mapping[str, str]) -> None:
        """For another attempt at its slot."""
        self.client.update_run(run.run_id, status="RUNNING", name=name)
        if "reason" in run.tags:
            self.client.delete_tag(run.run_id, "reason")
        self.set_tags(run.run_id, tags)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        with _unless_refused(run_id):
            entries = [Param(key, value) for key, value in params.items()]
            self.client.log_batch(run_id, params=entries)

    def log_datasets(self, run_id: str, given: Sequence[Dataset]) -> None:
        """What a run reads; MLflow keeps one of each name and digest."""
        if not given:
            return
        inputs = [
            DatasetInput(
                _Faces(d)._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, d.context)]
            )
            for d in given
        ]
        with _unless_refused(run_id):
            self.client.log_inputs(run_id, inputs)

    def log_study_datasets(self, given: Sequence[Dataset]) -> None:
        """On the parent run, which every slot's faces are the same for: each is said once."""
        new = [faces for faces in given if faces not in self._of_study]
        self.log_datasets(self.parent_id, new)
        self._of_study.update(new)

    def log_epochs(
        self, run_id: str, epochs: Sequence[tuple[int, int, Mapping[str, float]]]
    ) -> None:
        """Metrics of (epoch, at_ms) that the run does not have yet."""
        # asked each time: another process may have delivered, and a second row would be drawn
        known = {metric.step for metric in self.client.get_metric_history(run_id, "val_loss")}
        new = [
            [Metric(name, value, at_ms, epoch) for name, value in metrics.items()]
            for epoch, at_ms, metrics in epochs
            if epoch not in known
        ]
        at_once = MAX_METRICS // max(map(len, new), default=1)  # whole epochs
        with _unless_refused(run_id):
            for first in range(0, len(new), at_once):
                entries = list(chain.from_iterable(new[first : first + at_once]))
                self.client.log_batch(run_id, metrics=entries)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], at_ms: int) -> None:
        """Figures of the whole run, unless it has the same already."""
        known = self.client.get_run(run_id).data.metrics
        entries = [
            Metric(name, float(value), at_ms, 0)
            for name, value in metrics.items()
            if repr(known.get(name)) != repr(float(value))  # nan is nan
        ]
        with _unless_refused(run_id):
            self.client.log_batch(run_id, metrics=entries)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        with _unless_refused(run_id):
            said = [RunTag(key, value) for key, value in tags.items() if value]
            self.client.log_batch(run_id, tags=said)

    def log_file(self, run_id: str, name: str, path: Path) -> None:
        """name: the artifact's path, which ends as the file's does."""
        folder = str(Path(name).parent)
        self.client.log_artifact(run_id, str(path), None if folder == "." else folder)

    def end_run(self, run: LoggedRun, state: State, reason: str, at_ms: int) -> None:
        """Status, state and reason; of a run that has not ended, MLflow keeps no end."""
        self.set_tags(run.run_id, {"state": state, "reason": reason})
        if "reason" in run.tags and not reason:
            self.client.delete_tag(run.run_id, "reason")
        self._set_status(run.run_id, STATUS[state], at_ms)

    def describe(self, text: str) -> None:
        """The parent run's description, in Markdown."""
        with _witness(self.parent_id):
            self.set_tags(self.parent_id, {MLFLOW_RUN_NOTE: text})

    def end_study(self, finished: bool) -> None:
        """The parent run: FINISHED once all slots are, RUNNING if slots were added."""
        status = "FINISHED" if finished else "RUNNING"
        if self.client.get_run(self.parent_id).info.status != status:
            self._set_status(self.parent_id, status, int(time.time() * 1000))

    def runs(self) -> dict[int, LoggedRun]:
        """Every slot's run that there is."""
        found = [logged_run(run) for run in self._search("tags.slot != ''")]
        return {int(run.tags["slot"]): run for run in found}

    # reading, and what evaluate adds

    def weights(self, run_id: str) -> dict[str, Tensor]:
        """The best weights that a slot logged. Raises TrackingError if they are gone."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.client.download_artifacts(run_id, WEIGHTS, folder)
            except (MlflowException, OSError) as error:
                tags = self.tags(run_id)
                if tags.get(REMOVED[0]) == REMOVED[1]:
                    raise TrackingError(
                        f"slot {tags.get('slot')}: its weights were removed by deepfake-study gc; "
                        "evaluate --seeds N trains it again, or name another slot"
                    ) from None
                raise TrackingError(
                    f"run {run_id}: {WEIGHTS} can't be read ({in_one_line(error)}); {_PUT_BACK}"
                ) from None
            try:
                return load_file(path)
            except SafetensorError as error:
                raise TrackingError(
                    f"run {run_id}: {WEIGHTS} is damaged ({in_one_line(error)}); {_PUT_BACK}"
                ) from None

    def tags(self, run_id: str) -> dict[str, str]:
        """Raises TrackingError, also if the run is gone."""
        with self.reached():
            return dict(self.client.get_run(run_id).data.tags)

    def history(self, run_id: str) -> dict[str, dict[int, float]]:
        """Every per-epoch metric of a run: name -> epoch -> value. Raises TrackingError."""
        with self.reached():
            return {
                name: {m.step: m.value for m in self.client.get_metric_history(run_id, name)}
                for name in EPOCH_METRICS
            }

    def log_evaluation(
        self, run_id: str, split: str, figures: Mapping[str, float], files: Mapping[str, Any]
    ) -> None:
        """Figures of a re-evaluation as `<split>_<name>`, and its files under `<split>/`."""
        with _witness(run_id):
            metrics = {f"{split}_{name}": value for name, value in figures.items()}
            self.log_metrics(run_id, metrics, int(time.time() * 1000))
            for name, content in files.items():
                self._log_content(run_id, f"{split}/{name}", content)

    def note_datasets(self, run_id: str, given: Sequence[Dataset]) -> None:
        """What a run is evaluated on, and so its study."""
        with _witness(run_id):
            self.log_datasets(run_id, given)
            self.log_study_datasets(given)

    def log_study(self, tags: Mapping[str, str], files: Mapping[str, Any]) -> None:
        """On the parent run."""
        with _witness(self.parent_id):
            self.set_tags(self.parent_id, tags)
            for name, content in files.items():
                self._log_content(self.parent_id, name, content)

    def log_study_file(self, name: str, path: Path) -> None:
        """On the parent run. Raises TrackingError if MLflow does not take it."""
        with self.reached():
            self.log_file(self.parent_id, name, path)

    def study_text(self, name: str) -> str:
        """A text file of the parent run. Raises TrackingError if it is not there."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.client.download_artifacts(self.parent_id, name, folder)
            except AWAY as error:
                raise TrackingError(
                    f"run {self.parent_id}: {name} can't be read ({in_one_line(error)})"
                ) from None
            return Path(path).read_text(encoding="utf-8")

    def _log_content(self, run_id: str, name: str, content: str | Figure) -> None:
        if isinstance(content, Figure):
            self.client.log_figure(run_id, content, name)
        else:
            self.client.log_text(run_id, content, name)

    def _experiment(self) -> str:
        name = self.config.name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None  # a server has an artifact store of its own
            if sqlite_path(self.config.tracking.uri) is not None:
                location = (self.config.tracking.artifacts_dir / name).as_uri()
            try:
                return self.client.create_experiment(name, location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was first
                    raise
            found = self.client.get_experiment_by_name(name)
            assert found is not None
        refuse_deleted(found, self.config.tracking.uri)
        return str(found.experiment_id)

    def _parent(self) -> str:
        where = "tags.role = 'study'"
        found = self._find(where)
        if found is None:
            with Spool.of(self.config, self.study_id).lock("study", OPEN_S):
                found = self._find(where) or self._create_parent()
        return str(found.info.run_id)

    def _create_parent(self) -> Run:
        tags = {**source_tags(), "study_id": self.study_id, "role": "study"}
        run = self.client.create_run(self.experiment_id, run_name=self.config.name, tags=tags)
        self.client.log_text(run.info.run_id, public_yaml(self.config), "config.yaml")
        return run

    def _find(self, where: str) -> Run | None:
        """The one run of this study there should be; others are deleted.

        A create whose answer was lost is sent again by the HTTP client: then there are two.
        """
        # with params or the oldest: the one that was written to
        found = sorted(
            self._search(where),
            key=lambda run: (not run.data.params, run.info.start_time, run.info.run_id),
        )
        for double in found[1:]:
            self.client.delete_run(double.info.run_id)
        return found[0] if found else None

    def _search(self, where: str) -> list[Run]:
        return search_runs(self.client, self.experiment_id, self.study_id, where)

    def _set_status(self, run_id: str, status: str, at_ms: int) -> None:
        if status in ENDED:
            self.client.set_terminated(run_id, status, at_ms)
        else:
            self.client.update_run(run_id, status)


class _Faces(MetaDataset):
    """The rows of faces.csv in one split, as MLflow describes a table."""

    def __init__(self, given: Dataset) -> None:
        types = dict.fromkeys(COLUMNS, "string") | dict.fromkeys(NUMBERS, "long")
        schema = Schema([ColSpec(kind, name) for name, kind in types.items()])
        source = LocalArtifactDatasetSource(given.work_dir)
        super().__init__(source, given.name, given.digest, schema)
        self._given = given

    @property
    def profile(self) -> dict[str, int]:
        real, fake = self._given.real, self._given.fake
        return {"num_rows": real + fake, "real": real, "fake": fake}

    def to_dict(self) -> dict[str, str]:
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


@contextmanager
def _unless_refused(run_id: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code not in REFUSED:
            raise
        log.warning("run %s: refused by MLflow: %s", run_id, in_one_line(error))


@contextmanager
def _witness(run_id: str) -> Iterator[None]:
    try:
        yield
    except AWAY as error:
        log.warning("run %s: not logged: %s", run_id, in_one_line(error))
