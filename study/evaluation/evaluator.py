"""The proof of the logged figures, and the only reader of the test sets."""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from deepfake.config import SPLITS, Split, TrainConfig
from deepfake.data import Faces, Opening, load_prepared
from deepfake.errors import UserError
from deepfake.files import sha256_of
from deepfake.metrics import (
    ConfusionMatrix,
    confusion_matrix,
    cross_entropy,
    draw_photos,
    intervals,
    logged_figures,
)
from deepfake.models import build_model, state_dict_sha256
from deepfake.parallel import Progress
from deepfake.reproducibility import set_precision
from deepfake.training import EVAL_BATCHES, Feed, evaluate
from deepfake.transforms import SUITE
from deepfake.variants import VARIANTS
from study.config import OBJECTIVES, StudyConfig
from study.evaluation.analysis import analyse
from study.evaluation.artifacts import corruptions_figure, curves_and_galleries
from study.evaluation.finalists import Contender, diagnostics_of, of_search
from study.evaluation.predictions import (
    prediction_rows,
    read_predictions,
    write_predictions,
)
from study.evaluation.results import Evaluated, Evaluation, Proof, Row, SplitFigures
from study.evaluation.robustness import first_seeds, rows_under_corruptions, write_corruptions
from study.slots import SlotRecord, Slots, Training
from study.tracking import Spool, Tracker, confusion_figure, dataset, describe
from study.worker import Inputs, hardware, set_up, study_fingerprint


def quiet(stage: str, done: int, total: int) -> None:
    """The Progress of who shows none."""


@dataclass
class Steps:
    """Tells progress from the first step on."""

    progress: Progress
    stage: str
    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self.progress(self.stage, self.done, self.total)

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        self.progress(self.stage, self.done, self.total)


TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the objective, where bits may differ


class ProofFailed(UserError):
    """An objective recomputed from logged weights is not the logged one."""


def prove(
    record: SlotRecord, recomputed: float, train: TrainConfig, *, same_hardware: bool
) -> Proof:
    """Raises ProofFailed if the two are further apart than the hardware allows."""
    assert record.best_loss is not None
    proof = Proof(record.best_loss, recomputed, same_hardware, record.objective)
    # a frozen backbone's head was trained on stored features, in other batches than here
    exact = same_hardware and not VARIANTS[train.variant].frozen
    tolerance = 0.0 if exact else TOLERANCE[train.precision]
    if not abs(proof.recomputed - proof.logged) <= tolerance:
        raise ProofFailed(
            f"slot {record.number}: its {OBJECTIVES[record.objective]} is {recomputed!r} when "
            f"computed again from the logged weights, {proof.logged!r} was logged; the weights "
            f"of run {record.run_id} or the crops have changed"
        )
    return proof


log = logging.getLogger(__name__)

PREDICTIONS, CORRUPTIONS = "predictions.csv.gz", "corruptions.csv"


class Evaluator:
    """Re-evaluates trainings of one study on one device."""

    def __init__(self, slots: Slots, device: torch.device, progress: Progress = quiet) -> None:
        """Raises StudyMismatch or DataError if data or settings are not the study's."""
        self.config: StudyConfig = slots.config
        self.slots = slots
        self.device = device
        self.progress = progress
        set_up(self.config, device)
        self.inputs = Inputs.load(self.config, load_prepared(self.config.data))
        slots.refuse_other(study_fingerprint(self.config, self.inputs))
        splits = self.inputs.prepared.summary.splits
        self.further = tuple(split for split in splits if split not in SPLITS)  # test sets
        self.predictions = pd.DataFrame()  # of the last evaluate: see predictions.py
        self._rows: list[pd.DataFrame] = []  # of the predictions
        self._corruption_rows: list[Row] = []  # under corruptions
        self._draws: dict[Split, NDArray[np.uint16]] = {}
        self._steps = Steps(quiet, "", 0)  # batches of the stage under way

    @cached_property
    def tracker(self) -> Tracker:
        """Late: it begins the study's MLflow run, and a wrong number is no reason to."""
        return Tracker(self.config, self.slots)

    def evaluate(
        self,
        contenders: Sequence[Contender],
        left_out: Sequence[str] = (),
        *,
        corruptions: bool = False,
    ) -> Evaluation:
        """Prove each, freeze that list and the incumbents', open the test split for it.

        All that they say of validation and test faces is logged as one table, which figures,
        intervals and verdicts are computed from; with corruptions, what the first seed of each
        scores on test faces under them as another. left_out: what is said of trainings that have
        no weights.
        """
        with self.slots.reading_weights():
            return self._evaluate(contenders, left_out, corruptions=corruptions)

    def _evaluate(
        self, contenders: Sequence[Contender], left_out: Sequence[str], *, corruptions: bool
    ) -> Evaluation:
        self._rows, self._corruption_rows = [], []
        everyone = (*contenders, *diagnostics_of(self.slots))
        under_corruptions = first_seeds(contenders) if corruptions else []
        proven = self._prove_all(everyone)
        opening, entry = self._freeze(proven)
        tested = self._test_all(everyone, proven, opening, under_corruptions)
        finalists, diagnostics = tested[: len(contenders)], tested[len(contenders) :]
        with tempfile.TemporaryDirectory() as folder:
            table = self._written(Path(folder))
            evaluation = self._analysed(table, finalists, diagnostics, entry, left_out)
            self._log(evaluation, table)
        return evaluation

    def _prove_all(self, everyone: Sequence[Contender]) -> list[Evaluated]:
        self._steps = self._proofs(len(everyone))
        return [self._prove(contender) for contender in everyone]

    def _test_all(
        self,
        everyone: Sequence[Contender],
        proven: Sequence[Evaluated],
        opening: Opening,
        under_corruptions: Sequence[Contender],
    ) -> list[Evaluated]:
        self._steps = self._tests(len(everyone), len(under_corruptions))
        return [
            self._test(contender, evaluated, opening, corruptions=contender in under_corruptions)
            for contender, evaluated in zip(everyone, proven, strict=True)
        ]

    def _written(self, folder: Path) -> Path:
        """The table of predictions as a file; what is computed from it is read from there."""
        table = folder / PREDICTIONS
        write_predictions(pd.concat(self._rows, ignore_index=True), table)
        self.predictions = read_predictions(table)
        return table

    def _analysed(
        self,
        table: Path,
        finalists: list[Evaluated],
        diagnostics: list[Evaluated],
        entry: dict[str, Any],
        left_out: Sequence[str],
    ) -> Evaluation:
        """What the table says, beside what each was measured to be."""
        predictions, baselines = self.predictions, self.config.baselines
        return Evaluation(
            finalists=finalists,
            diagnostics=diagnostics,
            opening=entry,
            openings=len({opened["sha256"] for opened in self.slots.attributes()["openings"]}),
            left_out=list(left_out),
            analysis=analyse(predictions, baselines),
            test_sets={name: analyse(predictions, baselines, name) for name in self.further},
            predictions_sha256=sha256_of(table),
            corruptions=self._corruption_rows or None,
        )

    def _log(self, evaluation: Evaluation, table: Path) -> None:
        """In MLflow and the study. Raises TrackingError if MLflow does not take the tables."""
        assert evaluation.opening is not None
        # first, or figures would stand without what they were computed from
        self.tracker.log_study_file(f"test/{PREDICTIONS}", table)
        self._log_corruptions(table.parent)
        self.slots.set_attribute("evaluation", asdict(evaluation))
        openings = self.slots.attributes()["openings"]
        tags = {
            "opening_sha256": evaluation.opening["sha256"],
            "test_openings": str(evaluation.openings),
        }
        self.tracker.log_study(tags, {"test/openings.json": json.dumps(openings, indent=1)})
        self.tracker.log_study({}, self._curves_and_galleries(evaluation, self.predictions))
        self.tracker.describe(describe(self.slots))

    def _curves_and_galleries(
        self, evaluation: Evaluation, predictions: pd.DataFrame
    ) -> dict[str, Any]:
        assert evaluation.analysis is not None
        assert evaluation.predictions_sha256 is not None
        best, crops_dir = evaluation.analysis.best, self.inputs.prepared.work_dir / "crops"
        return curves_and_galleries(predictions, best, evaluation.predictions_sha256, crops_dir)

    def evaluate_slot(self, number: int) -> Evaluation:
        """Prove one slot; its test figures only if an opened list already names it."""
        records = {record.number: record for record in self.slots.records()}
        if number not in records:
            raise UserError(f"--trial {number}: the slots are 0 to {max(records)}")
        record = records[number]
        if record.state not in ("complete", "pruned") or record.best_loss is None:
            raise UserError(f"--trial {number}: it is {record.state} and has no weights to prove")
        with self.slots.reading_weights():
            return self._evaluate_record(record)

    def _evaluate_record(self, record: SlotRecord) -> Evaluation:
        contender = of_search(self.slots, record)
        self._steps = self._proofs(1)
        proven = self._prove(contender)
        openings = self.slots.attributes().get("openings", [])
        mine = _entry(proven)
        entry = next((opened for opened in openings if mine in opened["finalists"]), None)
        if entry is not None:
            opening = Opening(tuple(entry["finalists"]), entry["sha256"])
            self._steps = self._tests(1, 0)
            proven = self._test(contender, proven, opening)
        return Evaluation([proven], [], entry, len({e["sha256"] for e in openings}))

    def batches(self, split: Split) -> int:
        """Of one pass over a split's faces."""
        faces = sum(self.inputs.prepared.summary.splits[split].values())
        return math.ceil(faces / (self.config.train.batch_size * EVAL_BATCHES))

    def _proofs(self, models: int) -> Steps:
        passes = self.config.study.val_passes
        return Steps(self.progress, "prove", models * passes * self.batches("val"))

    def _tests(self, models: int, under_corruptions: int) -> Steps:
        each = sum(self.batches(split) for split in ("test", *self.further))
        corrupted = under_corruptions * len(SUITE) * self.batches("test")
        return Steps(self.progress, "test", models * each + corrupted)

    def _prove(self, contender: Contender) -> Evaluated:
        """Compute the objective again from the logged weights, and hold it to the logged."""
        record = contender.record
        assert record.params is not None
        spool = Spool.of(contender.slots.config, contender.slots.study_id)
        if waiting := spool.pending(record.number):
            raise UserError(
                f"slot {record.number}: {waiting} entries wait for MLflow in {spool.folder}; "
                "deliver them with: deepfake-study sync CONFIG"
            )
        if record.run_id is None:
            raise UserError(f"slot {record.number} has no MLflow run: its weights are not logged")
        network, weights_sha256 = self.load(record)
        train = self.config.train_config(record.params, fixed=record.baseline is not None)
        faces = self.inputs.faces("val", train.side_px)
        logits_of = self._logits_of(network, train)
        logits = logits_of(faces)
        robust = self.inputs.robust(train.side_px)
        monitored = logits if robust is None else logits_of(robust)
        same_hardware = self.tracker.tags(record.run_id)["hardware"] == hardware(self.device)
        recomputed = cross_entropy(monitored, faces.labels)
        proof = prove(record, recomputed, train, same_hardware=same_hardware)
        figures, files = self._figures(contender.training, logits, faces, "val")
        found = {proof.objective: proof.recomputed}
        self.tracker.log_evaluation(record.run_id, "proof", found, files)
        return Evaluated(
            **asdict(contender.training),
            variant=train.variant,
            weights_sha256=weights_sha256,
            proof=proof,
            val=figures,
            test=None,
        )

    def _logits_of(self, network: nn.Module, train: TrainConfig) -> Callable[[Feed], torch.Tensor]:
        return partial(
            evaluate, network, config=train, device=self.device, tick=self._steps.advance
        )

    def load(self, record: SlotRecord) -> tuple[nn.Module, str]:
        """The network of a slot with its logged weights, and their sha256."""
        assert record.params is not None
        assert record.run_id is not None
        train = self.config.train_config(record.params, fixed=record.baseline is not None)
        state = self.tracker.weights(record.run_id)
        network = build_model(train, None)
        network.load_state_dict(state)
        set_precision(train, self.device)
        return network.to(self.device), state_dict_sha256(state)

    def _freeze(self, proven: list[Evaluated]) -> tuple[Opening, dict[str, Any]]:
        """Append the opening for this list to the study, unless the list was opened already."""
        finalists = tuple(sorted(_entry(evaluated) for evaluated in proven))
        opening = Opening(finalists, hashlib.sha256(json.dumps(finalists).encode()).hexdigest())
        with self.slots.exclusive():
            openings = self.slots.attributes().get("openings", [])
            entry = next((e for e in openings if e["sha256"] == opening.sha256), None)
            if entry is None:
                entry = {
                    "sha256": opening.sha256,
                    "finalists": list(finalists),
                    "splits_sha256": self.inputs.prepared.splits_sha256,
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                self.slots.set_attribute("openings", [*openings, entry])
        return opening, entry

    def _test(
        self,
        contender: Contender,
        evaluated: Evaluated,
        opening: Opening,
        *,
        corruptions: bool = False,
    ) -> Evaluated:
        """The same model on each test set, logged to its run; test under corruptions, too."""
        record, training = contender.record, contender.training
        assert record.params is not None
        assert record.run_id is not None
        network, weights_sha256 = self.load(record)
        assert weights_sha256 == evaluated.weights_sha256
        train = self.config.train_config(record.params, fixed=record.baseline is not None)
        logits_of = self._logits_of(network, train)
        of_set: dict[str, SplitFigures] = {}
        for split in ("test", *self.further):
            faces = Faces.load(self.inputs.prepared.work_dir, split, train.side_px, opening)
            logits = logits_of(faces)
            if corruptions and split == "test":
                log.info("%s: %d test faces under corruptions", training.model, len(faces))
                draws = self._draws_of(split, faces)
                self._corruption_rows += rows_under_corruptions(
                    training, train.variant, faces, logits, logits_of, draws
                )
            of_set[split], files = self._figures(training, logits, faces, split)
            tested_on = [dataset(self.inputs.prepared, split, faces.table)]
            self.tracker.note_datasets(record.run_id, tested_on)
            self.tracker.log_evaluation(record.run_id, split, of_set[split].metrics, files)
        return replace(evaluated, test=of_set.pop("test"), test_sets=of_set)

    def _log_corruptions(self, folder: Path) -> None:
        """The table of what was measured under corruptions, and its picture.

        Where nothing was, they take the place of an earlier list's. Raises TrackingError.
        """
        before = self.slots.attribute("evaluation")  # of another version, maybe
        if not self._corruption_rows and not (before and before.get("corruptions")):
            return
        table, picture = folder / CORRUPTIONS, folder / "corruptions.png"
        write_corruptions(self._corruption_rows, table)
        corruptions_figure(self._corruption_rows).savefig(picture)
        for path in (table, picture):
            self.tracker.log_study_file(f"test/{path.name}", path)

    def _draws_of(self, split: Split, faces: Faces) -> NDArray[np.uint16]:
        """Of draw_photos, once: a split has the same faces in the same order for every model."""
        if split not in self._draws:
            self._draws[split] = draw_photos(faces.photos, faces.labels.numpy())
        return self._draws[split]

    def _figures(
        self, training: Training, logits: torch.Tensor, faces: Faces, split: Split
    ) -> tuple[SplitFigures, dict[str, Any]]:
        """Figures of one split, and the files that show them in MLflow; notes its rows."""
        rows = prediction_rows(faces.table, logits.numpy(), training, split)
        self._rows.append(rows)
        matrix: ConfusionMatrix = confusion_matrix(logits, faces.labels)
        metrics = logged_figures(logits, faces.labels)
        with_interval = {name: metrics[name] for name in ("accuracy", "auc")}
        draws = self._draws_of(split, faces)
        found = intervals(logits, faces.labels, faces.photos, with_interval, draws)
        figures = SplitFigures(
            faces=len(faces),
            metrics=metrics,
            intervals={name: (interval.low, interval.high) for name, interval in found.items()},
            confusion=matrix.rows(),
        )
        files = {
            "confusion_matrix.png": confusion_figure(matrix, split),
            "confusion_matrix.json": json.dumps(matrix.rows()),
            "figures.json": json.dumps(asdict(figures), indent=1),
        }
        return figures, files


def _entry(evaluated: Evaluated) -> str:
    """A training in a frozen list: the slot of the search and the weights that stand for it."""
    return f"slot {evaluated.slot} weights {evaluated.weights_sha256}"
