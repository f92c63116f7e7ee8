"""What a terminal shows: a line a trial, tables, progress bars; all but results on stderr."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deepfake.prepare import Summary
from study.compare import FIGURES
from study.records import STATES, SlotRecord, best_of

COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}


class StudyView:
    """A line for each slot that ends; on a terminal also the running ones, updated in place."""

    def __init__(self, console: Console, max_epochs: int) -> None:
        self.console = console
        self.max_epochs = max_epochs
        self._said: set[int] = set()
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    @contextmanager
    def __call__(self, finished_before: Sequence[SlotRecord]) -> Iterator["StudyView"]:
        self._said = {record.number for record in finished_before if record.finished}
        if self.console.is_terminal:
            with self._live:
                yield self
        else:
            yield self

    def update(self, records: Sequence[SlotRecord]) -> None:
        for record in records:
            if record.finished and record.number not in self._said:
                self._said.add(record.number)
                self.console.print(trial_line(record, self.max_epochs), highlight=False)
        if self.console.is_terminal:
            running = [trial_line(r, self.max_epochs) for r in records if r.state == "running"]
            self._live.update(Group(*running, _counts(records)))


def trial_line(record: SlotRecord, max_epochs: int) -> Text:
    """One slot on one line."""
    line = Text(f"{record.number:4d} ")
    line.append(f"{record.state:9}", COLOURS.get(record.state, "dim"))
    if record.params is not None:
        p = record.params
        line.append(
            f"{p.variant:23} lr {p.lr:.1e}  wd {p.weight_decay:.1e}  dropout {p.dropout:.2f}"
        )
    line.append(f"  epoch {len(record.losses)}/{max_epochs}")
    if record.best_loss is not None:
        line.append(f"  val_loss {record.best_loss:.4f}", "bold")
    if record.baseline:
        line.append("  baseline", "magenta")
    if record.reason and record.state in ("pruned", "failed"):
        line.append(f"  {record.reason}", "dim")
    return line


def status_table(name: str, records: Sequence[SlotRecord], max_epochs: int) -> Group:
    """Budget, slots by state, the best so far and every slot that began."""
    lines = [trial_line(r, max_epochs) for r in records if r.state != "waiting" or r.losses]
    best = best_of(records)
    head = Text(f"study {name}: {len(records)} slots", "bold")
    tail = Text("no slot is complete yet")
    if best is not None:
        tail = Text("best: ", "bold").append_text(trial_line(best, max_epochs))
    return Group(head, *lines, _counts(records), tail)


def summary_table(summary: Summary) -> Group:
    """What prepare left."""
    head = Text(f"{summary.faces} faces of {summary.photos} photos", "bold")
    table = Table()
    for column in ("split", "real", "fake"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, counts in summary.splits.items():
        table.add_row(split, str(counts["real"]), str(counts["fake"]))
    table.add_row("all", str(summary.real), str(summary.fake), style="bold")
    for reason, count in summary.dropped.items():
        table.add_row(f"dropped: {reason}", str(count), "", style="yellow")
    if summary.clamped:
        table.add_row("boxes clamped to the photo", str(summary.clamped), "", style="dim")
    return Group(head, table)


def comparison_table(comparison: Mapping[str, Any]) -> Group:
    """Ours beside the report's, two decimals as the report prints them."""
    headings = {"accuracy": "acc", "precision": "P", "recall": "R", "f1": "F1"}
    table = Table(title="test split; 0 real, 1 fake", title_justify="left")
    table.add_column("model")
    table.add_column("source")
    for figure in FIGURES:
        name, _, label = figure.partition("_")
        table.add_column(headings[name] + (f"({label})" if label else ""), justify="right")
    table.add_column("AUC (95 %)", justify="right")
    for row in comparison["rows"]:
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
    notes = [Text(f"The report: {comparison['published']}", "dim")]
    if not comparison["comparable"]:
        why = "; ".join(comparison["differences"])
        notes.append(Text(f"The rows are not like for like: {why}.", "yellow"))
    notes += [Text(f"Note: {caveat}.", "dim") for caveat in comparison["caveats"]]
    if comparison["openings"] > 1:
        opened = comparison["openings"]
        notes.append(Text(f"The test split was opened for {opened} different lists.", "yellow"))
    return Group(table, *notes)


def evaluation_table(evaluation: Mapping[str, Any]) -> Group:
    """The proof of each finalist, and what it scored."""
    table = Table(title="re-evaluated from the logged weights", title_justify="left")
    for column in (
        "slot",
        "model",
        "val_loss logged",
        "recomputed",
        "proof",
        "val acc",
        "test acc",
    ):
        table.add_column(column)
    for finalist in evaluation["finalists"]:
        proof, test = finalist["proof"], finalist["test"]
        table.add_row(
            str(finalist["slot"]),
            finalist["model"],
            f"{proof['logged']:.6f}",
            f"{proof['recomputed']:.6f}",
            "bit-equal" if proof["logged"] == proof["recomputed"] else "within tolerance",
            f"{finalist['val']['metrics']['accuracy']:.3f}",
            f"{test['metrics']['accuracy']:.3f}" if test else "closed",
        )
    entry = evaluation["opening"]
    note = "The test split stays closed for this slot: it is in no opened list."
    if entry is not None:
        note = f"Test split opened {entry['at']} for list {entry['sha256'][:12]}"
        note += f" ({evaluation['openings']} lists so far)" if evaluation["openings"] > 1 else ""
    return Group(table, Text(note, "dim"))


@contextmanager
def progress_bars(console: Console) -> Iterator[Any]:
    """A callable (stage, done, total) that shows a bar a stage."""
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def _counts(records: Sequence[SlotRecord]) -> Text:
    counts = {state: sum(r.state == state for r in records) for state in STATES}
    line = Text("     ")
    for state, count in counts.items():
        line.append(f"{count} {state}  ", COLOURS.get(state, "dim") if count else "dim")
    return line
