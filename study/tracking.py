"""The only module that imports mlflow: one parent run a study, one child run a slot."""

import json
import logging
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from deepfake.config import TrainConfig
from deepfake.fit import EpochStats, FitResult
from deepfake.metrics import confusion_matrix, measure
from deepfake.models import state_dict_sha256
from study.config import StudyConfig, TrackingError, public_yaml
from study.figures import confusion_figure, curves_figure
from study.origin import source_tags
from study.records import State
from study.slots import Slot, Slots

log = logging.getLogger(__name__)

WEIGHTS = "weights/best.safetensors"
EPOCH_METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "seconds",
    "images_per_s",
)
VIEW = "slots"  # the UI's list of runs as it opens: one row a slot, the best first
RUNS_VIEW = {
    "searchFilter": "tags.slot != ''",
    "orderByKey": "metrics.`best_val_loss`",
    "orderByAsc": True,
    "selectedColumns": [
        "metrics.`best_val_loss`",
        "metrics.`best_val_auc`",
        "metrics.`test_accuracy`",
        "params.`variant`",
        "params.`lr`",
        "params.`weight_decay`",
        "params.`dropout`",
        "tags.`slot`",
        "tags.`state`",
    ],
}
STATUS = {"waiting": "SCHEDULED", "complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class Tracker:
    """The MLflow experiment of one study, and the study's parent run in it."""

    def __init__(self, config: StudyConfig, slots: Slots) -> None:
        """Finds both, or creates them. Raises TrackingError if the store can't be reached."""
        self.config = config
        self.slots = slots
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri = config.tracking.uri
        # MLflow's tables, too, must be created by one process: of 8 at once, 7 fail
        sqlite = uri.removeprefix("sqlite:///")
        once = FileLock(sqlite + ".lock") if sqlite != uri else nullcontext()
        try:
            if sqlite != uri:
                Path(sqlite).parent.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(sqlite)) as probe:  # MLflow retries for minutes
                    probe.execute("PRAGMA schema_version")
            with once:
                self.client = MlflowClient(tracking_uri=uri)
                self.experiment_id = self._experiment()
            with slots.exclusive():
                self.parent_id = self._parent()
        except (MlflowException, OSError, SQLAlchemyError, sqlite3.Error) as error:
            raise TrackingError(f"tracking.uri: {uri}: {_one_line(error)}") from None

    def open_run(self, slot: Slot, train: TrainConfig, tags: Mapping[str, str]) -> "SlotRun":
        """The child run of a slot, found again if an earlier attempt began it."""
        try:
            return self._open_run(slot, train, dict(tags))
        except (MlflowException, OSError) as error:
            uri = self.config.tracking.uri
            raise TrackingError(f"tracking.uri: {uri}: {_one_line(error)}") from error

    def _open_run(self, slot: Slot, train: TrainConfig, tags: dict[str, str]) -> "SlotRun":
        run_id = self._find_run(slot.number)
        name = _run_name(slot, train)
        if run_id is None:
            created = self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={
                    **source_tags(),
                    "mlflow.parentRunId": self.parent_id,
                    "study_id": self.study_id,
                    "slot": str(slot.number),
                },
            )
            run_id = str(created.info.run_id)
        else:
            self.client.update_run(run_id, status="RUNNING", name=name)
            before = self.tags(run_id)
            if "reason" in before:  # of an earlier attempt
                self.client.delete_tag(run_id, "reason")
            if "hardware" in before and "hardware" in tags:
                # two machines' name is no single one's: nobody expects equal bits then
                machines = [*before["hardware"].split(" + "), tags["hardware"]]
                tags["hardware"] = " + ".join(dict.fromkeys(machines))
        logged = {metric.step for metric in self.client.get_metric_history(run_id, "val_loss")}
        run = SlotRun(self.client, run_id, logged)
        settings = train.model_dump(mode="json", exclude={"image_size"})
        run.start(
            params={**settings, "image_size": train.side_px},
            tags={
                **tags,
                "variant": train.variant,
                "baseline": slot.baseline or "",
                "state": "running",
                "attempt": str(slot.attempt),
            },
            files={"config.yaml": public_yaml(self.config)},
        )
        return run

    def pause_run(self, slot: int) -> None:
        """The run of a slot that was freed: it waits for another worker."""
        if (run := self._reopen(slot)) is not None:
            run.end("waiting", None)

    def weights(self, run_id: str) -> dict[str, Tensor]:
        """The best weights that a slot logged. Raises TrackingError if they are gone."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.client.download_artifacts(run_id, WEIGHTS, folder)
            except (MlflowException, OSError) as error:
                raise TrackingError(
                    f"run {run_id}: {WEIGHTS} can't be read ({_one_line(error)})"
                ) from None
            try:
                return load_file(path)
            except SafetensorError as error:
                raise TrackingError(
                    f"run {run_id}: {WEIGHTS} is damaged ({_one_line(error)})"
                ) from None

    def tags(self, run_id: str) -> dict[str, str]:
        """Raises TrackingError if the run is gone."""
        with _readable(run_id):
            return dict(self.client.get_run(run_id).data.tags)

    def history(self, run_id: str) -> dict[str, dict[int, float]]:
        """Every per-epoch metric of a run: name -> epoch -> value. Raises TrackingError."""
        with _readable(run_id):
            return {
                name: {m.step: m.value for m in self.client.get_metric_history(run_id, name)}
                for name in EPOCH_METRICS
            }

    def log_evaluation(
        self, run_id: str, split: str, figures: Mapping[str, float], files: Mapping[str, Any]
    ) -> None:
        """Figures of a re-evaluation as `<split>_<name>`, and its files under `<split>/`."""
        run = SlotRun(self.client, run_id, set())
        run.log_metrics({f"{split}_{name}": value for name, value in figures.items()})
        for name, content in files.items():
            run.log_file(f"{split}/{name}", content)

    def log_study(self, tags: Mapping[str, str], files: Mapping[str, Any]) -> None:
        """On the parent run."""
        run = SlotRun(self.client, self.parent_id, set())
        run.set_tags(tags)
        for name, content in files.items():
            run.log_file(name, content)

    def end_study(self) -> None:
        SlotRun(self.client, self.parent_id, set()).end("complete", None)

    @property
    def study_id(self) -> str:
        return str(self.slots.attributes()["id"])

    def fail_run(self, slot: int, reason: str, exception: str) -> None:
        """The run of a slot whose attempt raised, with the traceback."""
        if (run := self._reopen(slot)) is not None:
            run.log_file("exception.txt", exception)
            run.end("failed", reason)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.config.name)
        if found is not None:
            return str(found.experiment_id)
        location = None  # a server has an artifact store of its own
        if self.config.tracking.uri.startswith("sqlite:"):
            location = (self.config.tracking.artifacts_dir / self.config.name).as_uri()
        tags = {f"mlflow.sharedViewState.{VIEW}": json.dumps(RUNS_VIEW)}
        return self.client.create_experiment(self.config.name, location, tags)

    def _parent(self) -> str:
        where = f"tags.study_id = '{self.study_id}' and tags.role = 'study'"
        found = self.client.search_runs([self.experiment_id], where, max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {**source_tags(), "study_id": self.study_id, "role": "study"}
        run = self.client.create_run(self.experiment_id, run_name=self.config.name, tags=tags)
        self.client.log_text(run.info.run_id, public_yaml(self.config), "config.yaml")
        return str(run.info.run_id)

    def _reopen(self, slot: int) -> "SlotRun | None":
        try:
            run_id = self._find_run(slot)
        except (MlflowException, OSError) as error:  # the slot matters more than its witness
            log.warning("slot %d: its run can't be found: %s", slot, _one_line(error))
            return None
        return None if run_id is None else SlotRun(self.client, run_id, set())

    def _find_run(self, slot: int) -> str | None:
        where = f"tags.study_id = '{self.study_id}' and tags.slot = '{slot}'"
        found = self.client.search_runs([self.experiment_id], where, max_results=1)
        return str(found[0].info.run_id) if found else None


def runs_page(config: StudyConfig) -> str:
    """The part of the UI's address behind the host that shows the study's runs.

    Raises TrackingError if the study is not in the store.
    """
    client = MlflowClient(tracking_uri=config.tracking.uri)
    try:
        experiment = client.get_experiment_by_name(config.name)
    except MlflowException as error:
        raise TrackingError(f"tracking.uri: {config.tracking.uri}: {_one_line(error)}") from None
    if experiment is None:
        raise TrackingError(f"study '{config.name}' has no runs in {config.tracking.uri} yet")
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"#/experiments/{experiment.experiment_id}/runs?{query}"


class SlotRun:
    """One run being written. A witness: what MLflow refuses is logged, and training goes on."""

    def __init__(self, client: MlflowClient, run_id: str, logged: set[int]) -> None:
        self.client = client
        self.run_id = run_id
        self.whole = True  # nothing was refused
        self._logged = logged  # epochs whose metrics are there

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], files: Mapping[str, str]
    ) -> None:
        with self._witness("params"):
            entries = [Param(key, str(value)) for key, value in params.items()]
            self.client.log_batch(self.run_id, params=entries)
        self.set_tags(tags)
        for name, content in files.items():
            self.log_file(name, content)

    def log_epoch(self, stats: EpochStats) -> None:
        if stats.epoch in self._logged:  # replayed after a crash: a second row would be drawn
            return
        self.log_metrics({name: getattr(stats, name) for name in EPOCH_METRICS}, stats.epoch)
        self._logged.add(stats.epoch)

    def log_result(self, result: FitResult, labels: Tensor) -> None:
        """Best weights, validation figures and confusion matrix of the best epoch, curves."""
        if result.best is None or result.best_state is None or result.best_logits is None:
            return  # the first epoch diverged
        matrix = confusion_matrix(result.best_logits, labels)
        self.log_metrics(
            {
                "best_val_loss": result.best.val_loss,
                "best_epoch": result.best.epoch,
                **{
                    f"best_val_{k}": v
                    for k, v in measure(result.best_logits, labels).as_dict().items()
                },
            }
        )
        self.log_file("val/confusion_matrix.json", json.dumps(matrix.rows()))
        self.log_file("val/confusion_matrix.png", confusion_figure(matrix, "validation"))
        self.log_file("learning_curves.png", curves_figure(result.history))
        self.log_weights(result.best_state)

    def log_weights(self, state: Mapping[str, Tensor]) -> None:
        with self._witness(WEIGHTS), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(WEIGHTS).name
            save_file({name: value.contiguous() for name, value in state.items()}, path)
            self.client.log_artifact(self.run_id, str(path), str(Path(WEIGHTS).parent))
            self.set_tags({"weights_sha256": state_dict_sha256(dict(state))})

    def end(self, state: State, reason: str | None) -> None:
        self.set_tags({"state": state, "reason": reason or ""})
        with self._witness("state"):
            self.client.set_terminated(self.run_id, STATUS[state])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        with self._witness("metrics"):
            entries = [Metric(key, float(value), now, step) for key, value in values.items()]
            self.client.log_batch(self.run_id, metrics=entries)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with self._witness("tags"):
            said = [RunTag(key, value) for key, value in tags.items() if value]
            self.client.log_batch(self.run_id, tags=said)

    def log_file(self, name: str, content: str | Figure) -> None:
        with self._witness(name):
            if isinstance(content, Figure):
                self.client.log_figure(self.run_id, content, name)
            else:
                self.client.log_text(self.run_id, content, name)

    @contextmanager
    def _witness(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            self.whole = False
            log.warning("run %s: %s not logged: %s", self.run_id, what, _one_line(error))


def _run_name(slot: Slot, train: TrainConfig) -> str:
    if slot.baseline:
        return f"baseline {slot.baseline}"
    return f"{slot.number:03d} {train.variant} lr={train.lr:.1e}"


@contextmanager
def _readable(run_id: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(f"run {run_id}: can't be read ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
