"""What a terminal shows as it runs: a line a trial, the live table, progress bars; on stderr."""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.slots import SlotRecord, best_of

MIN_FOR_ETA = 2  # finished slots


def seconds_left(records: Sequence[SlotRecord], max_epochs: int) -> float | None:
    """Until the last slot ends; None before two have ended, and where none runs.

    A slot takes the mean of its variant's, or of all where its variant has none, but for the
    epochs that it has; the workers that run now share what is left.
    """
    ended: dict[str, list[float]] = defaultdict(list)
    for record in records:
        # what another attempt began was not all timed
        whole = record.state in ("complete", "pruned") and record.attempt == 0
        if whole and record.seconds is not None and record.params is not None:
            ended[record.params.variant].append(record.seconds)
    all_ended = [seconds for of_variant in ended.values() for seconds in of_variant]
    workers = sum(record.state == "running" for record in records)
    if len(all_ended) < MIN_FOR_ETA or not workers:
        return None
    left = []
    for record in records:
        if not record.finished:
            variant = record.params.variant if record.params else ""
            share = 1 - min(len(record.losses), max_epochs) / max_epochs
            left.append(share * fmean(ended.get(variant, all_ended)))
    return max(*left, sum(left) / workers)


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


COLUMNS = {  # of the live table: the terminal's width from which it is shown
    "slot": 0,
    "variant": 0,
    "lr": 92,
    "bar": 84,
    "epoch": 0,
    "train": 80,
    "val": 0,
    "best": 0,
    "img/s": 80,
    "worker": 120,
    "of": 144,
}
MAX_CELL = 24  # characters of a variant or a rerun's name
MAX_WORKER = 20
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
            with self._live, _log_above():
                yield self
        else:
            yield self

    def update(self, records: Sequence[SlotRecord]) -> None:
        for record in records:
            if record.finished and record.number not in self._said:
                self._said.add(record.number)
                self.console.print(trial_line(record, self.max_epochs), highlight=False)
        if self.console.is_terminal:
            self._live.update(live_table(records, self.max_epochs, *self.console.size))


@contextmanager
def _log_above() -> Iterator[None]:
    """What is logged goes above the table, as rich has what is printed."""
    streams = [h for h in logging.root.handlers if type(h) is logging.StreamHandler]
    before = [handler.stream for handler in streams]
    for handler in streams:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in zip(streams, before, strict=True):
            handler.setStream(stream)


def live_table(records: Sequence[SlotRecord], max_epochs: int, width: int, height: int) -> Group:
    """A row for each slot that runs, as many as the terminal takes, and a line for the study."""
    running = [record for record in records if record.state == "running"]
    rows = running[: max(1, height - 4)]
    names = [name for name, least in COLUMNS.items() if width >= least]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        justify: Any = "left" if name in ("variant", "bar", "worker", "of") else "right"
        title = "" if name in ("bar", "of") else name
        table.add_column(title, justify=justify, no_wrap=True, max_width=MAX_CELL)
    for record in rows:
        cells = _cells(record, max_epochs)
        table.add_row(*(cells[name] for name in names))
    more = [Text(f"and {len(running) - len(rows)} more", "dim")] * (len(running) > len(rows))
    return Group(*[table] * bool(rows), *more, study_line(records, max_epochs))


def _cells(record: SlotRecord, max_epochs: int) -> dict[str, Text | ProgressBar]:
    last, done, total = record.last_epoch, len(record.losses), max_epochs
    epoch = f"{done}/{max_epochs}"
    if (stage := record.stage) is not None and not done and stage.done < stage.total:
        done, total = stage.done, stage.total
        left = f" {duration(stage.seconds_left)}" if stage.seconds_left is not None else ""
        epoch = f"embed {100 * done // total}%{left}"
    loss = f"{record.losses[max(record.losses)]:.4f}" if record.losses else "-"
    of = record.baseline or ""
    if record.rerun is not None:
        of = f"{record.rerun.model} seed {record.rerun.seed}"
    return {
        "slot": Text(str(record.number)),
        "variant": Text(record.params.variant if record.params else "-", COLOURS["running"]),
        "lr": Text(record.params.printed()["lr"] if record.params else "-"),
        "bar": ProgressBar(total, done, width=8),
        "epoch": Text(epoch),
        "train": Text(f"{last.train_loss:.4f}" if last else "-"),
        "val": Text(loss),
        "best": Text(f"{record.best_loss:.4f}" if record.losses else "-", "bold"),
        "img/s": Text(_rate(last.images_per_s) if last else "-"),
        "worker": Text(_short_worker(record.worker or "-"), "dim"),
        "of": Text(of, "magenta"),
    }


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s < 99_999 else f"{images_per_s / 1000:,.0f}k"


def _short_worker(worker: str) -> str:
    """host:pid; of a long host its begin, the pid whole."""
    host, _, pid = worker.rpartition(":")
    left = MAX_WORKER - len(pid) - 1
    return worker if len(host) <= left else f"{host[: left - 1]}…:{pid}"


def study_line(records: Sequence[SlotRecord], max_epochs: int) -> Text:
    """Where the whole study is, on one line."""
    counts = Counter[str](record.state for record in records)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{sum(r.finished for r in records)}/{len(records)} slots finished", "bold")
    left = seconds_left(records, max_epochs)
    if counts["running"]:
        line.append(f", ETA {'-' if left is None else duration(left)}")
    elif counts["waiting"]:
        line.append(", no worker has a slot yet")
    best = best_of(records)
    line.append(f"; best {best.best_loss:.4f} (slot {best.number})" if best else "; best -")
    for state, before in (("pruned", "; "), ("failed", ", ")):
        line.append(f"{before}{counts[state]} {state}", COLOURS[state] if counts[state] else "")
    return line


def trial_line(record: SlotRecord, max_epochs: int) -> Text:
    """One slot on one line."""
    line = Text(f"{record.number:4d} ")
    line.append(f"{record.state:9}", COLOURS.get(record.state, "dim"))
    if record.params is not None:
        said = (f"{name} {value}" for name, value in record.params.printed(short=True).items())
        line.append(f"{record.params.variant:23} {'  '.join(said)}")
    line.append(f"  epoch {len(record.losses)}/{max_epochs}")
    if record.best_loss is not None:
        line.append(f"  {record.objective} {record.best_loss:.4f}", "bold")
    if record.rerun is not None:
        line.append(f"  {record.rerun.model} seed {record.rerun.seed}", "magenta")
    elif record.baseline:
        line.append("  baseline", "magenta")
    if record.reason and record.state in ("pruned", "failed"):
        line.append(f"  {record.reason}", "dim")
    return line


@contextmanager
def progress_bars(console: Console) -> Iterator[Any]:
    """A callable (stage, done, total) that shows a bar a stage, with the time that is left."""
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

        with _log_above():
            yield advance
