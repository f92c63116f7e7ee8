"""The HTML report of hand-made studies at every stage; browsers look at it in test_pages.py."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from rich.console import Console

from deepfake.config import Hyperparameters, VariantName
from deepfake.errors import UserError
from deepfake.metrics.figures import METRICS, Summed
from deepfake.variants import VARIANTS
from scripts.benches.filled import EPOCHS, filled_study
from study.cli.tables import analysis_table
from study.config.fingerprint import StudyMismatch, settings_of
from study.config.load import load_config
from study.config.schema import Space, StudyConfig
from study.evaluation.analysis import analyse
from study.evaluation.error_analysis import PICTURES
from study.evaluation.results import Analysis
from study.report import search_plots as charts, write_report
from study.report.reproduce import commands, reproducible
from study.search.space import suggest
from study.slots.records import SlotRecord
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.templates import number, share
from tests.deepfake.metrics.test_figures import mcc
from tests.study.evaluation.test_analysis import table
from tests.support.runs import Folder

MakeConfig = Callable[..., StudyConfig]

SPACE = Space.model_validate(
    {
        "variant": ["cnn", "mobilenet_v2_frozen"],
        "lr": {"low": 1e-5, "high": 1e-2, "log": True},
        "weight_decay": 1e-5,
        "dropout": {"low": 0.0, "high": 0.7},
    }
)


def record(number: int, *losses: float, state: str = "complete", **changes: Any) -> SlotRecord:
    variant: VariantName = "cnn" if number % 2 == 0 else "mobilenet_v2_frozen"
    values = {
        "number": number,
        "state": state,
        "baseline": None,
        "attempt": 0,
        "params": Hyperparameters(variant=variant, lr=1e-3, weight_decay=1e-5, dropout=0.5),
        "losses": dict(enumerate(losses)),
        "reason": None,
        "run_id": None,
        "worker": None,
        "seconds": 1.0,
    }
    return SlotRecord(**{**values, **changes})


def figures_of(page: str) -> dict[str, Any]:
    return json_of(page, "figures")


def json_of(page: str, name: str) -> dict[str, Any]:
    found = re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def without_plotly(page: str) -> str:
    """The page's own text: plotly.js has every word there is."""
    return page[: page.index("<script>")] + page[page.index('<script type="application/json"') :]


def written(slots: Slots, folder: Path) -> str:
    out = folder / "report.html"
    assert write_report(slots, out) == out
    assert [path.name for path in folder.glob("*report.html*")] == ["report.html"]
    return out.read_text(encoding="utf-8")


def created(config: StudyConfig) -> Slots:
    return create_or_join(config, settings_of(config) | {"train.weights (sha256)": "w" * 64})


def finish(slots: Slots, *losses: float, prune: str | None = None) -> None:
    slot = slots.claim("host:1")
    assert slot is not None
    suggest(slot.trial, slots.config.space)
    for epoch, loss in enumerate(losses):
        slot.trial.report(loss, epoch)
    if prune is None:
        slots.complete(slot, min(losses))
    else:
        slots.prune(slot, prune)


class TestStages:
    def test_nothing_ran_yet(self, make_config: MakeConfig, tmp_path: Path) -> None:
        page = written(created(make_config("study.n_trials=4")), tmp_path)
        text = without_plotly(page)
        assert "No trial is complete yet" in text
        assert "No slot has a validation loss yet" in text
        assert "No comparison: study &#39;sample&#39; was not evaluated yet" in text
        assert "The test split was never opened" in text
        assert figures_of(page) == {}

    def test_unfinished_with_pruned_failed_and_running_slots(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        slots = created(make_config("study.n_trials=7"))
        finish(slots, 0.9, 0.7)
        finish(slots, 0.8, 0.85, prune="behind <its> peers")
        failing = slots.claim("host:1")
        assert failing is not None
        suggest(failing.trial, slots.config.space)
        slots.fail(failing, "RuntimeError: <b>boom</b>", retry=False)
        running = slots.claim("host:1")
        assert running is not None
        suggest(running.trial, slots.config.space)
        running.trial.report(0.6, 0)

        page = written(slots, tmp_path)
        text = without_plotly(page)
        assert "3 waiting, 1 running, 1 complete, 1 pruned, 1 failed" in " ".join(text.split())
        assert "Best: slot 0" in text
        assert "RuntimeError: &lt;b&gt;boom&lt;/b&gt;" in text
        assert "behind &lt;its&gt; peers" in text
        assert "Importance needs at least 30 complete trials; this study has 1." in text
        figures = figures_of(page)
        slices = ["slice-lr", "slice-weight_decay", "slice-dropout", "slice-variant"]
        assert sorted(figures) == sorted(
            ["history", "parallel", "pruning", *slices, "curves-loss"]
        )
        curves = json_of(page, "slot-curves")
        assert {slot: of["curves"] for slot, of in curves.items()} == {
            "0": {"val_loss": [0.9, 0.7]},
            "1": {"val_loss": [0.8, 0.85]},
            "3": {"val_loss": [0.6]},
        }
        boxes = re.findall(r'type="checkbox" value="(\d)"( checked)?', text)
        assert boxes == [("0", " checked"), ("1", " checked"), ("3", "")]
        assert set(json_of(page, "slot-hovers")) == {"0", "1", "2", "3"}  # those that drew

    def test_an_evaluation_of_an_earlier_best(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        slots = created(make_config("study.n_trials=4"))
        for loss in (0.9, 0.8, 0.7, 0.6):
            finish(slots, loss)
        slots.set_attribute("evaluation", evaluation(slot=2))
        text = without_plotly(written(slots, tmp_path))
        assert "Best: slot 3" in text
        assert "the test split was not opened for this slot" in text
        assert "slot 2: candidate" in text
        assert "bit-equal, same hardware" in text

    @pytest.mark.slow
    def test_an_evaluation_whose_curves_mlflow_does_not_have(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        slots = created(make_config("study.n_trials=4"))
        for loss in (0.9, 0.8, 0.7, 0.6):
            finish(slots, loss)
        found = evaluated(slots)
        page = written(slots, tmp_path)
        text = without_plotly(page)
        for comparison in found.comparisons:
            assert comparison.sentence[1:].replace(" %", "\xa0%") in text
        assert "under 32 px" not in text  # every face of the table has 100 px
        assert text.count('data-figure="ece_scaled"') == 1
        assert "Curves and pictures are missing: MLflow can&#39;t be reached or has no run" in text
        assert "needs at least two incumbents; one trial was the best from first to last" in text
        assert "roc" not in figures_of(page)

    def test_a_metric_from_outside_has_its_interval_its_column_and_its_row(
        self, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metric = Summed("Matthews' correlation", "MCC", compute=mcc)
        monkeypatch.setitem(METRICS, "mcc", metric)
        slots = created(make_config("study.n_trials=4"))
        found = evaluated(slots)
        figures = [figure for m in found.models if (figure := m.figures["mcc"]) is not None]
        assert len(figures) == len(found.models)
        assert all(-1 <= f.low < f.value < f.high <= 1 for f in figures)
        console = Console(file=StringIO(), width=400)
        console.print(analysis_table(found))
        printed = console.file.getvalue()
        text = without_plotly(written(slots, tmp_path))
        assert "MCC" in printed
        for figure in figures:
            value, low, high = (f"{n:.3f}" for n in (figure.value, figure.low, figure.high))
            assert f"{value} ({low}-{high})" in printed
            assert value in text
        assert text.count('data-figure="mcc"') == 1
        assert "Matthews&#39; correlation<small>higher is better" in text

    @pytest.mark.slow
    def test_mlflow_out_of_reach(self, make_config: MakeConfig, tmp_path: Path) -> None:
        config = make_config("study.n_trials=3", "tracking.uri=http://127.0.0.1:9")
        slots = created(config)
        slot = slots.claim("host:1")
        assert slot is not None
        suggest(slot.trial, config.space)
        slots.note_run(slot.number, "a" * 32)
        slot.trial.report(0.5, 0)
        slots.complete(slot, 0.5)
        page = written(slots, tmp_path)
        assert "only the validation loss is drawn" in page
        assert "tracking.uri" in without_plotly(page)
        assert set(figures_of(page)) >= {"history", "curves-loss"}

    def test_another_space_is_refused_before_anything_is_drawn(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        finish(created(make_config()), 0.9)
        other = join(make_config("augment={}", "space.augment_p={low: 0.0, high: 1.0}"))
        with pytest.raises(StudyMismatch, match=r"space\.augment_p\.\S+ was None, is"):
            write_report(other, tmp_path / "report.html")  # no data are prepared here
        assert not (tmp_path / "report.html").exists()

    def test_out_in_a_folder_that_can_not_be(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        slots = created(make_config("study.n_trials=3"))
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="--out"):
            write_report(slots, tmp_path / "file" / "report.html")
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError, match="folder: Is a directory; name a file"):
            write_report(slots, tmp_path / "folder")
        assert not list(tmp_path.glob(".*.tmp"))


def evaluation(slot: int) -> dict[str, Any]:
    """What evaluate leaves, of one slot."""
    figures = {
        "faces": 27,
        "metrics": {"accuracy": 0.5, "auc": 0.5},
        "intervals": {"accuracy": [0.4, 0.6], "auc": [0.4, 0.6]},
        "confusion": [[10, 3], [0, 14]],
    }
    proof = {"logged": 0.7, "recomputed": 0.7, "same_hardware": True, "objective": "val_loss"}
    best = {"slot": slot, "model": f"slot {slot}", "role": "candidate", "seed": 0}
    best |= {"variant": "cnn", "weights_sha256": "f" * 64}
    return {
        "analysis": None,
        "test_sets": {},
        "finalists": [{**best, "proof": proof, "val": figures, "test": figures}],
        "diagnostics": [],
        "opening": {},
        "openings": 1,
    }


def evaluated(slots: Slots) -> Analysis:
    """The analysis of a drawn table, which the study is given as its evaluation."""
    found = analyse(table(seeds=3), slots.config.baselines, resamples=50)
    found = replace(found, models=[m for m in found.models if m.role != "diagnostic"])
    whole = evaluation(slot=7) | {"analysis": asdict(found)}
    (one,) = whole["finalists"]
    whole["finalists"] = [{**one, "model": m.model, "slot": m.slot} for m in found.models]
    slots.set_attribute("evaluation", whole)
    return found


class TestPage:
    def test_needs_no_network_and_shows_no_storage(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        page = written(created(make_config("study.n_trials=3")), tmp_path)
        assert len(page) < 10_000_000
        assert str(tmp_path / "study.db") not in page
        text = without_plotly(page)
        assert "default-src 'none'" in text
        assert re.findall(r"""(?:src|href)=["'](?!#)|url\(|@import""", text) == []

    @pytest.mark.slow
    def test_the_largest_study_stays_under_ten_megabytes(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        page = written(filled_study(make_config("study.n_trials=1000"), 1000), tmp_path)
        # what a thousand slots add here, and the four further curves of each that MLflow has
        further = 1000 * 4 * EPOCHS * len("0.123456,")
        galleries = 2 * 4 * PICTURES * 8_000  # of four models; a picture has 3 kB or so
        assert len(page) + further + galleries < 10_000_000
        assert set(json_of(page, "slot-curves")) == {str(n) for n in range(1000)}
        heights = [figure["layout"]["height"] for figure in figures_of(page).values()]
        assert max(heights) <= 400

    def test_the_two_files_give_the_same_study_again(
        self, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = make_config("study.n_trials=9", "train.batch_size=16", "data.fractions.train=0.7")
        study_yaml, baselines_yaml = reproducible(config, tmp_path)
        assert f"{tmp_path}/checkpoints" not in study_yaml
        monkeypatch.chdir(tmp_path)
        Path("study.yaml").write_text(study_yaml)
        Path("baselines.yaml").write_text(baselines_yaml)
        storage = config.study.storage.get_secret_value()
        assert load_config(Path("study.yaml"), storage=storage) == config
        from_root, _ = reproducible(config, Path("/"))
        assert yaml.safe_load(from_root)["tracking"]["uri"] == config.tracking.uri

    def test_the_commands_go_from_the_photos_to_the_page(
        self, make_config: MakeConfig, tmp_path: Path
    ) -> None:
        config = make_config(f"data.annotations=[{tmp_path}/data/my own/Train_poly.json]")
        finalists = [
            SimpleNamespace(slot=slot, role=role, seed=seed)
            for slot, role in ((7, "candidate"), (9, "candidate"), (0, "baseline"))
            for seed in range(3)
        ]
        sample, commit = "--photos 24 --seed 7", "a" * 40 + "-dirty"
        found = commands(
            config, tmp_path, finalists, sample=sample, corruptions=False, commit=commit
        )
        assert found[0] == f"git checkout {'a' * 40}  # its files were changed"
        assert found[3:] == [
            "deepfake-study sample 'data/my own' --photos 24 --seed 7",
            "deepfake-study prepare study.yaml",
            "deepfake-study run study.yaml",
            "deepfake-study evaluate study.yaml --top 2 --seeds 3 --no-corruptions",
            "deepfake-study report study.yaml",
        ]
        unfinished = commands(config, tmp_path, [], sample=None, corruptions=False, commit=None)
        assert unfinished[2].startswith("# the JSONs and photos come first")
        assert [line.split()[1] for line in unfinished[3:]] == ["prepare", "run", "report"]


class TestCharts:
    def test_the_line_is_the_lowest_complete_loss_so_far(self) -> None:
        records = [
            record(0, 0.9, state="pruned"),
            record(1, 0.8),
            record(2, 0.3, state="pruned"),
            record(3),
            record(4, 0.9, 0.5),
        ]
        figure = charts.history_figure(records)
        assert figure is not None
        assert list(figure.data[0].x) == [0, 1, 2, 4]
        assert list(figure.data[0].y) == [None, 0.8, 0.8, 0.5]
        rings = figure.data[1]
        assert (list(rings.x), list(rings.y)) == ([1, 4], [0.8, 0.5])
        colours = {trace.name: trace.marker.color for trace in figure.data[2:]}
        assert colours == {v: VARIANTS[v].colour for v in ("cnn", "mobilenet_v2_frozen")}

    def test_a_diverged_slot_does_not_flatten_the_others(self) -> None:
        def kind(records: Sequence[SlotRecord]) -> str | None:
            figure = charts.history_figure(records)
            assert figure is not None
            return figure.layout.yaxis.type

        assert kind([record(0, 0.5), record(1, 0.9)]) is None
        assert kind([record(0, 0.5), record(1, 748.0)]) == "log"
        assert kind([record(0, 0.5), record(1, math.inf)]) is None

    def test_a_loss_under_corruptions_is_named_and_in_the_page_beside_the_clean_one(self) -> None:
        records = [record(0, 0.9, 0.8, objective="robust_val_loss")]
        figure = charts.history_figure(records)
        assert figure is not None
        assert figure.layout.yaxis.title.text == "best validation loss under corruptions"
        curves = {0: {"val_loss": {0: 0.5, 1: 0.4}, "robust_val_loss": {0: 0.9, 1: 0.8}}}
        assert charts.drawable(records, curves) == {
            0: {
                "colour": VARIANTS["cnn"].colour,
                "symbol": "circle",
                "curves": {"val_loss": [0.5, 0.4], "robust_val_loss": [0.9, 0.8]},
            }
        }

    def test_curves_have_six_digits_and_a_gap_where_an_epoch_is_missing(self) -> None:
        curves = {0: {"val_loss": {0: 1 / 3, 2: 2e-9 / 3}, "val_accuracy": {}}, 1: {}}
        drawn = charts.drawable([record(0, 0.5), record(1, 0.5)], curves)
        assert drawn.keys() == {0}
        assert drawn[0]["curves"] == {"val_loss": [0.333333, None, 6.66667e-10]}

    def test_slices_are_of_what_is_drawn(self) -> None:
        figures = charts.slice_figures([record(0, 0.5), record(1, 0.6)], SPACE)
        assert set(figures) == {"lr", "dropout", "variant"}
        assert figures["lr"].layout.xaxis.type == "log"

    def test_importances_take_enough_trials_that_differ(self) -> None:
        study = optuna.create_study()
        for n in range(charts.MIN_FOR_IMPORTANCES):
            assert charts.importances(study, SPACE) is None
            trial = study.ask()
            params = suggest(trial, SPACE)
            study.tell(trial, abs(math.log10(params.lr) + 3) + n * 1e-6)
        shares = charts.importances(study, SPACE)
        assert shares is not None
        assert set(shares) == {"lr", "dropout", "variant"}
        assert sum(shares.values()) == pytest.approx(1)
        assert list(charts.importances_figure(shares).data[0].y)[-1] == max(shares, key=shares.get)

    @pytest.mark.filterwarnings("ignore:Target and region quantiles")
    def test_equal_losses_say_nothing_on_importance(self) -> None:
        study = optuna.create_study()
        for _ in range(charts.MIN_FOR_IMPORTANCES):
            trial = study.ask()
            suggest(trial, SPACE)
            study.tell(trial, 1.0)
        assert charts.importances(study, SPACE) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.69314, "0.6931"),
        (748.77, "7.488e+02"),
        (3e-5, "3.000e-05"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_losses_keep_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_printed_as_the_report_does() -> None:
    assert [share(v) for v in (1.0, 0.986, None, math.nan)] == ["1.00", "0.99", "-", "-"]


@pytest.mark.slow
class TestFinishedStudy:
    def test_has_every_part(self, small_study: Folder, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        done = small_study.run("report", "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(out)
        page = out.read_text(encoding="utf-8")
        text = without_plotly(page)
        assert set(figures_of(page)) >= {"history", "curves-loss", "curves-accuracy"}
        assert set(figures_of(page)) >= {"roc", "precision-recall", "reliability-after"}
        for part in ("not like for like", "bit-equal", "opened for 1 list", "DLA Parte 1"):
            assert part in text
        assert str(small_study.path / "mlruns") not in text
        status = small_study.json("status")
        assert f"Best: slot {status['best']['slot']}" in text
        assert status["best"]["run_id"] in text

    def test_refuses_other_settings(self, small_study: Folder, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        done = small_study.run("report", "--out", str(out), "--set", "train.batch_size=8")
        assert done.returncode == 2
        assert "train.batch_size was 32, is 8" in done.stderr
        assert not out.exists()
