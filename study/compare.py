"""Ours beside the report's figures, and whether the two are like for like."""

from collections.abc import Mapping, Sequence
from typing import Any

from deepfake.baselines import FIGURES
from deepfake.config import FAKE, LABELS, UserError
from deepfake.prepare import Prepared, load_prepared
from study.config import StudyConfig, fingerprint
from study.records import best_of
from study.slots import Slots

_STALE = "the best trial has changed since the test split was opened; evaluate again"
SAME_DATA = 0.01  # releases of OpenForensics differ by a few faces


def compare(slots: Slots) -> dict[str, Any]:
    """What `compare --json` prints: a row for each report figure, each baseline and the best.

    Raises UserError if the study was not evaluated yet.
    """
    config = slots.config
    evaluation = slots.attributes().get("evaluation")
    if evaluation is None or evaluation.get("analysis") is None:
        raise UserError(
            f"study '{config.name}' was not evaluated yet; run: deepfake-study evaluate CONFIG"
        )
    prepared = load_prepared(config.data)
    refuse_other_settings(slots, prepared)
    measured = {model["model"]: model for model in evaluation["analysis"]["models"]}
    records = slots.records()
    states = {record.baseline: record for record in records if record.baseline}
    rows: list[dict[str, Any]] = []
    for baseline in config.baselines.baselines:
        if baseline.published is not None:
            published = baseline.published.model_dump()
            rows.append({"model": baseline.name, "source": "report", "metrics": published})
        if baseline.name in measured:
            rows.append(_row(baseline.name, "ours", measured[baseline.name], evaluation))
        else:
            record = states[baseline.name]
            failed = _lines_of(baseline.name, evaluation["left_out"])
            rows.append(
                {
                    "model": baseline.name,
                    "source": "ours",
                    "metrics": dict.fromkeys(FIGURES),
                    "slot": record.number,
                    "state": "failed" if failed else record.state,
                    "reason": failed[0] if failed else record.reason,
                }
            )
    if (best := evaluation["analysis"]["best"]) is not None:
        row = _row(best, "best", measured[best], evaluation)
        rows.append({**row, "model": _first(evaluation, best)["variant"]})
    differences = unlike(config, prepared)
    drawn = best_of([record for record in records if not record.baseline])
    candidates = {m["slot"] for m in measured.values() if m["role"] == "candidate"}
    left_out = evaluation["left_out"]
    stale = (
        drawn is not None
        and drawn.number not in candidates
        and not _lines_of(f"slot {drawn.number}", left_out)  # it was asked for
    )
    openings = slots.attributes()["openings"]  # one may have been made and not ended
    return {
        "comparable": not differences,
        "differences": differences,
        "caveats": [*caveats(config), *([_STALE] if stale else []), *left_out],
        "published": config.baselines.source,
        "rows": rows,
        "opening": evaluation["opening"],
        "openings": len({entry["sha256"] for entry in openings}),
        "analysis": evaluation["analysis"],
        "test_sets": evaluation.get("test_sets", {}),  # an earlier release's has none
        "fake_shares": {
            split: faces[LABELS[FAKE]] / sum(faces.values())
            for split, faces in prepared.summary.splits.items()
        },
    }


def refuse_other_settings(slots: Slots, prepared: Prepared) -> dict[str, Any]:
    """The fingerprint of config and prepared data; the weights file is taken on trust.

    Raises StudyMismatch if the settings are not those the study was created with. Its data may
    have changed since: what was evaluated stands.
    """
    theirs = slots.attributes()["fingerprint"]
    ours = fingerprint(slots.config, prepared, theirs["train.weights (sha256)"])
    settings = {key: value for key, value in ours.items() if not key.endswith("(sha256)")}
    hashes = {key: value for key, value in theirs.items() if key.endswith("(sha256)")}
    slots.refuse_other(settings | hashes)
    return ours


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
    if config.study.objective != "val_loss":  # it picks the epochs of the baselines, too
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
    model: str, source: str, measured: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """Means over seeds, with their intervals; the confusion matrix is the first seed's."""
    figures = {name: figure for name, figure in measured["figures"].items() if figure}
    first = _first(evaluation, model)
    return {
        "model": model,
        "source": source,
        "slot": measured["slot"],
        "seeds": len(measured["seeds"]),
        "metrics": {name: figure["value"] for name, figure in figures.items()},
        "intervals": {name: (f["low"], f["high"]) for name, f in figures.items()},
        "confusion": first["test"]["confusion"],
        "faces": first["test"]["faces"],
    }


def _lines_of(model: str, left_out: Sequence[str]) -> list[str]:
    return [line for line in left_out if line.startswith(f"{model} seed ")]


def _first(evaluation: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """The finalist of that name with the lowest seed."""
    of_model = [f for f in evaluation["finalists"] if f["model"] == model]
    return min(of_model, key=lambda finalist: finalist["seed"])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)
