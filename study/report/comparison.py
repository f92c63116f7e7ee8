"""Ours beside the report's figures, and whether the two are like for like."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfake.baselines import FIGURES
from deepfake.config import FAKE, LABELS
from deepfake.data import Prepared, load_prepared
from deepfake.errors import UserError
from study.config import StudyConfig, settings_of
from study.evaluation import Analysis, Evaluated, Evaluation, ModelFigures, evaluation_of
from study.slots import SlotRecord, Slots, best_of

_STALE = "the best trial has changed since the test split was opened; evaluate again"
SAME_DATA = 0.01  # releases of OpenForensics differ by a few faces


@dataclass(frozen=True)
class Compared:
    """What `compare` says of an evaluated study."""

    comparable: bool
    differences: list[str]  # why the rows are not like for like
    caveats: list[str]
    published: str  # where the report's figures are from
    rows: list[dict[str, Any]]  # one for each report figure, each baseline and the best
    opening: dict[str, Any] | None
    openings: int
    analysis: Analysis
    test_sets: dict[str, Analysis]
    fake_shares: dict[str, float]  # by split


def compare(slots: Slots) -> Compared:
    """Raises UserError if the study was not evaluated yet."""
    config, (evaluation, analysis) = slots.config, _evaluation_of(slots)
    refuse_other_settings(slots)
    prepared = load_prepared(config.data)
    records = slots.records()
    rows = [
        *_rows_of_baselines(config, records, evaluation, analysis),
        *_rows_of_best(evaluation, analysis),
    ]
    differences = unlike(config, prepared)
    stale = [_STALE] if _is_stale(records, evaluation, analysis) else []
    openings = slots.attributes()["openings"]  # one may have been made and not ended
    return Compared(
        comparable=not differences,
        differences=differences,
        caveats=[*caveats(config), *stale, *evaluation.left_out],
        published=config.baselines.source,
        rows=rows,
        opening=evaluation.opening,
        openings=len({entry["sha256"] for entry in openings}),
        analysis=analysis,
        test_sets=evaluation.test_sets,
        fake_shares={
            split: faces[LABELS[FAKE]] / sum(faces.values())
            for split, faces in prepared.summary.splits.items()
        },
    )


def _evaluation_of(slots: Slots) -> tuple[Evaluation, Analysis]:
    evaluation = evaluation_of(slots)
    if evaluation is None or evaluation.analysis is None:
        raise UserError(
            f"study '{slots.config.name}' was not evaluated yet; run: deepfake-study evaluate "
            "CONFIG"
        )
    return evaluation, evaluation.analysis


def _rows_of_baselines(
    config: StudyConfig,
    records: Sequence[SlotRecord],
    evaluation: Evaluation,
    analysis: Analysis,
) -> Iterator[dict[str, Any]]:
    """The report's figures of each, where it has any, and ours."""
    measured = _measured(analysis)
    states = {record.baseline: record for record in records if record.baseline}
    for baseline in config.baselines.baselines:
        name = baseline.name
        if baseline.published is not None:
            published = baseline.published.model_dump()
            yield {"model": name, "source": "report", "metrics": published}
        if name in measured:
            yield _row(name, "ours", measured[name], evaluation)
        else:
            yield _row_without_figures(states[name], name, evaluation.left_out)


def _rows_of_best(evaluation: Evaluation, analysis: Analysis) -> Iterator[dict[str, Any]]:
    """That of the best candidate, if there is one, by its variant's name."""
    if (best := analysis.best) is not None:
        row = _row(best, "best", _measured(analysis)[best], evaluation)
        yield {**row, "model": _first(evaluation, best).variant}


def _is_stale(records: Sequence[SlotRecord], evaluation: Evaluation, analysis: Analysis) -> bool:
    """Whether the search has found a better trial than those that were put before test."""
    drawn = best_of([record for record in records if not record.baseline])
    if drawn is None:
        return False
    candidates = {model.slot for model in analysis.models if model.role == "candidate"}
    asked_for = _lines_of(f"slot {drawn.number}", evaluation.left_out)
    return drawn.number not in candidates and not asked_for


def _measured(analysis: Analysis) -> dict[str, ModelFigures]:
    return {model.model: model for model in analysis.models}


def refuse_other_settings(slots: Slots) -> None:
    """Raises StudyMismatch if the settings are not those the study was created with.

    Its data may have changed since: what was evaluated stands.
    """
    theirs = slots.attributes()["fingerprint"]
    slots.refuse_other(settings_of(slots.config) | hashes(theirs))


def hashes(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """Of data, weights and corruptions, without the settings."""
    return {key: value for key, value in fingerprint.items() if key.endswith("(sha256)")}


def unlike(config: StudyConfig, prepared: Prepared) -> list[str]:
    """Why our rows are not like for like with the report's; empty if they are."""
    report = config.baselines.published_on
    summary, train = prepared.summary, config.train
    found = []
    ours, theirs = (summary.real_in_json, summary.fake_in_json), (report.real, report.fake)
    if config.data.splits == "official":
        found.append(
            "train, val and test are those of the JSONs (data.splits: official), the report cut "
            f"its own three from {report.dataset}"
        )
    elif any(abs(n - m) > SAME_DATA * m for n, m in zip(ours, theirs, strict=True)):
        found.append(
            f"the data are not {report.dataset} ({ours[0]} real and {ours[1]} fake faces, "
            f"the report had {theirs[0]} and {theirs[1]})"
        )
    for key, setting, published in (
        ("image_size", train.image_size.model_dump(), report.image_size),
        ("max_epochs", train.max_epochs, report.max_epochs),
        ("batch_size", train.batch_size, report.batch_size),
    ):
        if setting != published:
            found.append(f"train.{key} is {_plain(setting)}, the report's {_plain(published)}")
    if config.study.robust:  # it picks the epochs of the baselines, too
        found.append(f"study.objective is {config.study.objective}, the report's val_loss")
    if train.weights == "none":
        found.append(f"train.weights is none, the report's {report.weights}")
    return found


def caveats(config: StudyConfig) -> list[str]:
    """What keeps like-for-like rows from being the same experiment, by choice."""
    if config.data.group_by == "face":
        return []
    if config.data.splits == "official":
        return [
            "each photo stays in the split of its JSON here; the report split faces, so that most "
            "of its test faces share a photo with training"
        ]
    return [
        "photos are split whole here; the report split faces, so that most of its test faces "
        "share a photo with training (data.group_by: face does the same)"
    ]


def _row(
    model: str, source: str, measured: ModelFigures, evaluation: Evaluation
) -> dict[str, Any]:
    """Means over seeds, with their intervals; the confusion matrix is the first seed's."""
    figures = {name: figure for name, figure in measured.figures.items() if figure}
    test = _first(evaluation, model).test
    assert test is not None
    return {
        "model": model,
        "source": source,
        "slot": measured.slot,
        "seeds": len(measured.seeds),
        "metrics": {name: figure.value for name, figure in figures.items()},
        "intervals": {name: (figure.low, figure.high) for name, figure in figures.items()},
        "confusion": test.confusion,
        "faces": test.faces,
    }


def _row_without_figures(record: SlotRecord, name: str, left_out: Sequence[str]) -> dict[str, Any]:
    """Of a baseline that was not measured, with the reason."""
    failed = _lines_of(name, left_out)
    return {
        "model": name,
        "source": "ours",
        "metrics": dict.fromkeys(FIGURES),
        "slot": record.number,
        "state": "failed" if failed else record.state,
        "reason": failed[0] if failed else record.reason,
    }


def _lines_of(model: str, left_out: Sequence[str]) -> list[str]:
    return [line for line in left_out if line.startswith(f"{model} seed ")]


def _first(evaluation: Evaluation, model: str) -> Evaluated:
    """The finalist of that name with the lowest seed."""
    of_model = [finalist for finalist in evaluation.finalists if finalist.model == model]
    return min(of_model, key=lambda finalist: finalist.seed)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)
