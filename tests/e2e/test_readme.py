"""Every command of the README, run as it stands there, on a study of seconds."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import typer
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from study.cli.app import app
from tests.support.exact import wait_for
from tests.support.forked import command_line
from tests.support.photos import draw_set
from tests.support.ports import free_port
from tests.support.runs import ENV, REPOSITORY

README = (REPOSITORY / "README.md").read_text()
STARTS = r"deepfake-study|scripts/\w|optuna-dashboard|printf|MLFLOW_TRACKING_URI=|\. "
ELSEWHERE = {  # what starts so is run by that test, on a cluster or by whoever runs this
    "scripts/test.sh": "tests/e2e/test_readme.py::test_every_option_that_is_named_exists",
    "scripts/quickstart.sh": "tests/e2e/test_readme.py::quickstarted",
    ". .venv/bin/activate": "tests/e2e/test_readme.py::quickstarted",
    "deepfake-study run CONFIG --workers-per-gpu 2": "tests/study/launchers/test_local.py::"
    "test_packed_workers_are_spread_evenly",
    "deepfake-study run CONFIG --launcher slurm": "tests/study/launchers/test_slurm.py::"
    "test_an_array_with_one_task_warned_one_killed_and_one_node_lost_ends_exactly",
    "deepfake-study jobs CONFIG": "tests/study/launchers/test_slurm.py::"
    "test_detached_jobs_are_found_again_and_hold_no_password",
    "deepfake-study run CONFIG --launcher ray": "tests/study/launchers/test_ray.py::"
    "test_two_nodes_of_which_one_is_killed_end_exactly",
}
PHOTOS = 40
SLOTS = 4  # the three baselines and one that is drawn
LOSS = 0.7  # the filter's: so many of the sample study are better
STATUS = "deepfake-study status configs/sample.yaml"
MEANS: tuple[Callable[[Run], bool], ...] = (  # of the three filters, in their order
    lambda run: "baseline" in run.data.tags,
    lambda run: run.data.tags["state"] == "pruned" and run.data.params["variant"] == "cnn",
    lambda run: run.data.tags["state"] == "complete" and run.data.metrics["best_val_loss"] < LOSS,
)
SERVES = ("deepfake-study ui", "optuna-dashboard")  # until they are told to end


def commands() -> list[str]:
    """The lines of the README's blocks that are commands, without their comments."""
    text = README.replace("\\\n", " ")
    lines = re.findall(rf"^ {{4,}}((?:{STARTS}).*)$", text, re.MULTILINE)
    return [" ".join(re.sub(r"\s{2,}#.*", "", line).split()) for line in lines]


def run_elsewhere(command: str) -> str | None:
    return next((test for start, test in ELSEWHERE.items() if command.startswith(start)), None)


def test_the_map_shows_every_room_and_nothing_smaller() -> None:
    section = README.partition("## How it flows")[2].partition("\n## ")[0]
    tree = [line for line in section.splitlines() if re.match(r" {4,}\w+/", line)]
    shown = [line.split("/")[0].strip() for line in tree if line.startswith(" " * 6)]
    rooms = [
        path.parent.name
        for package in ("deepfake", "study")
        for path in REPOSITORY.glob(f"{package}/*/__init__.py")
    ]
    assert sorted(shown) == sorted(rooms)
    assert len(tree) <= 26


def test_what_is_run_elsewhere_is_in_the_readme_and_has_its_test() -> None:
    for start, test in ELSEWHERE.items():
        assert any(command.startswith(start) for command in commands()), start
        path, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / path).read_text(), test


def test_every_option_that_is_named_exists() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `([a-z]+(?: [^`]*)?)` \|", README, re.MULTILINE)
    told = [row for row in rows if row.split()[0] in known]
    assert {row.split()[0] for row in told} == known.keys()
    inline = re.findall(r"`deepfake-study ([^`]+)`", README)
    blocks = [c.removeprefix("deepfake-study ") for c in commands() if c.startswith("deepfake")]
    for line in [*told, *inline, *blocks]:
        name, *words = line.split()
        options = {option for parameter in known[name].params for option in parameter.opts}
        options |= {o for parameter in known[name].params for o in parameter.secondary_opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options | {"--help"}, line


@pytest.fixture(scope="module")
def quickstarted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's folder behind `scripts/quickstart.sh`: the same script, a study of seconds."""
    folder = cloned(tmp_path_factory.mktemp("clone"))
    script = folder / "scripts/quickstart.sh"
    script.write_text(script.read_text().replace("--photos 200", f"--photos {PHOTOS}"))
    done = sh(folder, "scripts/quickstart.sh")
    assert done.returncode == 0, done.stderr
    assert "The report:" in done.stdout
    return folder


def cloned(folder: Path) -> Path:
    """What a fresh clone has, installed, its two studies shrunk."""
    for name in ("scripts", "configs", "pyproject.toml", "constraints.txt"):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv/.installed").touch()  # scripts/install.sh has nothing to do
    for name in ("sample", "report"):
        shrink(folder / f"configs/{name}.yaml")
    return folder


def shrink(path: Path) -> None:
    """Keeps what the study is, of small pictures, few epochs and slots, on the drawn photos."""
    config = yaml.safe_load(path.read_text())
    config["data"] |= {
        "annotations": ["data/sample/Train_poly.json"],
        "photos_dir": "data/sample",
    }
    small = {"image_size": {"cnn": 32, "mobilenet_v2": 33}, "weights": "none", "max_epochs": 2}
    config["train"] |= small
    config["study"] |= {"n_trials": SLOTS}
    path.write_text(yaml.safe_dump(config))


def typed(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """As a shell runs it; the project's own in a process that has its imports already."""
    if not command.startswith("deepfake-study "):
        return sh(folder, command)
    words = shlex.split(command)[1:]
    return command_line([path for word in words for path in expanded(folder, word)], folder, env())


def expanded(folder: Path, word: str) -> list[str]:
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word))


def sh(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, errors = shell.communicate(timeout=1500)  # a machine may be shared
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, shell.returncode, out, errors)


def env() -> dict[str, str]:
    """As behind `. .venv/bin/activate`."""
    return {**ENV, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def served(folder: Path, command: str) -> Iterator[str]:
    """The address of what a command serves on a free port; it ends with the block."""
    if command.startswith("optuna-dashboard"):
        port = free_port()
        with Path(folder, command.rsplit(maxsplit=1)[-1]).open("a") as toml:
            toml.write(f"port = {port}\n")
        url = f"http://127.0.0.1:{port}"
    else:
        command, url = f"{command} --port 0", ""
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env={**env(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        yield url or re.findall(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=20) as page:
        return bool(page.status == 200)
    return False


def run_in_order(folder: Path, chosen: list[str]) -> None:
    """Each command once by its console script: `scripts/quickstart.sh` has called some."""
    begun = set(QUICKSTARTED)
    for command in chosen:
        if command.startswith(SERVES):
            with served(folder, command) as url:
                wait_for(partial(answers, url), 60)
            continue
        name = " ".join(command.split()[:2])
        done = (typed if name in begun else sh)(folder, command)
        begun.add(name)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


QUICKSTARTED = {
    f"deepfake-study {name}" for name in ("prepare", "run", "evaluate", "compare", "report")
}


def of_the_real_study(command: str) -> bool:
    return "configs/report.yaml" in command


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tours_commands_do_what_they_say_in_their_order(quickstarted: Path) -> None:
    chosen = [c for c in commands() if not run_elsewhere(c) and not of_the_real_study(c)]
    assert len(chosen) > 15
    run_in_order(quickstarted, chosen)
    assert (quickstarted / "build/best/model.safetensors").is_file()
    assert (quickstarted / "sample.html").is_file()
    status = json.loads(typed(quickstarted, f"{STATUS} --json").stdout)
    assert status["n_trials"] == SLOTS + 4 + 1  # its own, the four more, one of one's own


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_studys_steps_do_what_they_say_in_their_order(tmp_path: Path) -> None:
    folder = cloned(tmp_path)
    draw_set(folder / "data/sample", PHOTOS)
    chosen = [c for c in commands() if not run_elsewhere(c) and of_the_real_study(c)]
    assert len(chosen) > 6
    run_in_order(folder, chosen)
    assert (folder / "openforensics-report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_three_filters_find_runs(quickstarted: Path) -> None:
    block = README.partition("Three filters for the search box:")[2].strip("\n")
    filters = [line.strip() for line in block.split("\n\n")[0].splitlines()]
    assert len(filters) == 3
    client = MlflowClient(tracking_uri=f"sqlite:///{quickstarted}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("sample")
    assert experiment is not None
    every = client.search_runs([experiment.experiment_id], "tags.slot != ''")
    cnn = next(run for run in every if run.data.params["variant"] == "cnn")
    client.set_tag(cnn.info.run_id, "state", "pruned")  # of so few slots none may be
    every = client.search_runs([experiment.experiment_id], "tags.slot != ''")
    for found, means in zip(filters, MEANS, strict=True):
        runs = client.search_runs([experiment.experiment_id], found)
        expected = {run.info.run_id for run in every if means(run)}
        assert {run.info.run_id for run in runs} == expected, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_is_where_is_there(quickstarted: Path) -> None:
    mlruns = quickstarted / "mlruns"
    for name in ("study.db", "mlflow.db", "checkpoints/sample/logs"):
        assert (mlruns / name).exists(), name
    logged = {path.name for path in (mlruns / "artifacts/sample").rglob("*")}
    named = {"config.yaml", "best.safetensors", "learning_curves.png", "confusion_matrix.png"}
    assert named | {"predictions.csv.gz", "corruptions.csv", "openings.json", "models"} <= logged
