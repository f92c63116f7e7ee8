#!/usr/bin/env python3
"""What the project promises, measured: scripts/bench.py [NAME...] [--json FILE].

Without a name all but growth and nulls, on generated data: about 10 minutes on two idle cores.
These two run only by their names: 10 to 30 minutes each. Run it with the venv's Python.
Exit code 1 if a goal is missed.
"""

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server and tiny study

from benches.table import Row, figure  # beside this file

# each a module of benches/ with bench() -> list[Row]
NAMES = {
    "feed": "batches a second from the store, beside a DataLoader's",
    "frozen": "a frozen trial on stored features, beside running the backbone each epoch",
    "loop": "what an epoch takes beside its steps, and augmented; threads or workers",
    "preparation": "photos to crops, beside opening the photo again for each face",
    "estimate": "what the sample study is said to take, and what it takes",
    "pruning": "epochs a search needs on known curves, beside random search; is the best pruned?",
    "search": "the search's own cost: a trial that trains nothing, --help, status",
    "sample": "the drawn faces: shortcuts that must not work, training that must",
    "tracking": "what training loses when MLflow's server is away",
    "growth": "how each cost grows with photos, faces, slots and workers (only by name)",
    "nulls": "false verdicts where there is no difference (only by name)",
}
APART = {"growth", "nulls"}


def main() -> int:
    listed = "\n".join(
        f"  {name:12} {what}{' (on request)' * (name in APART)}" for name, what in NAMES.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"names:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in NAMES if name not in APART]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"unknown name {unknown[0]!r}; choose from {', '.join(NAMES)}")
    rows = []
    for name in names:
        started = time.monotonic()
        found: list[Row] = importlib.import_module(f"benches.{name}").bench()
        rows += [(name, row) for row in found]
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    columns = ("bench", "figure", "usual parts", "ours", "ratio", "goal", "met", "note")
    table = Table(*columns)
    for name, row in rows:
        verdict = ("yes" if row.is_met else "NO") if row.goal else ""
        values = (figure(value) for value in (row.usual, row.ours, row.ratio))
        table.add_row(name, row.figure, *values, row.goal, verdict, row.note)
    Console(width=160).print(table)  # one width, in a pipe too
    if arguments.json is not None:
        report = [
            {"bench": name, **asdict(row), "goal": row.goal, "met": row.is_met}
            for name, row in rows
        ]
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if all(row.is_met for _, row in rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    sys.exit(main())
