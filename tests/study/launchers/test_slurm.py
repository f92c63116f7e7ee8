"""Workers as Slurm jobs, on a real cluster of two nodes on 127.0.0.1."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfake.errors import ConfigError
from study.launchers.base import Placement
from study.launchers.slurm import Slurm, SlurmError, parse_options, slurm_dir, submitted
from tests.support import slurm_cluster
from tests.support.exact import assert_exact, holders, open_slots, wait_for
from tests.support.postgres import PASSWORD, Postgres
from tests.support.runs import REPOSITORY, Folder, without_frozen
from tests.support.slurm_cluster import SlurmCluster

pytest.importorskip("submitit", reason="pip install '.[slurm]'")

TINY = ("study.heartbeat_s=1", "study.lease_s=3", "study.prune_patience=9")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SlurmCluster]:
    if why := slurm_cluster.missing():
        pytest.skip(why)
    (tmp_path / "cluster").mkdir()
    with slurm_cluster.running(tmp_path / "cluster") as started:
        yield started


def study_on(cluster: SlurmCluster, path: Path, *overrides: str) -> Folder:
    """A tiny study, prepared, whose commands see the cluster."""
    folder = Folder(path, 24, *TINY, *overrides)
    folder.own_env = cluster.env
    assert folder.call("prepare").returncode == 0
    return folder


def slots_held(folder: Folder, cluster: SlurmCluster, node: str) -> dict[str, int]:
    """Workers of a node that hold a slot: process by array task."""
    held = set(holders(folder).values())
    return {task: pid for pid, task in cluster.workers(node).items() if pid in held}


@pytest.mark.slow
def test_an_array_with_one_task_warned_one_killed_and_one_node_lost_ends_exactly(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    slow = without_frozen(tmp_path)  # a slot that is looked at is still held when it is hit
    longer = ("study.n_trials=12", "train.max_epochs=12", "train.stop_patience=12")
    never_pruned = "study.prune_patience=12"
    folder = study_on(cluster, tmp_path / "study", *longer, never_pruned, *slow)
    run = folder.start_afresh("run", "--launcher", "slurm", "--workers", "4")
    wait_for(lambda: run.poll() is not None or len(cluster.workers()) == 4)
    assert set(cluster.workers("n1").values()) | set(cluster.workers("n2").values()) == set("0123")

    # what Slurm sends ahead of a time limit
    warned, pid = wait_for(lambda: slots_held(folder, cluster, "n1")).popitem()
    cluster.call("scancel", "--signal=USR2", f"{cluster.tasks()[warned]['ArrayJobId']}_{warned}")
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 40)
    assert pid not in holders(folder).values()  # freed, not left to its lease

    # what is around a worker may be killed too
    killed, pid = next((t, p) for p, t in cluster.workers("n1").items() if t != warned)
    os.kill(cluster.parent(pid), signal.SIGKILL)

    # a worker of the node dies with it, the other does not know that it was given up
    lost = wait_for(lambda: slots_held(folder, cluster, "n2"))
    cluster.lose("n2")
    os.kill(lost.popitem()[1], signal.SIGKILL)
    wait_for(lambda: cluster.tasks()[killed]["Restarts"] == "1")

    out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "12 complete" in out
    assert cluster.tasks()[warned]["Restarts"] == "1"
    assert_exact(folder, 12)
    wait_for(lambda: cluster.workers() == {})


@pytest.mark.slow
def test_ctrl_c_cancels_the_jobs_and_frees_their_slots(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    folder = study_on(cluster, tmp_path / "study", "study.n_trials=3", "train.max_epochs=50")
    run = folder.start_afresh("run", "--launcher", "slurm", "--workers", "2")
    wait_for(lambda: run.poll() is not None or slots_held(folder, cluster, "n1"))
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=90)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "continue with: deepfake-study run" in errors
    assert "--launcher slurm --workers 2" in errors
    assert {task["JobState"] for task in cluster.tasks().values()} == {"CANCELLED"}
    assert cluster.workers() == {}
    assert holders(folder) == {}  # freed by the workers: nobody else is there to do it


@pytest.mark.slow
def test_detached_jobs_are_found_again_and_hold_no_password(
    cluster: SlurmCluster, tmp_path: Path, postgres: Postgres
) -> None:
    folder = study_on(cluster, tmp_path / "study", "study.n_trials=3", "train.max_epochs=50")
    folder.own_env = {**cluster.env, "DEEPFAKE_STUDY_STORAGE": postgres.new_database()}
    options = ("--slurm", "time=10", "--slurm", "setup=export NOTHING=1", "--detach")
    done = folder.run_afresh("run", "--launcher", "slurm", *options)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    assert job.isdecimal()
    assert "deepfake-study jobs" in done.stderr

    wait_for(lambda: holders(folder))
    assert folder.json("jobs") == [{"job": job, "state": "RUNNING", "node": "n1"}]
    told = cluster.call("scontrol", "show", "job", "--details")
    told += cluster.call("scontrol", "write", "batch_script", job, "-")
    for pid in cluster.processes():
        told += Path(f"/proc/{pid}/cmdline").read_text()
    assert PASSWORD not in told + done.stdout + done.stderr
    for path in folder.path.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path

    assert folder.run_afresh("jobs", "--cancel").returncode == 0
    wait_for(lambda: folder.json("jobs")[0]["state"] == "CANCELLED")
    assert holders(folder) == {}


@pytest.mark.slow
def test_a_mistake_that_only_the_nodes_see_ends_the_run_with_its_line(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    folder = study_on(cluster, tmp_path / "study", "study.n_trials=3")
    there = "setup=export DEEPFAKE_STUDY_STORAGE=nowhere://here"
    done = folder.run_afresh("run", "--launcher", "slurm", "--workers", "2", "--slurm", there)
    assert done.returncode == 2
    assert "a worker ended with exit code 2: error: study.storage: nowhere" in done.stderr


@pytest.mark.slow
def test_the_batch_script_requeues_what_was_warned_and_what_was_killed(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    folder = study_on(cluster, tmp_path / "study", "study.n_trials=4", "train.max_epochs=6")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    arguments = folder.arguments("")[1:]
    script = REPOSITORY / "scripts/slurm_worker.sbatch"
    done = subprocess.run(
        ["sbatch", "--parsable", "--array=0-1", "--time=10", script, *arguments],
        env={**folder.env, "PATH": path},
        cwd=folder.path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    wait_for(lambda: len(cluster.workers()) == 2 and len(holders(folder)) == 2)
    by_task = {task: pid for pid, task in cluster.workers().items()}
    os.kill(by_task["0"], signal.SIGKILL)
    cluster.call("scancel", "--batch", "--signal=TERM", f"{job}_1")
    wait_for(lambda: open_slots(folder).records()[-1].finished)
    wait_for(lambda: {t["JobState"] for t in cluster.tasks().values()} == {"COMPLETED"})
    assert [task["Restarts"] for task in cluster.tasks().values()] == ["1", "1"]
    assert_exact(folder, 4)


def test_options_are_submitits_and_their_values_yaml() -> None:
    options = ["partition=gpu", "time=90", "mem_gb=4.5", "setup=module load cuda", "setup=true"]
    assert parse_options(options) == {
        "partition": "gpu",
        "time": 90,
        "mem_gb": 4.5,
        "setup": ["module load cuda", "true"],  # lines of a script
    }


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("partion=gpu", "unknown key 'partion'; did you mean 'partition'?"),
        ("gpu_per_node=1", "did you mean 'gpus_per_node'?"),
        ("nodes=2", "unknown key 'nodes'"),  # one worker is one task
        ("partition", "must be key=value"),
        ("time=4:00:00", "must be whole minutes"),
    ],
)
def test_an_option_that_submitit_does_not_know_is_refused(option: str, line: str) -> None:
    with pytest.raises(ConfigError, match=r"^--slurm") as refused:
        parse_options([option])
    assert line in str(refused.value)


def test_a_time_that_leaves_none_to_train_is_refused(make_config: Any) -> None:
    launcher = Slurm(Placement("slurm", slurm=("time=1",)))
    with pytest.raises(SlurmError, match=r"comes 60 s before the end.* at least 2 minutes"):
        launcher.start(launcher.command("worker"), make_config(), dict, print)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], ("time=60", "job-name=name", "cpus-per-task=2")),
        (["timeout_min=90", "mem_gb=4", "gpus_per_node=a100:1"], ("time=90", "mem=4GB")),
        (["time=90", "mem=3GB", "cpus_per_task=4"], ("time=90", "mem=3GB", "cpus-per-task=4")),
    ],
)
def test_options_reach_the_batch_script(
    options: list[str],
    lines: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_config: Any,
) -> None:
    for name, script in {"srun": "", "sbatch": "echo Submitted batch job 12"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = Slurm(Placement("slurm", workers=3, slurm=tuple(options)))
    config = make_config("name=name", "train.threads=2")
    launcher.start(launcher.command("worker"), config, dict, print)
    script = next(slurm_dir(config).glob("*submission.sh")).read_text()
    for line in (*lines, "array=0-2%3", "signal=USR2@60", "requeue"):
        assert f"#SBATCH --{line}\n" in script


def test_job_ids_that_are_none_never_reach_slurm(tmp_path: Path) -> None:
    assert submitted(tmp_path).job_ids == []
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": ["12", "--user=root"]}))
    with pytest.raises(SlurmError, match=r"jobs\.json: not a list of job ids"):
        submitted(tmp_path)
