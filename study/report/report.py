"""The whole study as one HTML file that needs no network."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from deepfake.baselines import FIGURES, Baseline
from deepfake.config import LABELS
from deepfake.data import Prepared, load_prepared
from deepfake.errors import UserError, one_line
from deepfake.files import write_whole
from deepfake.variants import VARIANTS
from study.config import OBJECTIVES, StudyConfig, fingerprint_of
from study.evaluation import Evaluated, evaluation_of
from study.report import search_plots
from study.report.comparison import compare, hashes, refuse_other_settings
from study.report.data_section import LABEL_COLOURS, data_sheet
from study.report.reproduce import commands, reproducible
from study.report.test_plots import CANDIDATES, candidate_symbols, corruption_figures
from study.report.test_section import tested_content
from study.slots import STATES, SlotRecord, Slots, best_of, incumbents, ranked
from study.templates import render
from study.tracking import Spool, Tracker, TrackingError, git_commit

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
PACKAGES = ("torch", "torchvision", "optuna", "mlflow", "plotly")


def write_report(slots: Slots, out: Path) -> Path:
    """Write the report of a study at any stage, whole or not at all; out.

    Raises StudyMismatch if the settings are not the study's, UserError if out can't be written.
    """
    refuse_other_settings(slots)  # the page would show them as the study's
    page = render(TEMPLATE, _content(slots, datetime.now(UTC)))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, page.encode())
        return out
    except (OSError, ValueError) as error:  # ValueError: "." has no name
        raise UserError(f"--out {out}: {one_line(error, path=False)}; name a file") from None


def _content(slots: Slots, now: datetime) -> dict[str, Any]:
    config, records = slots.config, slots.records()
    tracker, missing = _tracker(slots, records)
    witness = _witness(tracker, records, config.study.objective, missing)
    evaluation = evaluation_of(slots)
    tested, tested_figures = tested_content(evaluation, tracker)
    finalists = evaluation.finalists if evaluation else []
    shares = search_plots.importances(slots.study, config.space)
    figures = _figures(records, config, witness["curves"], shares)
    corruptions = (evaluation and evaluation.corruptions) or []
    figures |= _corruption_figures(corruptions)
    origin, origin_figures = _origin(
        slots,
        finalists,
        witness["commits"],
        corruptions=bool(corruptions),
    )
    for name, figure in (tested_figures | origin_figures).items():
        figures[name] = figure.to_plotly_json()
    return {
        "name": config.name,
        "written": now.isoformat(sep=" ", timespec="minutes").removesuffix("+00:00"),
        **_of_search(config, records),
        **_compared(slots),
        "finalist": _model_of(best_of(records), tested),
        "tested": tested,
        "finalists": _by_slot(finalists),
        "corruptions": corruptions,
        "symbols": {
            model: CANDIDATES[symbol] for model, symbol in candidate_symbols(corruptions).items()
        },
        "openings": slots.attributes().get("openings", []),
        "witness": witness,
        "figures": {name: figure["layout"]["height"] for name, figure in figures.items()},
        "figures_json": _json(figures),
        "plotly_js": Markup(get_plotlyjs()),
        "curves_json": _json(search_plots.drawable(records, witness["curves"])),
        "hovers_json": _json(search_plots.hovers(records, config.train.max_epochs)),
        **origin,
    }


def _of_search(config: StudyConfig, records: Sequence[SlotRecord]) -> dict[str, Any]:
    """What the slots alone say, and the words and colours for it."""
    best, max_epochs, baselines = best_of(records), config.train.max_epochs, config.baselines
    return {
        "records": records,
        "states": {s: n for s in STATES if (n := sum(r.state == s for r in records))},
        "max_epochs": max_epochs,
        "best": best,
        "incumbents": incumbents(records),
        "spared": search_plots.spared(records, max_epochs),
        "stops": search_plots.stops(records),
        "slot_seconds": sum(record.seconds or 0 for record in records),
        "loss_name": OBJECTIVES[config.study.objective],
        "best_baseline": best_of([record for record in records if record.baseline]),
        "rivals": _rivals(baselines.baselines, best),
        "columns": FIGURES,
        "drawn": [*config.space.drawn()],
        "labels": LABELS,
        "colours": {name: variant.colour for name, variant in VARIANTS.items()},
        "label_colours": dict(zip(LABELS, LABEL_COLOURS, strict=True)),
        "published": {b.params.variant: b for b in baselines.baselines if b.published is not None},
        "variant_of": {b.name: b.params.variant for b in baselines.baselines},
        "shown": search_plots.shown(records),
        "top": {record.number for record in ranked(records)[:10]},
        "most_lines": search_plots.LINES,
        "min_for_importances": search_plots.MIN_FOR_IMPORTANCES,
    }


def _compared(slots: Slots) -> dict[str, Any]:
    """Ours beside the report's figures, or why they are not."""
    try:
        return {"comparison": compare(slots), "why_not": None}
    except UserError as error:
        return {"comparison": None, "why_not": str(error)}


def _json(content: Mapping[Any, Any]) -> Markup:
    # "<" leaves plotly's JSON as \u003c: no text in it can end the script element
    return Markup(to_json_plotly(content))


def _tracker(slots: Slots, records: Sequence[SlotRecord]) -> tuple[Tracker | None, list[str]]:
    """MLflow, if this study has runs and it can be reached; and what it lacks."""
    missing: list[str] = []
    if waiting := Spool.of(slots.config, slots.study_id).pending():
        missing.append(f"{waiting} entries wait for MLflow: deepfake-study sync CONFIG")
    if all(record.run_id is None for record in records):
        return None, missing
    try:
        return Tracker(slots.config, slots), missing
    except TrackingError as error:
        return None, [*missing, str(error)]


def _witness(
    tracker: Tracker | None,
    records: Sequence[SlotRecord],
    objective: str,
    missing: Sequence[str],
) -> dict[str, Any]:
    """Learning curves by slot, and where the runs were made.

    The study's database has each epoch's objective; the rest MLflow alone has, and what of
    it can't be read is left out and said.
    """
    curves: dict[int, dict[str, dict[int, float]]] = {
        record.number: {objective: record.losses} for record in records if record.losses
    }
    tags: list[dict[str, str]] = []
    missing = list(missing)
    with_runs = {r.number: r.run_id for r in records if r.run_id is not None}
    if tracker is not None:
        for slot, run_id in with_runs.items():
            try:
                tags.append(tracker.tags(run_id))
                curves[slot] = {**tracker.history(run_id), **curves.get(slot, {})}
            except TrackingError as error:
                missing.append(str(error))
    return {
        "curves": curves,
        "missing": missing,
        "commits": _counted(tags, "git_commit"),
        "hardware": _counted(tags, "hardware"),
    }


def _counted(tags: Sequence[Mapping[str, str]], key: str) -> dict[str, int]:
    """Slots by what their runs say."""
    return dict(sorted(Counter(of_run[key] for of_run in tags if key in of_run).items()))


def _figures(
    records: Sequence[SlotRecord],
    config: StudyConfig,
    curves: Mapping[int, search_plots.Curves],
    shares: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Every figure by the id of its place in the page."""
    figures = {}
    if (history := search_plots.history_figure(records)) is not None:
        figures["history"] = history
    if (pruning := search_plots.pruning_figure(records, config.train.max_epochs)) is not None:
        figures["pruning"] = pruning
    if (parallel := search_plots.parallel_figure(records, config.space)) is not None:
        figures["parallel"] = parallel
    for name, figure in search_plots.slice_figures(records, config.space).items():
        figures[f"slice-{name}"] = figure
    if shares is not None:
        figures["importances"] = search_plots.importances_figure(shares)
    for quantity in ("loss", "accuracy"):
        if any(curve.keys() & search_plots.validated(quantity) for curve in curves.values()):
            figures[f"curves-{quantity}"] = search_plots.curves_figure(curves, quantity)
    return {name: figure.to_plotly_json() for name, figure in figures.items()}


def _corruption_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = corruption_figures(rows)
    return {f"corruptions-{kind}": figure.to_plotly_json() for kind, figure in found.items()}


def _model_of(best: SlotRecord | None, tested: Mapping[str, Any] | None) -> Any:
    """The figures of the search's best, if it is among the finalists."""
    models = tested["models"] if tested else []
    return next((m for m in models if best and m.slot == best.number), None)


def _by_slot(finalists: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """One entry a slot, of its first seed."""
    first: dict[int, dict[str, Any]] = {}
    for finalist in sorted(finalists, key=lambda f: f.seed):
        name = finalist.model if finalist.role == "baseline" else finalist.role
        first.setdefault(finalist.slot, {**vars(finalist), "models": [name]})
    return list(first.values())


def _rivals(baselines: Sequence[Baseline], best: SlotRecord | None) -> list[Baseline]:
    """The report's models with figures, that of the best trial's variant first."""
    published = [baseline for baseline in baselines if baseline.published is not None]
    variant = best.params.variant if best and best.params else None
    return sorted(published, key=lambda baseline: baseline.params.variant != variant)


def _origin(
    slots: Slots,
    finalists: Sequence[Evaluated],
    commits: Mapping[str, int],
    *,
    corruptions: bool,
) -> tuple[dict[str, Any], dict[str, go.Figure]]:
    """Data, configuration, versions and the commands that make it all again; and figures."""
    prepared, data_note = _prepared(slots)
    data, figures = None, {}
    if prepared is not None:
        data, figures["sizes"] = data_sheet(slots.config.data, prepared)
    folder = Path.cwd()
    study_yaml, baselines_yaml = reproducible(slots.config, folder)
    return {
        "data": data,
        "data_note": data_note,
        "hashes": hashes(slots.attributes()["fingerprint"]),
        "study_yaml": study_yaml,
        "baselines_yaml": baselines_yaml,
        "commands": commands(
            slots.config,
            folder,
            finalists,
            sample=data["drawn"] if data else None,
            corruptions=corruptions,
            commit=max(commits, key=lambda commit: commits[commit], default=None),
        ),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "git_commit": git_commit(),
    }, figures


def _prepared(slots: Slots) -> tuple[Prepared | None, str]:
    """What prepare left, if it is still what the study was created with; else why it is not."""
    theirs = slots.attributes()["fingerprint"]
    try:
        prepared = load_prepared(slots.config.data)
    except UserError as error:
        return None, str(error)
    # the weights file is taken on trust
    ours = fingerprint_of(slots.config, prepared, theirs["train.weights (sha256)"])
    if hashes(ours) != hashes(theirs):
        return None, "the data were prepared anew since this study was created"
    return prepared, ""
