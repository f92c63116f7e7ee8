"""Workers as Ray tasks: on a real cluster of two nodes, and on one that `run` starts."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study.launchers.base import ExtraMissing, Placement
from study.launchers.ray import Ray, RayAway, check_installed
from tests.support import ray_cluster
from tests.support.exact import assert_exact, holders, wait_for
from tests.support.postgres import PASSWORD, Postgres
from tests.support.ray_cluster import HEAD, OTHER, RayCluster
from tests.support.runs import Folder

pytest.importorskip("ray", reason="pip install '.[ray]'")

TINY = ("study.heartbeat_s=1", "study.lease_s=3", "study.prune_patience=9")


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with ray_cluster.running(gpus=1) as started:
        yield started


@pytest.mark.slow
def test_two_nodes_of_which_one_is_killed_end_exactly(cluster: RayCluster, tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, *TINY, "study.n_trials=8", "train.max_epochs=6")
    folder.own_env = cluster.env
    assert folder.call("prepare").returncode == 0
    options = ("--launcher", "ray", "--ray-address", cluster.address, "--workers", "4")
    refused = folder.run_afresh("run", *options, "--gpus-per-worker", "2")
    assert refused.returncode == 2
    assert "no node has them" in refused.stderr

    run = folder.start_afresh("run", *options, "--gpus-per-worker", "0.5")
    wait_for(lambda: run.poll() is not None or len(cluster.workers()) == 4)
    for node in (HEAD, OTHER):  # two share its one GPU
        assert [visible_gpus(pid) for pid in cluster.workers(node)] == ["0", "0"]
    lost = cluster.workers(OTHER)
    wait_for(lambda: lost & set(holders(folder).values()))
    cluster.lose(OTHER)

    out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "8 complete" in out
    assert_exact(folder, 8)
    # they follow their task's process
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in lost))


def visible_gpus(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(part.split("=", 1) for part in environment if part)["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_a_cluster_of_its_own_replaces_a_killed_worker_stops_cleanly_and_keeps_no_password(
    tmp_path: Path, postgres: Postgres
) -> None:
    folder = Folder(tmp_path, 24, *TINY, "study.n_trials=3", "train.max_epochs=50")
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets in it: the path must be short
    folder.own_env = {
        "DEEPFAKE_STUDY_STORAGE": postgres.new_database(),
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
    }
    assert folder.call("prepare").returncode == 0
    run = folder.start_afresh("run", "--launcher", "ray", "--workers", "1")
    try:
        first = wait_for(lambda: run.poll() is None and holders(folder))
        os.kill(first[0], signal.SIGKILL)
        second = wait_for(lambda: run.poll() is None and others(folder, first))
        commands = all_commands()
        addresses = ray_cluster.listening(run.pid)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 128 + signal.SIGINT, errors
        assert "continue with: deepfake-study run" in errors
        # freed by the worker, for nobody else is there to do it; the first's waits for its lease
        assert not second.keys() & holders(folder).keys()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in second.values()))
        wait_for(lambda: str(home) not in all_commands())  # of the cluster's own processes
        assert addresses
        assert all(address.endswith("0100007F") for address in addresses)  # 127.0.0.1
        assert PASSWORD not in errors + commands
        for path in [*home.rglob("*"), *tmp_path.rglob("*")]:
            assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    finally:
        run.kill()
        shutil.rmtree(home, ignore_errors=True)


def others(folder: Folder, before: dict[int, int]) -> dict[int, int]:
    """Slots that a process of another id than before has."""
    return {slot: pid for slot, pid in holders(folder).items() if pid not in before.values()}


def all_commands() -> str:
    """The command line of every process of this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            found.append((entry / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return "\n".join(found)


@pytest.mark.slow
def test_an_address_where_nothing_listens_is_said_at_once(make_config: Any) -> None:
    launcher = Ray(Placement("ray", ray_address="127.0.0.1:1"))
    with pytest.raises(RayAway, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster there"):
        launcher.start(launcher.command("worker"), make_config(), dict, print)


def test_without_the_extra_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'deepfake-study\[ray\]'"):
        check_installed()
