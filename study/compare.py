"""Ours beside the report's figures, and whether the two are like for like."""

from collections.abc import Mapping
from typing import Any

from deepfake.baselines import Figures
from deepfake.config import UserError
from deepfake.prepare import Prepared, load_prepared
from study.config import StudyConfig, fingerprint
from study.records import best_of
from study.slots import Slots

FIGURES = tuple(Figures.model_fields)  # the columns of the report's tables
_STALE = "the best trial has changed since the test split was opened; evaluate again"
SAME_DATA = 0.01  # releases of OpenForensics differ by a few faces


def compare(slots: Slots) -> dict[str, Any]:
    """What `compare --json` prints: a row for each report figure, each baseline and the best.

    Raises UserError if the study was not evaluated yet.
    """
    config = slots.config
    evaluation = slots.attributes().get("evaluation")
    if evaluation is None:
        raise UserError(
            f"study '{config.name}' was not evaluated yet; run: deepfake-study evaluate CONFIG"
        )
    prepared = load_prepared(config.data)
    refuse_other_settings(slots, prepared)
    ours = {finalist["model"]: finalist for finalist in evaluation["finalists"]}
    states = {r.baseline: r for r in slots.records() if r.baseline}
    rows: list[dict[str, Any]] = []
    for baseline in config.baselines.baselines:
        if baseline.published is not None:
            published = baseline.published.model_dump()
            rows.append({"model": baseline.name, "source": "report", "metrics": published})
        if baseline.name in ours:
            rows.append(_row(baseline.name, "ours", ours[baseline.name]))
        else:
            record = states[baseline.name]
            rows.append(
                {
                    "model": baseline.name,
                    "source": "ours",
                    "metrics": dict.fromkeys(FIGURES),
                    "slot": record.number,
                    "state": record.state,
                    "reason": record.reason,
                }
            )
    best = ours["best"]
    rows.append(_row(best["variant"], "best", best))
    differences = unlike(config, prepared)
    now = best_of(slots.records())
    stale = now is not None and now.number != best["slot"]
    return {
        "comparable": not differences,
        "differences": differences,
        "caveats": caveats(config) + [_STALE] * stale,
        "published": config.baselines.source,
        "rows": rows,
        "opening": evaluation["opening"],
        "openings": evaluation["openings"],
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
    if any(abs(n - m) > SAME_DATA * m for n, m in zip(ours, theirs, strict=True)):
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
    if train.weights == "none":
        found.append(f"train.weights is none, the report's {report.weights}")
    return found


def caveats(config: StudyConfig) -> list[str]:
    """What keeps like-for-like rows from being the same experiment, by choice."""
    if config.data.group_by == "face":
        return []
    return [
        "photos are split whole here; the report split faces, so that most of its test faces "
        "share a photo with training (data.group_by: face does the same)"
    ]


def _row(model: str, source: str, finalist: Mapping[str, Any]) -> dict[str, Any]:
    test = finalist["test"]
    return {
        "model": model,
        "source": source,
        "slot": finalist["slot"],
        "metrics": test["metrics"],
        "intervals": test["intervals"],
        "confusion": test["confusion"],
        "faces": test["faces"],
    }


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)
