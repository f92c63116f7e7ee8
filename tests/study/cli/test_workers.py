"""The commands that a study is begun and continued with."""

import shlex
from pathlib import Path

import pytest

from deepfake.config import Hyperparameters
from deepfake.data.prepare import prepare_data
from study.cli.workers import say_how_it_ended
from study.config.schema import StudyConfig
from study.config.siblings import final_of, leak_of
from study.launchers.run import Ended
from study.slots.budget import stop_study
from study.slots.slots import Slots
from study.slots.study import create_or_join
from study.slots.training import Role, Training
from study.worker.inputs import Inputs
from study.worker.setup import study_fingerprint
from tests.support.runs import Folder

PARAMS = Hyperparameters(variant="cnn", lr=1e-3, weight_decay=0, dropout=0.5)


def with_reruns(config: StudyConfig, *models: tuple[str, Role, int], seeds: int) -> Slots:
    slots = create_or_join(config, {"study.seed": 0})
    slots.add_reruns(
        [(Training(*model, seed), PARAMS) for seed in range(seeds) for model in models]
    )
    return slots


def printed(line: str) -> list[str]:
    """The words of the command at a line's end, without those that name the study."""
    words = shlex.split(line.split("with: deepfake-study ")[1])
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if "--set" not in (before, word) and not word.endswith(".yaml")
    ]


def test_stop_says_how_each_study_beside_the_search_goes_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    config = folder.study_config()
    create_or_join(config, {"study.seed": 0})
    finalists: tuple[tuple[str, Role, int], ...] = (
        ("slot 7", "candidate", 7),
        ("slot 9", "candidate", 9),
        ("cnn", "baseline", 0),
    )
    with_reruns(final_of(config), *finalists, seeds=5)
    with_reruns(leak_of(config)["face"], ("mobilenet_v2_frozen", "baseline", 1), seeds=2)
    done = folder.call("stop")
    assert done.returncode == 0, done.stderr
    assert [printed(line) for line in done.stdout.splitlines()] == [
        ["run"],
        ["evaluate", "--seeds", "5", "--top", "2"],
        ["audit", "--leak", "--seeds", "2", "--baseline", "mobilenet_v2_frozen"],
    ]


def test_a_worker_of_a_study_that_was_not_begun_says_what_begins_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    for option, begins in (
        (["--final"], ["evaluate", "--seeds", "3"]),
        (["--leak", "face"], ["audit", "--leak", "--seeds", "3"]),
    ):
        done = folder.run("worker", *option, "--device", "cpu")
        assert (done.returncode, done.stdout) == (2, "")
        assert "with slots yet; begin it with: " in done.stderr
        assert printed(done.stderr) == begins
        assert f"--set data.work_dir={tmp_path}/faces" in done.stderr


def test_a_stopped_worker_of_finalists_says_how_they_go_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12, "train.weights=none")
    prepared = prepare_data(folder.study_config().data)
    final = final_of(folder.study_config())
    slots = create_or_join(final, study_fingerprint(final, Inputs.load(final, prepared)))
    slots.add_reruns([(Training("slot 7", "candidate", 7, seed), PARAMS) for seed in range(4)])
    stop_study(slots)
    done = folder.run("worker", "--final", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "study 'sample-final' was stopped by `stop`; continue with: " in done.stderr
    assert printed(done.stderr) == ["evaluate", "--seeds", "4"]


def test_entries_that_wait_for_mlflow_are_delivered_by_sync(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = Ended([], signal=2, undelivered=7)
    again = "deepfake-study evaluate s.yaml --seeds 3"
    assert say_how_it_ended(ended, again, ("s.yaml", "--set", "name=a b")) == 130
    assert capsys.readouterr().err.splitlines() == [
        "7 entries wait for MLflow; once it is back, deliver them with: "
        "deepfake-study sync s.yaml --set 'name=a b'",
        f"stopped; continue with: {again}",
    ]
