"""The launchers by name: what each takes, and one that is added."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfake.errors import UserError
from study.config.schema import StudyConfig
from study.launchers.base import (
    POLL_S,
    Environment,
    Launcher,
    OnEnd,
    Placement,
    WorkerCommand,
    Workers,
)
from study.launchers.launchers import LAUNCHERS, launcher_named, launcher_of
from tests.support.exact import assert_exact
from tests.support.runs import Folder


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"slurm": ("time=1",)}, "--slurm is for --launcher slurm, not local"),
        ({"detach": True}, "--detach is for --launcher slurm, not local"),
        ({"gpus_per_worker": 0.0}, "--gpus-per-worker is for --launcher ray, not local"),
        ({"launcher": "slurm", "ray_address": "h:1"}, "--ray-address is for --launcher ray, not "),
        ({"launcher": "slurm", "device": "cpu"}, "--device is for --launcher local, not slurm"),
        (
            {"launcher": "ray", "workers_per_gpu": 2},
            "--workers-per-gpu is for --launcher local, not ray",
        ),
    ],
)
def test_an_option_of_another_launcher_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        launcher_of(Placement(**options))


def test_a_launcher_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"^--launcher pbs: must be local, slurm or ray$"):
        launcher_named("pbs")


def test_sqlite_is_for_one_machine(make_config: Any) -> None:
    line = "study.storage: SQLite is for one machine"
    for placement, lines in {
        Placement("slurm"): [line],
        Placement("ray", ray_address="h:1"): [line],
        Placement("ray"): [],  # a cluster of this machine
    }.items():
        assert list(launcher_of(placement).warnings(make_config(), {})) == lines


# one that is added from outside


class Processes:
    """Processes that nobody replaces."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.worst = 0
        self._processes = processes

    def poll(self) -> bool:
        time.sleep(POLL_S)
        codes = [process.poll() for process in self._processes]
        self.worst = max(filter(None, codes), default=0)
        return None in codes

    def end(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def drop_waiting(self) -> None: ...

    def last_words(self) -> str:
        return "said nowhere"


class Toy(Launcher):
    """Nothing but what a launcher must have."""

    def start(
        self,
        command: WorkerCommand,
        config: StudyConfig,
        environment: Environment,
        on_end: OnEnd,
    ) -> Workers:
        workers = range(self.placement.workers or 1)
        return Processes([command.start(env=environment(), own_session=True) for _ in workers])


@pytest.fixture
def own_signals() -> Iterator[None]:
    """`run` takes those of the process that it is called in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("own_signals")
def test_a_launcher_is_a_class_and_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAUNCHERS, "toy", Toy)
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=2")
    folder.own_env = {"DEEPFAKE_STUDY_STORAGE": f"sqlite:///{tmp_path}/study.db"}
    refused = folder.call("run", "--launcher", "toy", "--detach")
    line = "error: --detach is for --launcher slurm, not toy"
    assert (refused.returncode, refused.stderr.strip()) == (2, line)
    unknown = folder.call("run", "--launcher", "toys")
    assert "--launcher toys: must be local, slurm, ray or toy" in unknown.stderr

    done = folder.call("run", "--launcher", "toy", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "3 slots to run; continue with: deepfake-study run" in " ".join(done.stderr.split())
    assert "--launcher toy --workers 2" in done.stderr
    assert_exact(folder, 3)
