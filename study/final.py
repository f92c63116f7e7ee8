"""The proof of the logged figures, and the only reader of the test split."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from deepfake.config import Split, UserError
from deepfake.fit import evaluate, set_precision
from deepfake.metrics import ConfusionMatrix, confusion_matrix, cross_entropy, intervals, measure
from deepfake.models import build_model, state_dict_sha256
from deepfake.prepare import load_prepared
from deepfake.splits import Opening
from deepfake.store import Faces
from study.config import StudyConfig
from study.figures import confusion_figure
from study.objective import Inputs, hardware
from study.records import SlotRecord, best_of
from study.slots import Slots
from study.spool import Spool
from study.tracking import Tracker
from study.worker import set_up, study_fingerprint

log = logging.getLogger(__name__)

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the validation loss on other hardware


class ProofFailed(UserError):
    """A validation loss recomputed from logged weights is not the logged one."""


@dataclass(frozen=True)
class Proof:
    """A logged validation loss, and the same computed again from the logged weights."""

    logged: float
    recomputed: float
    same_hardware: bool  # then the two are equal, bit for bit


@dataclass(frozen=True)
class SplitFigures:
    """One model measured on one split."""

    faces: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %, bootstrap over photos
    confusion: list[list[int]]  # rows: true real, true fake; columns: predicted


@dataclass(frozen=True)
class Evaluated:
    """One slot, re-evaluated."""

    slot: int
    model: str  # the baseline's name, "best", or "slot N"
    variant: str
    weights_sha256: str
    proof: Proof
    val: SplitFigures
    test: SplitFigures | None  # None unless the slot is in an opened list


@dataclass(frozen=True)
class Evaluation:
    """What evaluate found, and under which opening of the test split."""

    finalists: list[Evaluated]
    opening: dict[str, Any] | None
    openings: int  # different lists the test split was opened for, so far


class Evaluator:
    """Re-evaluates slots of one study on one device."""

    def __init__(self, slots: Slots, device: torch.device) -> None:
        """Raises StudyMismatch or DataError if data or settings are not the study's."""
        self.config: StudyConfig = slots.config
        self.slots = slots
        self.device = device
        set_up(self.config, device)
        self.inputs = Inputs.load(self.config, load_prepared(self.config.data))
        slots.refuse_other(study_fingerprint(self.config, self.inputs))
        self.tracker = Tracker(self.config, slots)

    def evaluate(self) -> Evaluation:
        """Prove the best trial and the baselines, freeze that list, open the test split for it."""
        records = self.slots.records()
        unfinished = [record.number for record in records if not record.finished]
        if unfinished:
            raise UserError(
                f"study '{self.config.name}' has {len(unfinished)} unfinished slots; finish it "
                "first with: deepfake-study run CONFIG"
            )
        finalists = self._finalists(records)
        # the best trial may be a baseline: then one proof and one test stand for both
        unique = {record.number: record for _, record in finalists}
        proven = {n: self._prove(record) for n, record in unique.items()}
        opening, entry = self._freeze(list(proven.values()))
        tested = {n: self._test(evaluated, opening) for n, evaluated in proven.items()}
        named = [replace(tested[record.number], model=model) for model, record in finalists]
        openings = self.slots.attributes()["openings"]
        evaluation = Evaluation(named, entry, len({e["sha256"] for e in openings}))
        self.slots.set_attribute("evaluation", asdict(evaluation))
        self.tracker.log_study(
            {"opening_sha256": opening.sha256, "test_openings": str(evaluation.openings)},
            {"test/openings.json": json.dumps(openings, indent=1)},
        )
        return evaluation

    def evaluate_slot(self, number: int) -> Evaluation:
        """Prove one slot; its test figures only if an opened list already names it."""
        records = {record.number: record for record in self.slots.records()}
        if number not in records:
            raise UserError(f"--trial {number}: the slots are 0 to {max(records)}")
        record = records[number]
        if record.state not in ("complete", "pruned") or record.best_loss is None:
            raise UserError(f"--trial {number}: it is {record.state} and has no weights to prove")
        proven = self._prove(record)
        openings = self.slots.attributes().get("openings", [])
        mine = _entry(proven)
        entry = next((opened for opened in openings if mine in opened["finalists"]), None)
        if entry is not None:
            proven = self._test(proven, Opening(tuple(entry["finalists"]), entry["sha256"]))
        return Evaluation([proven], entry, len({e["sha256"] for e in openings}))

    def _finalists(self, records: list[SlotRecord]) -> list[tuple[str, SlotRecord]]:
        best = best_of(records)
        if best is None:
            raise UserError(f"study '{self.config.name}' has no complete slot to evaluate")
        baselines = [r for r in records if r.baseline and r.state == "complete"]
        return [("best", best), *((r.baseline or "", r) for r in baselines)]

    def _prove(self, record: SlotRecord) -> Evaluated:
        """Compute the validation loss again from the logged weights, and hold it to the logged."""
        assert record.params is not None
        assert record.best_loss is not None
        spool = Spool.of(self.config, self.slots.study_id)
        if waiting := spool.pending(record.number):
            raise UserError(
                f"slot {record.number}: {waiting} entries wait for MLflow in {spool.folder}; "
                "deliver them with: deepfake-study sync CONFIG"
            )
        if record.run_id is None:
            raise UserError(f"slot {record.number} has no MLflow run: its weights are not logged")
        network, weights_sha256 = self._load(record)
        train = self.config.train_config(record.params, fixed=record.baseline is not None)
        faces = self.inputs.faces("val", train.side_px)
        logits = evaluate(network, faces, train, self.device)
        proof = Proof(
            logged=record.best_loss,
            recomputed=cross_entropy(logits, faces.labels),
            same_hardware=self.tracker.tags(record.run_id)["hardware"] == hardware(self.device),
        )
        tolerance = 0.0 if proof.same_hardware else TOLERANCE[train.precision]
        if not abs(proof.recomputed - proof.logged) <= tolerance:
            raise ProofFailed(
                f"slot {record.number}: its validation loss is {proof.recomputed!r} when computed "
                f"again from the logged weights, {proof.logged!r} was logged; the weights of run "
                f"{record.run_id} or the crops have changed"
            )
        figures, files = _figures(logits, faces, "val")
        self.tracker.log_evaluation(record.run_id, "proof", {"val_loss": proof.recomputed}, files)
        model = record.baseline or f"slot {record.number}"
        return Evaluated(record.number, model, train.variant, weights_sha256, proof, figures, None)

    def _load(self, record: SlotRecord) -> tuple[nn.Module, str]:
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

    def _test(self, evaluated: Evaluated, opening: Opening) -> Evaluated:
        """The same model on the test split, logged to its run."""
        record = self.slots.records()[evaluated.slot]
        assert record.params is not None
        assert record.run_id is not None
        network, weights_sha256 = self._load(record)
        assert weights_sha256 == evaluated.weights_sha256
        train = self.config.train_config(record.params, fixed=record.baseline is not None)
        faces = Faces.load(self.inputs.prepared.work_dir, "test", train.side_px, opening)
        logits = evaluate(network, faces, train, self.device)
        figures, files = _figures(logits, faces, "test")
        self.tracker.log_evaluation(record.run_id, "test", figures.metrics, files)
        return replace(evaluated, test=figures)


def _entry(evaluated: Evaluated) -> str:
    """A finalist in a frozen list: the slot and the weights that stand for it."""
    return f"slot {evaluated.slot} weights {evaluated.weights_sha256}"


def _figures(
    logits: torch.Tensor, faces: Faces, split: Split
) -> tuple[SplitFigures, dict[str, Any]]:
    """Figures of one split, and the files that show them in MLflow."""
    photos = np.asarray(faces.table.groupby(["source", "image_id"]).ngroup(), np.int64)
    matrix: ConfusionMatrix = confusion_matrix(logits, faces.labels)
    figures = SplitFigures(
        faces=len(faces),
        metrics=measure(logits, faces.labels).as_dict(),
        intervals={
            name: (interval.low, interval.high)
            for name, interval in intervals(logits, faces.labels, photos).items()
        },
        confusion=matrix.rows(),
    )
    files = {
        "confusion_matrix.png": confusion_figure(matrix, split),
        "confusion_matrix.json": json.dumps(matrix.rows()),
        "figures.json": json.dumps(asdict(figures), indent=1),
    }
    return figures, files
