"""A study whose workers are killed and frozen while its servers go; then what is left, counted.

python -m tests.e2e.chaos --seed 3 --storage postgres
"""

import argparse
import json
import random
import re
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from mlflow import MlflowClient
from optuna.trial import TrialState

from study.config.schema import StudyConfig
from study.slots.records import SlotRecord
from study.slots.slots import Slots
from study.slots.study import join
from tests.support import mlflow_server, postgres
from tests.support.forked import WAIT_S, Forked, wait_until
from tests.support.runs import Folder

WORKERS, SLOTS, EPOCHS = 8, 24, 3
KILLS, FREEZES = 10, 2
FROZEN_S = 9.0  # the lease of 3 s is over, and two beats of watching it
MLFLOW_AWAY_S = 20.0
EPOCH = re.compile(r"slot (\d+) attempt (\d+) epoch (\d+) val_loss (\S+)")
TROUBLE = re.compile(r"^.* ERROR .*|^Traceback.*(?:\n .*)*\n.*", re.MULTILINE)
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}  # MLflow's word for ours


@dataclass(frozen=True)
class Servers:
    mlflow: mlflow_server.MlflowServer
    postgres: postgres.Postgres | None  # None: the study is on SQLite


@dataclass
class Crew:
    """The workers of a study: a supervisor that puts another in the place of a killed one."""

    folder: Folder
    all: list[Forked] = field(default_factory=list)
    killed: list[Forked] = field(default_factory=list)
    thaw_at: dict[Forked, float] = field(default_factory=dict)  # of those that are frozen

    def start(self) -> Forked:
        log = self.folder.path / f"worker-{len(self.all)}.log"
        self.all.append(Forked(self.folder, log, "worker", "--device", "cpu"))
        return self.all[-1]

    def awake(self) -> list[Forked]:
        return [w for w in self.all if w.returncode is None and w not in self.thaw_at]

    def trained(self) -> list[tuple[int, int, int]]:
        """Slot, attempt and epoch of every epoch that a worker has trained."""
        said = "".join(worker.said() for worker in self.all)
        return [(int(slot), int(a), int(epoch)) for slot, a, epoch, _ in EPOCH.findall(said)]

    def thaw(self, now: float) -> None:
        for worker in [w for w, due in self.thaw_at.items() if due <= now]:
            del self.thaw_at[worker]
            worker.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for worker in self.all:
            worker.kill()


def run_chaos(folder: Folder, servers: Servers, seed: int) -> dict[str, Any]:
    """The counts of a study that went through all of it."""
    config = folder.study_config()
    crew, started = Crew(folder), time.monotonic()
    try:
        for _ in range(WORKERS):
            crew.start()
        happened = disturb(crew, config, servers, random.Random(seed))
        for worker in crew.all:
            worker.wait()
    finally:
        crew.end()
        servers.mlflow.start()
    done = folder.call("sync")
    assert done.returncode == 0, done.stderr
    slots = join(config)
    return {
        "seed": seed,
        "storage": config.study.storage.get_secret_value().partition(":")[0],
        "seconds": round(time.monotonic() - started),
        **happened,
        **count_slots(config, slots.records()),
        **count_epochs(crew, slots.records()),
        **count_runs(config, slots.records()),
        **count_leftovers(crew, config),
    }


def disturb(
    crew: Crew, config: StudyConfig, servers: Servers, rng: random.Random
) -> dict[str, int]:
    """Let each thing happen at its moment, a number of trained epochs; how often each did."""
    kinds = ["kill"] * KILLS + ["freeze"] * FREEZES + ["mlflow"]
    kinds += ["postgres"] if servers.postgres else []
    rng.shuffle(kinds)
    # of 72 epochs at most: the pruner takes some
    moments = sorted(rng.randint(1, SLOTS * EPOCHS // 2) for _ in kinds)
    wait_until(lambda: len(crew.trained()) > 0, "an epoch is trained")
    slots = join(config)
    mlflow_back_at, deadline = 0.0, time.monotonic() + WAIT_S
    happened: Counter[str] = Counter()
    while kinds or crew.thaw_at or mlflow_back_at:
        now = time.monotonic()
        assert now < deadline, f"{kinds} never came: {len(crew.trained())} epochs"
        crew.thaw(now)
        if mlflow_back_at and now >= mlflow_back_at:
            servers.mlflow.start()
            mlflow_back_at = 0.0
        if kinds and len(crew.trained()) >= moments[0]:
            kind = kinds.pop(0)
            moments.pop(0)
            happened[kind] += 1
            if kind == "mlflow":
                servers.mlflow.stop()
                mlflow_back_at = now + MLFLOW_AWAY_S
            else:
                happen(kind, crew, slots, servers, rng)
        time.sleep(0.05)
    return {
        "kills": happened["kill"],
        "freezes": happened["freeze"],
        "mlflow_outages": happened["mlflow"],
        "postgres_crashes": happened["postgres"],
    }


def happen(kind: str, crew: Crew, slots: Slots, servers: Servers, rng: random.Random) -> None:
    match kind:
        case "kill":
            victim = pick(crew, slots, rng)
            victim.kill()
            crew.killed.append(victim)
            crew.start()
        case "freeze":
            victim = pick(crew, slots, rng)
            victim.send_signal(signal.SIGSTOP)
            crew.thaw_at[victim] = time.monotonic() + FROZEN_S
        case "postgres":
            assert servers.postgres is not None
            servers.postgres.stop(signal.SIGQUIT)  # at once, as a crash: clients are cut off
            servers.postgres.start()
        case _:
            raise AssertionError(kind)


def pick(crew: Crew, slots: Slots, rng: random.Random) -> Forked:
    """Nine times of ten a worker that has a slot, else any."""
    awake = crew.awake()
    pids = {int((r.worker or ":0").split(":")[1]) for r in slots.records() if r.state == "running"}
    busy = [worker for worker in awake if worker.pid in pids]
    return rng.choice(busy if busy and rng.random() < 0.9 else awake)


def count_slots(config: StudyConfig, records: list[SlotRecord]) -> dict[str, int]:
    study = optuna.load_study(
        study_name=config.name, storage=config.study.storage.get_secret_value()
    )
    trials = study.get_trials(deepcopy=False)
    ended = Counter(
        trial.user_attrs["slot"]
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    return {
        "slots": len(records),
        "finished": sum(record.finished for record in records),
        "finished_twice": sum(count - 1 for count in ended.values()),
        "baselines_complete": sum(r.state == "complete" for r in records if r.baseline),
        "attempts_lost": sum(t.state == TrialState.FAIL for t in trials),
        "open_trials": sum(not t.state.is_finished() for t in trials),
    }


def count_epochs(crew: Crew, records: list[SlotRecord]) -> dict[str, int]:
    """Trained twice: over all slots; beyond: more often than their slot's attempts explain."""
    trained = Counter((slot, epoch) for slot, _, epoch in crew.trained())
    twice: Counter[int] = Counter()
    for (slot, _), count in trained.items():
        twice[slot] += count - 1
    return {
        "epochs": sum(len(record.losses) for record in records),
        "epochs_trained": sum(trained.values()),
        "epochs_twice": sum(twice.values()),
        "epochs_beyond": sum(max(0, twice[r.number] - r.attempt) for r in records),
    }


def count_runs(config: StudyConfig, records: list[SlotRecord]) -> dict[str, int]:
    """runs_true: one run for the slot, in the slot's state, with the slot's curve."""
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    true = 0
    for record in records:
        own = [run for run in runs if run.data.tags.get("slot") == str(record.number)]
        curves = [client.get_metric_history(run.info.run_id, "val_loss") for run in own]
        points = [[(metric.step, metric.value) for metric in curve] for curve in curves]
        statuses = [run.info.status for run in own]
        true += (statuses, points) == (
            [STATUS[record.state]],
            [sorted(record.losses.items())],
        )
    return {
        "runs": sum("slot" in run.data.tags for run in runs),
        "runs_true": true,
        "parents_finished": sum(
            "slot" not in run.data.tags and run.info.status == "FINISHED" for run in runs
        ),
        "open_runs": sum(run.info.status in ("RUNNING", "SCHEDULED") for run in runs),
    }


def count_leftovers(crew: Crew, config: StudyConfig) -> dict[str, Any]:
    """Processes, files in the checkpoint folder, and what the workers said of trouble."""
    sessions = {worker.pid for worker in crew.all}
    kept = [path for path in config.checkpoints_dir.rglob("*") if path.is_file()]
    said = "".join(worker.said() for worker in crew.all)
    return {
        "processes_left": sum(session in sessions for session in sessions_of_processes()),
        "files_left": sorted(path.name for path in kept if path.suffix != ".lock"),
        "odd_exits": sum(
            worker.returncode != 0 for worker in crew.all if worker not in crew.killed
        ),
        "errors": TROUBLE.findall(said),
    }


def sessions_of_processes() -> list[int]:
    """The session of each process of this machine."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # ended meanwhile
            continue
        state, _, _, session = text.rpartition(")")[2].split()[:4]
        if state != "Z":
            found.append(int(session))
    return found


def chaos_folder(path: Path, name: str, storage: str, tracking_uri: str) -> Folder:
    """Prepared for a study of 24 slots of a second or two."""
    folder = Folder(
        path,
        24,
        f"name={name}",
        f"study.n_trials={SLOTS}",
        f"train.max_epochs={EPOCHS}",
        "study.heartbeat_s=1",
        "study.lease_s=3",
        f"tracking.uri={tracking_uri}",
    )
    folder.own_env["DEEPFAKE_STUDY_STORAGE"] = storage
    done = folder.call("prepare")
    assert done.returncode == 0, done.stderr
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--folder", type=Path, help="an empty one, kept: logs, databases")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        path = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path.mkdir(parents=True, exist_ok=True)
        mlflow = stack.enter_context(mlflow_server.running(path))
        server, storage = None, f"sqlite:///{path}/study.db"
        if chosen.storage == "postgres":
            binaries = postgres.find_binaries()
            assert binaries is not None, "no PostgreSQL server here (Debian: postgresql)"
            server = stack.enter_context(postgres.running(binaries))
            storage = server.new_database()
        folder = chaos_folder(path, "chaos", storage, mlflow.uri)
        counts = run_chaos(folder, Servers(mlflow, server), chosen.seed)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
