"""Figures of trained models as tables: what evaluate, compare and audit --leak found."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepfake.baselines import FIGURES

if TYPE_CHECKING:
    from study.evaluation import Price


def evaluation_table(evaluation: Mapping[str, Any]) -> Group:
    """The proof of each finalist, and what it scored."""
    table = Table(title="re-evaluated from the logged weights", title_justify="left")
    for column in (
        "slot",
        "model",
        "seed",
        f"{evaluation['finalists'][0]['proof']['objective']} logged",
        "recomputed",
        "proof",
        "val acc",
        "test acc",
        *(f"{name} acc" for name in evaluation["finalists"][0]["test_sets"]),
    ):
        table.add_column(column)
    for finalist in evaluation["finalists"]:
        proof, test = finalist["proof"], finalist["test"]
        table.add_row(
            str(finalist["slot"]),
            finalist["model"],
            str(finalist["seed"]),
            f"{proof['logged']:.6f}",
            f"{proof['recomputed']:.6f}",
            "bit-equal" if proof["logged"] == proof["recomputed"] else "within tolerance",
            f"{finalist['val']['metrics']['accuracy']:.3f}",
            f"{test['metrics']['accuracy']:.3f}" if test else "closed",
            *(f"{of['metrics']['accuracy']:.3f}" for of in finalist["test_sets"].values()),
        )
    entry = evaluation["opening"]
    note = "The test split stays closed for this slot: it is in no opened list."
    if entry is not None:
        note = f"Test split opened {entry['at']} for list {entry['sha256'][:12]}"
        note += f" ({evaluation['openings']} lists so far)" if evaluation["openings"] > 1 else ""
    left_out = [Text(line, "yellow") for line in evaluation["left_out"]]
    models = [Text(f"registered: {uri}", "dim") for uri in evaluation["registered"].values()]
    return Group(table, *left_out, Text(note, "dim"), *models)


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
    verdicts = comparison["analysis"]["comparisons"]
    notes += [Text(f"{verdict['sentence']}.", "bold") for verdict in verdicts]
    notes.append(Text(_shares(comparison["fake_shares"]), "dim"))
    if prior := comparison["analysis"].get("prior"):  # an earlier release's has none
        notes.append(Text(f"{prior['sentence']}.", "dim"))
    if comparison["openings"] > 1:
        opened = comparison["openings"]
        notes.append(Text(f"The test split was opened for {opened} different lists.", "yellow"))
    return Group(table, *notes, *map(_test_set, comparison["test_sets"].values()))


def _shares(fake_shares: Mapping[str, float]) -> str:
    return "Fakes: " + ", ".join(f"{s} {100 * share:.1f} %" for s, share in fake_shares.items())


def _test_set(found: Mapping[str, Any]) -> Group:
    """A further test set, shorter than the first."""
    names = ("NLL", "accuracy", "balanced acc", "AUC")
    keys = ("nll", "accuracy", "balanced_accuracy", "auc")
    table = _figures_table(found, dict(zip(names, keys, strict=True)))
    said = [Text(f"{comparison['sentence']}.", "bold") for comparison in found["comparisons"]]
    return Group(Text(), table, *said, Text(f"{found['prior']['sentence']}.", "dim"))


def _figures_table(found: Mapping[str, Any], figures: Mapping[str, str]) -> Table:
    """A row a model. figures: column -> its name in the scorecard."""
    counts = f"{found['real']} real and {found['fake']} fake faces of {found['photos']} photos"
    table = Table(title=f"split {found['split']}: {counts}", title_justify="left")
    for column in ("model", "seeds", *figures):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in found["models"]:
        cells = [_with_interval(model["figures"][key]) for key in figures.values()]
        style = {"diagnostic": "dim"}.get(model["role"])
        style = "bold" if model["model"] == found["best"] else style
        table.add_row(model["model"], str(len(model["seeds"])), *cells, style=style)
    return table


def analysis_table(found: Mapping[str, Any]) -> Group:
    """Figures with intervals, the verdicts, and what became of the report's figures."""
    names = ("NLL", "accuracy", "AUC", "EER", "ECE", "ECE scaled", "R(1) at 1 % false")
    keys = ("nll", "accuracy", "auc", "eer", "ece", "ece_scaled", "recall_1_at_far_1pct")
    table = _figures_table(found, dict(zip(names, keys, strict=True)))
    printed = Table(title=f"the report: {found['published']['source']}", title_justify="left")
    for column in ("model", "figure", "printed", "ours", "95 %, seeds and photos", ""):
        printed.add_column(column)
    for cell in found["published"]["cells"]:
        values = (f"{cell['printed']:.2f}", f"{cell['ours']:.4f}")
        interval = "-" if cell["low"] is None else f"{cell['low']:.4f} to {cell['high']:.4f}"
        printed.add_row(cell["model"], cell["figure"], *values, interval, cell["verdict"])
    verdicts = [Text(f"{comparison['sentence']}.") for comparison in found["comparisons"]]
    notes = [f"Intervals: 95 %, {found['resamples']} resamples of photos, seeds as they are."]
    dataset = found["published"]["dataset"]
    notes.append(f"The report's figures are of {dataset}: other data can't reproduce them.")
    notes.append(f"{found['prior']['sentence']}.")
    return Group(table, *verdicts, printed, *(Text(note, "dim") for note in notes))


def _with_interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "—"
    return f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"


def price_table(price: "Price") -> Group:
    """A baseline split by face beside itself split by photo."""
    table = Table(title=f"{price.baseline}, {price.seeds} seeds a split", title_justify="left")
    for column in ("", "split by photo", "split by face", "difference (95 %)"):
        table.add_column(column, justify="left" if not column else "right")
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
