"""Tables that are printed once: of a study, its data, what it will cost and what is wrong."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepfake.baselines import FIGURES
from deepfake.files import size_text
from deepfake.metrics import METRICS
from study.cli.live import COLOURS, duration, trial_line
from study.slots import STATES, SlotRecord, best_of

if TYPE_CHECKING:
    from deepfake.audit import Audit
    from deepfake.data import Summary
    from study.estimate import Estimate
    from study.evaluation import Analysis, Evaluation, Figure, Price
    from study.maintenance import Collected, Diagnosis, Usage
    from study.report import Compared


PROBES = {  # what each sees, by name
    "geometry": "the box and the photo's size",
    "colours": "colour means and deviations of the crop",
    "encoding": "the file's bytes per pixel and JPEG tables",
    "surroundings": "the crop's corners, the face masked out",
}
LEAK_LINES, FACE_LINES = 20, 5  # the rest is in --json


def status_table(name: str, records: Sequence[SlotRecord], max_epochs: int) -> Group:
    """Budget, slots by state, the best so far and every slot that began."""
    lines = [trial_line(r, max_epochs) for r in records if r.state != "waiting" or r.losses]
    best = best_of(records)
    head = Text(f"study {name}: {len(records)} slots", "bold")
    tail = Text("no slot is complete yet")
    if best is not None:
        tail = Text("best: ", "bold").append_text(trial_line(best, max_epochs))
    return Group(head, *lines, _counts(records), tail)


def _counts(records: Sequence[SlotRecord]) -> Text:
    counts = {state: sum(r.state == state for r in records) for state in STATES}
    line = Text("     ")
    for state, count in counts.items():
        line.append(f"{count} {state}  ", COLOURS.get(state, "dim") if count else "dim")
    return line


def summary_table(summary: "Summary") -> Group:
    """What prepare left."""
    head = Text(f"{summary.faces} faces of {summary.photos} photos", "bold")
    table = _table("split", "real", "fake")
    for split, counts in summary.splits.items():
        table.add_row(split, str(counts["real"]), str(counts["fake"]))
    table.add_row("all", str(summary.real), str(summary.fake), style="bold")
    for reason, count in summary.dropped.items():
        table.add_row(f"dropped: {reason}", str(count), "", style="yellow")
    for what, count in summary.mended.items():
        table.add_row(what, str(count), "", style="yellow")
    if summary.clamped:
        table.add_row("boxes clamped to the photo", str(summary.clamped), "", style="dim")
    return Group(head, table)


def audit_table(audit: "Audit") -> Group:
    """What leaks from one split to another, and what each probe tells of the label."""
    head = Text(f"{audit.photos} photos read", "bold")
    if audit.photos_not_found:
        head.append(f", {audit.photos_not_found} of the JSONs not found", "yellow")
    pairs = _table("also in an earlier split", "found")
    for kind, what in (
        ("id", "photos of val and test, by id"),
        ("pixels", "by their decoded pixels"),
        ("near", "nearly identical"),
    ):
        count = sum(leak.kind == kind for leak in audit.leaks)
        pairs.add_row(what, str(count), style="red" if count else None)
    pairs.add_row("faces nearly alike (listed, no error)", str(len(audit.near_faces)))
    probes = _table("probe: what it sees", "AUC on val", "95 %", "")
    for found in audit.probes:
        low, high = found.interval
        cells = (f"{found.auc:.3f}", f"{low:.3f} to {high:.3f}")
        verdict = ("flagged", "yellow") if found.flagged else ("", None)
        sees = f"{found.probe}: {PROBES[found.probe]}"
        probes.add_row(sees, *cells, verdict[0], style=verdict[1])
    faces = [Text(f"{pair}", "dim") for pair in audit.near_faces[:FACE_LINES]]
    if len(audit.near_faces) > FACE_LINES:
        faces.append(Text(f"and {len(audit.near_faces) - FACE_LINES} more: see --json", "dim"))
    return Group(head, pairs, *faces, probes)


def leak_lines(audit: "Audit", group_by: str) -> list[str]:
    """A line a leak, up to LEAK_LINES, and the way out."""
    lines = [str(leak) for leak in audit.leaks[:LEAK_LINES]]
    if len(audit.leaks) > LEAK_LINES:
        lines.append(f"and {len(audit.leaks) - LEAK_LINES} more: --json names them all")
    way_out = "take one of each pair out of its JSON"
    if group_by == "face":
        way_out = "set data.group_by to photo, and " + way_out
    n = len(audit.leaks)
    return [*lines, f"photos in two splits: {n}; {way_out}, and prepare in another data.work_dir"]


def estimate_table(estimate: "Estimate") -> Group:
    """What a study will take, rounded as far as it can be known."""
    table = _table("variant", "px", "s/epoch", "faces/s", "slots")
    for cost in estimate.variants:
        table.add_row(
            cost.variant + (", baselines" if cost.baselines else ""),
            str(cost.side_px),
            f"{cost.epoch_s:.3g}",
            f"{cost.images_per_s:,.0f}",
            str(cost.slots),
        )
    here = f"{estimate.workers} workers, device {estimate.device}"
    head = Text(f"study {estimate.name}: {estimate.n_trials} slots, {here}", "bold")
    faces = f"{estimate.train_faces:,} faces to train on, {estimate.val_faces:,} to validate"
    prepare = duration(estimate.prepare_s) if estimate.prepare_s else "done"
    search, most = duration(estimate.search_s), duration(estimate.at_most_s)
    lines = [
        Text(f"prepare  {prepare}"),
        Text(f"search   {search}, at most {most} (if nothing is pruned and none stops early)"),
    ]
    if estimate.embed_s:
        features = duration(estimate.embed_s)
        lines.append(Text(f"         of it {features} for the frozen backbone's features, once"))
    disk = ", ".join(f"{name} {size_text(n_bytes)}" for name, n_bytes in estimate.disk.items())
    free = ", ".join(f"{size_text(n_bytes)} at {key}" for key, n_bytes in estimate.free.items())
    lines.append(Text(f"disk     {disk}; free: {free}"))
    return Group(head, Text(faces), table, *lines)


def doctor_table(found: "Diagnosis") -> Group:
    """Each finding with its way out, what was mended, what the disk holds."""
    styles = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    lines = []
    for finding in found.findings:
        line = Text(f"{finding.level:<6}", styles[finding.level], no_wrap=True, overflow="ignore")
        line.append(f"{finding.area:<8} {finding.what}", "default not bold")
        if finding.remedy:
            line.append(f"; mend it: {finding.remedy}", "cyan not bold")
        lines.append(line)
    lines += [Text(f"mended  {done}", "green") for done in found.mended]
    disk = _places("on disk", found.disk)
    wrong = sum(finding.level == "wrong" for finding in found.findings)
    fixable = sum(finding.fixable for finding in found.findings)
    tail = Text("nothing is wrong" if not wrong else f"findings that are wrong: {wrong}", "bold")
    if fixable:
        tail.append(f"; --fix would mend {fixable} of them")
    return Group(*lines, disk, tail)


def gc_table(found: "Collected") -> Group:
    """What was or would be removed, and what stays."""
    table = _places("would be removed" if found.dry_run else "removed", found.removals)
    kept = [f"slot {number} stays: {reason}" for number, reason in found.kept.items()]
    verb = "would be freed" if found.dry_run else "freed"
    tail = Text(f"{size_text(found.n_bytes)} {verb}", "bold")
    body = [table] if found.removals else []
    return Group(*(Text(line, "dim") for line in [*kept, *found.notes]), *body, tail)


def _places(heading: str, held: Sequence["Usage"]) -> Table:
    table = _table(heading, "size")
    table.add_column("where", overflow="fold")
    for one in held:
        table.add_row(one.what, size_text(one.n_bytes), one.place)
    return table


def evaluation_table(evaluation: "Evaluation", registered: Mapping[str, str]) -> Group:
    """The proof of each finalist, and what it scored."""
    first = evaluation.finalists[0]
    columns = ["slot", "model", "seed", f"{first.proof.objective} logged", "recomputed"]
    columns += ["proof", "val acc", "test acc", *(f"{name} acc" for name in first.test_sets)]
    title = "re-evaluated from the logged weights"
    table = _table(*columns, left=len(columns), title=title)
    for finalist in evaluation.finalists:
        proof, test = finalist.proof, finalist.test
        table.add_row(
            str(finalist.slot),
            finalist.model,
            str(finalist.seed),
            f"{proof.logged:.6f}",
            f"{proof.recomputed:.6f}",
            "bit-equal" if proof.logged == proof.recomputed else "within tolerance",
            f"{finalist.val.metrics['accuracy']:.3f}",
            f"{test.metrics['accuracy']:.3f}" if test else "closed",
            *(f"{of.metrics['accuracy']:.3f}" for of in finalist.test_sets.values()),
        )
    entry = evaluation.opening
    note = "The test split stays closed for this slot: it is in no opened list."
    if entry is not None:
        note = f"Test split opened {entry['at']} for list {entry['sha256'][:12]}"
        note += f" ({evaluation.openings} lists so far)" if evaluation.openings > 1 else ""
    left_out = [Text(line, "yellow") for line in evaluation.left_out]
    models = [Text(f"registered: {uri}", "dim") for uri in registered.values()]
    return Group(table, *left_out, Text(note, "dim"), *models)


def comparison_table(comparison: "Compared") -> Group:
    """Ours beside the report's, two decimals as the report prints them."""
    title = "test split; 0 real, 1 fake"
    headings = (METRICS[figure].heading for figure in FIGURES)
    table = _table("model", "source", *headings, "AUC (95 %)", left=2, title=title)
    for row in comparison.rows:
        metrics = row["metrics"]
        cells = ["-" if metrics[f] is None else f"{metrics[f]:.2f}" for f in FIGURES]
        auc = "-"
        if "intervals" in row:
            low, high = row["intervals"]["auc"]
            auc = f"{metrics['auc']:.2f} ({low:.2f} to {high:.2f})"
        source = row["source"] + (f", {row['state']}" if "state" in row else "")
        style = {"report": "dim", "best": "bold"}.get(row["source"])
        model = row["model"] if row["source"] != "best" else f"slot {row['slot']}: {row['model']}"
        table.add_row(model, source, *cells, auc, style=style)
    notes = [Text(f"The report: {comparison.published}", "dim")]
    if not comparison.comparable:
        why = "; ".join(comparison.differences)
        notes.append(Text(f"The rows are not like for like: {why}.", "yellow"))
    notes += [Text(f"Note: {caveat}.", "dim") for caveat in comparison.caveats]
    verdicts = comparison.analysis.comparisons
    notes += [Text(f"{verdict.sentence}.", "bold") for verdict in verdicts]
    notes.append(Text(_shares(comparison.fake_shares), "dim"))
    notes.append(Text(f"{comparison.analysis.prior.sentence}.", "dim"))
    if (opened := comparison.openings) > 1:
        notes.append(Text(f"The test split was opened for {opened} different lists.", "yellow"))
    return Group(table, *notes, *map(_test_set, comparison.test_sets.values()))


def _shares(fake_shares: Mapping[str, float]) -> str:
    return "Fakes: " + ", ".join(f"{s} {100 * share:.1f} %" for s, share in fake_shares.items())


def _test_set(found: "Analysis") -> Group:
    """A further test set, shorter than the first."""
    table = _figures_table(found, ("nll", "accuracy", "balanced_accuracy", "auc"))
    said = [Text(f"{comparison.sentence}.", "bold") for comparison in found.comparisons]
    return Group(Text(), table, *said, Text(f"{found.prior.sentence}.", "dim"))


def _figures_table(found: "Analysis", figures: Sequence[str]) -> Table:
    """A row a model. figures: of METRICS."""
    counts = f"{found.real} real and {found.fake} fake faces of {found.photos} photos"
    headings = (METRICS[name].heading for name in figures)
    table = _table("model", "seeds", *headings, title=f"split {found.split}: {counts}")
    for model in found.models:
        cells = [_with_interval(model.figures.get(name)) for name in figures]
        style = "dim" if model.role == "diagnostic" else None
        style = "bold" if model.model == found.best else style
        table.add_row(model.model, str(len(model.seeds)), *cells, style=style)
    return table


def analysis_table(found: "Analysis") -> Group:
    """Figures with intervals, the verdicts, and what became of the report's figures."""
    shown = [name for name, metric in METRICS.items() if "table" in metric.places]
    table = _figures_table(found, shown)
    columns = ("model", "figure", "printed", "ours", "95 %, seeds and photos", "")
    printed = _table(*columns, left=len(columns), title=f"the report: {found.published.source}")
    for cell in found.published.cells:
        values = (f"{cell.printed:.2f}", f"{cell.ours:.4f}")
        interval = "-" if cell.low is None else f"{cell.low:.4f} to {cell.high:.4f}"
        printed.add_row(cell.model, cell.figure, *values, interval, cell.verdict)
    verdicts = [Text(f"{comparison.sentence}.") for comparison in found.comparisons]
    notes = [f"Intervals: 95 %, {found.resamples} resamples of photos, seeds as they are."]
    dataset = found.published.dataset
    notes.append(f"The report's figures are of {dataset}: other data can't reproduce them.")
    notes.append(f"{found.prior.sentence}.")
    return Group(table, *verdicts, printed, *(Text(note, "dim") for note in notes))


def _with_interval(figure: "Figure | None") -> str:
    if figure is None:
        return "—"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"


def price_table(price: "Price") -> Group:
    """A baseline split by face beside itself split by photo."""
    title = f"{price.baseline}, {price.seeds} seeds a split"
    table = _table("", "split by photo", "split by face", "difference (95 %)", title=title)
    for name, found in price.differences.items():
        sides = [price.arms[arm].figures[name] for arm in ("photo", "face")]
        cells = [f"{f.value:.4f} ({f.low:.4f}-{f.high:.4f})" for f in sides]
        difference = f"{found.value:+.4f}"
        if found.low is not None and found.high is not None:
            difference += f" ({found.low:+.4f} to {found.high:+.4f})"
        table.add_row(name, *cells, difference)
    held = {arm: f"{found.faces} of {found.photos} photos" for arm, found in price.arms.items()}
    faces = f"faces held out: by photo {held['photo']}, by face {held['face']}"
    return Group(table, Text(f"{price.sentence}."), Text(faces, "dim"))


def _table(*columns: str, left: int = 1, title: str | None = None) -> Table:
    """Numbers to the right, behind so many columns of words."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right")
    return table
