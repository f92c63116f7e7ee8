"""A model to keep: a slot is proven, calibrated on validation, written out and registered."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfake.config import FAKE, LABELS, TrainSettings
from deepfake.data import Faces
from deepfake.errors import UserError
from deepfake.export import (
    CARD,
    MODEL_JSON,
    ModelInfo,
    Preparation,
    Trained,
    check_onnx,
    refuse_existing,
    whole_folder,
    write_model,
    write_onnx,
)
from deepfake.metrics import (
    METRICS,
    choose_threshold,
    confusion_matrix,
    cross_entropy,
    fake_probability,
    fit_temperature,
    intervals,
    measure,
)
from deepfake.models import count_parameters
from deepfake.parallel import Progress
from deepfake.reproducibility import full_precision
from deepfake.training import evaluate
from deepfake.variants import VARIANTS
from study.config import OBJECTIVES, StudyConfig
from study.evaluation.evaluator import Evaluator, Steps, quiet
from study.evaluation.results import Evaluated, Evaluation, SplitFigures
from study.slots import SlotRecord, Slots, best_of
from study.templates import markdown
from study.tracking import CHAMPION, REPORT_BASELINE, Spool, git_commit, register, stands_for
from study.worker import Inputs

_OF_LABEL = ("precision", "recall", "f1")
ROWS = (
    "accuracy",
    "auc",
    *(f"{name}_{label}" for label in "10" for name in _OF_LABEL),
)  # of the card


@dataclass(frozen=True)
class CardFigures:
    """What a card says was measured of the model."""

    columns: Mapping[str, Any]  # title -> SplitFigures
    nll_before: float  # on validation, before and after the temperature
    nll_after: float
    opening: Mapping[str, Any] | None  # of the test split, if this model is in its list
    openings: int  # different lists so far


def model_card(
    info: ModelInfo,
    figures: CardFigures,
    *,
    chosen: str,
    searched: bool,
    parameters: int,
    onnx: bool,
) -> str:
    """chosen: how the slot was found, as part of a sentence. searched: by its objective."""
    faces = info.trained.faces
    train = faces["train"]
    return markdown(
        Path(__file__).with_name("card.md.j2"),
        {
            **vars(figures),
            "info": info,
            "drawn": info.hyperparameters.model_dump(exclude={"variant"}),
            "title": VARIANTS[info.variant].title,
            "chosen": chosen,
            "searched": searched,
            "parameters": parameters,
            "onnx": onnx,
            "rows": {name: METRICS[name].title for name in ROWS},
            "n_faces": sum(sum(of.values()) for of in faces.values()),
            "prior": train[LABELS[FAKE]] / sum(train.values()),
        },
    )


REGISTER_S = 600.0  # another evaluate is at it: two models are traced and written


@dataclass(frozen=True)
class ExportedSlot:
    """Where an exported model is, and what it says of itself."""

    folder: str
    registered: str  # MLflow's URI of it
    slot: int
    variant: str
    temperature: float
    threshold: float
    weights_sha256: str


def export_slot(
    slots: Slots,
    number: int | None,
    out: Path,
    device: torch.device,
    *,
    onnx: bool = False,
    progress: Progress = quiet,
) -> ExportedSlot:
    """Export a slot, without a number the best one, to the folder out and to MLflow's registry.

    Raises UserError if out is there already or the slot has no weights, ProofFailed if they are
    not what its figures came from. An export that fails leaves no folder.
    """
    refuse_existing(out)
    if onnx:
        check_onnx()
    evaluator = Evaluator(slots, device, progress)
    best = best_of(slots.records())
    if number is None:
        if best is None:
            raise UserError(f"study '{slots.config.name}' has no complete slot to export")
        number = best.number
    return _export(evaluator, evaluator.evaluate_slot(number), out, onnx=onnx)


def register_best(evaluator: Evaluator, evaluation: Evaluation) -> dict[str, str]:
    """Register the verdict's model, and the best baseline by the objective; the URI by alias.

    evaluation: of evaluate. What an alias stands for already is left as it is. Raises
    TrackingError if MLflow refuses, ProofFailed.
    """
    assert evaluation.analysis is not None
    best = evaluation.analysis.best
    records = evaluator.slots.records()
    slots = {model.model: model.slot for model in evaluation.analysis.models}
    there = {} if best is None else {CHAMPION: slots[best]}
    if (baseline := best_of([record for record in records if record.baseline])) is not None:
        there[REPORT_BASELINE] = baseline.number
    tracker = evaluator.tracker
    with Spool.of(evaluator.config, evaluator.slots.study_id).lock("registry", REGISTER_S):
        for alias, number in there.items():
            run_id = records[number].run_id
            assert run_id is not None
            weights_sha256 = tracker.tags(run_id)["weights_sha256"]
            if stands_for(tracker, alias) != weights_sha256:
                proof = _proof_of(evaluation, weights_sha256) or evaluator.evaluate_slot(number)
                with tempfile.TemporaryDirectory() as folder:
                    _export(evaluator, proof, Path(folder, "model"), alias=alias)
    return {alias: f"models:/{evaluator.config.name}@{alias}" for alias in there}


def _proof_of(evaluation: Evaluation, weights_sha256: str) -> Evaluation | None:
    """What it found of these weights alone; trained again, a slot has others."""
    everyone = (*evaluation.finalists, *evaluation.diagnostics)
    mine = [found for found in everyone if found.weights_sha256 == weights_sha256]
    return replace(evaluation, finalists=mine[:1]) if mine else None


def _export(
    evaluator: Evaluator,
    evaluation: Evaluation,
    out: Path,
    *,
    onnx: bool = False,
    alias: str | None = None,
) -> ExportedSlot:
    """evaluation: of the one slot that is exported."""
    records, progress = evaluator.slots.records(), evaluator.progress
    (proven,) = evaluation.finalists
    record = next(record for record in records if record.number == proven.slot)
    network, weights_sha256 = evaluator.load(record)
    _check_logged(evaluator, record, weights_sha256)
    faces, logits = _validated(evaluator, record, network)
    temperature = fit_temperature(logits, faces.labels)
    threshold = choose_threshold(logits.double() / temperature, faces.labels)
    info = _info(evaluator, record, weights_sha256, temperature, threshold)
    best = best_of(records)
    is_best = best is not None and best.number == record.number
    card = model_card(
        info,
        _card_figures(evaluation, proven, faces, logits, info),
        chosen=_chosen(records, record, is_best),
        searched=is_best,
        parameters=count_parameters(network),
        onnx=onnx,
    )
    network = network.cpu().eval()
    with whole_folder(out) as folder:
        writing = Steps(progress, "write", 2 + onnx)
        write_model(folder, info, network.state_dict(), card)
        writing.advance()
        if onnx:
            write_onnx(folder, info, network)
            writing.advance()
        assert record.run_id is not None
        files = [folder / MODEL_JSON, folder / CARD]
        registered = register(evaluator.tracker, record.run_id, network, info, files, alias)
        writing.advance()
    own = (record.number, info.variant, temperature, threshold, weights_sha256)
    return ExportedSlot(str(out), registered, *own)


def _check_logged(evaluator: Evaluator, record: SlotRecord, weights_sha256: str) -> None:
    # the proof has a tolerance where bits may differ; the hash has none
    assert record.run_id is not None
    logged = evaluator.tracker.tags(record.run_id)["weights_sha256"]
    if logged != weights_sha256:
        raise UserError(
            f"slot {record.number}: the weights of run {record.run_id} have changed since they "
            f"were logged (sha256 {weights_sha256[:12]}, not {logged[:12]}); put them back"
        )


def _validated(
    evaluator: Evaluator, record: SlotRecord, network: nn.Module
) -> tuple[Faces, Tensor]:
    """Validation faces and their logits in fp32, as predict computes them."""
    assert record.params is not None
    train = evaluator.config.train_config(record.params, fixed=True)
    faces = evaluator.inputs.faces("val", train.side_px)
    steps = Steps(evaluator.progress, "calibrate", evaluator.batches("val"))
    with full_precision():
        return faces, evaluate(network, faces, train, evaluator.device, steps.advance)


def _info(
    evaluator: Evaluator,
    record: SlotRecord,
    weights_sha256: str,
    temperature: float,
    threshold: float,
) -> ModelInfo:
    assert record.params is not None
    config = evaluator.config
    return ModelInfo(
        variant=record.params.variant,
        side_px=config.train.image_size.of(record.params.variant),
        hyperparameters=record.params,
        temperature=temperature,
        threshold=threshold,
        preparation=Preparation(margin=config.data.margin, min_face_px=config.data.min_face_px),
        weights_sha256=weights_sha256,
        trained=_trained(config, evaluator.inputs, record),
    )


def _trained(config: StudyConfig, inputs: Inputs, record: SlotRecord) -> Trained:
    assert record.params is not None
    assert record.run_id is not None
    assert record.best_epoch is not None
    assert record.best_loss is not None
    train = config.train_config(record.params, fixed=record.baseline is not None)
    begins_from = inputs.begins_from(train.variant)
    prepared = inputs.prepared
    return Trained(
        study=config.name,
        slot=record.number,
        run_id=record.run_id,
        sources=tuple(sorted(path.stem for path in config.data.jsons)),
        photos=prepared.summary.photos,
        faces=prepared.summary.splits,
        splits=config.data.splits,
        group_by=config.data.group_by,
        faces_sha256=prepared.faces_sha256,
        splits_sha256=prepared.splits_sha256,
        crops_sha256=prepared.crops_sha256,
        # no path of ours
        pretrained="none" if begins_from.state is None else Path(train.weights).name,
        pretrained_sha256=begins_from.sha256,
        settings=train.model_dump(
            mode="json", include={*TrainSettings.model_fields} - {"weights"}
        ),
        epoch=record.best_epoch,
        val_loss=record.best_loss,
        objective=config.study.objective,
        torch=str(torch.__version__),
        commit=git_commit(),
    )


def _card_figures(
    evaluation: Evaluation, proven: Evaluated, faces: Faces, logits: Tensor, info: ModelInfo
) -> CardFigures:
    calibrated = logits.double() / info.temperature
    verdicts = fake_probability(calibrated) >= info.threshold
    columns = {
        "validation at 0.5": proven.val,
        "validation at the threshold": _at_threshold(verdicts, faces, proven.val),
    }
    if proven.test is not None:
        columns["test at 0.5"] = proven.test
    columns |= {f"{name} at 0.5": figures for name, figures in proven.test_sets.items()}
    return CardFigures(
        columns=columns,
        nll_before=cross_entropy(logits, faces.labels),
        nll_after=cross_entropy(calibrated, faces.labels),
        opening=evaluation.opening,
        openings=evaluation.openings,
    )


def _at_threshold(verdicts: Tensor, faces: Faces, at_half: SplitFigures) -> SplitFigures:
    """The figures of other verdicts, (N,) bool; AUC and NLL are of no threshold and stay."""
    sure = torch.where(verdicts, 1.0, -1.0)
    logits = torch.stack([-sure, sure], dim=1)
    figures = measure(logits, faces.labels, [name for name in ROWS if name != "auc"])
    of_accuracy = {"accuracy": figures["accuracy"]}
    accuracy = intervals(logits, faces.labels, faces.photos, of_accuracy)["accuracy"]
    return SplitFigures(
        faces=len(faces),
        metrics={**at_half.metrics, **figures},
        intervals={**at_half.intervals, "accuracy": (accuracy.low, accuracy.high)},
        confusion=confusion_matrix(logits, faces.labels).rows(),
    )


def _chosen(records: list[SlotRecord], record: SlotRecord, is_best: bool) -> str:
    complete = sum(r.state == "complete" for r in records)
    how = f"named by its number, {record.state} behind {len(record.losses)} epochs"
    if is_best:
        how = f"the best of {complete} complete slots by {OBJECTIVES[record.objective]}"
    if record.baseline:
        how += f", and the report's baseline `{record.baseline}`"
    left = sum(not r.finished for r in records)
    return how + (f" ({left} slots were still to run)" if left else "")
