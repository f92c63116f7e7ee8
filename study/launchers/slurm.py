"""Workers as an array of Slurm jobs, submitted by submitit: requeued when their time is up.

Who does what: submitit writes the batch script, warns the job before its time limit and requeues
it; Slurm requeues what it preempts and what a lost node ran; the batch script requeues a job whose
processes were killed. Each time the array task goes on as a new worker, and the slots are where
the study database has them.

What is pickled into the jobs folder (by submitit, for its own job) is a WorkerCommand, which holds
nothing secret. The storage URL reaches the job in the environment, DEEPFAKE_STUDY_STORAGE, which
sbatch exports unless SBATCH_EXPORT or --export says otherwise; so does PGPASSFILE.
"""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from deepfake.errors import ConfigError, UserError
from deepfake.files import write_whole
from study.config import StudyConfig, key_value, yaml_value
from study.launchers.base import (
    CHOSEN,
    MAX_RESTARTS,
    POLL_S,
    Environment,
    ExtraMissing,
    Launcher,
    OnEnd,
    WorkerCommand,
    as_shell,
    away_from_sqlite,
    is_death,
    last_line,
)

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.core.utils import DelayedSubmission


DEFAULT_TIME_MIN = 60  # of a job; its array task is requeued and goes on
REQUEUE_S = 35  # between a worker's end and the time limit, for submitit to requeue its job
MAX_REQUEUES = 10  # of a job whose processes die
TIMES = ("time", "timeout_min")
LISTS = ("setup", "teardown", "srun_args")  # given once for each line
# submitit's names for any cluster, beside those that it has for Slurm
SHARED = {"name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"}
# one task of one node is one worker, and its log is where it is looked for
NOT_OPTIONS = {"nodes", "ntasks_per_node", "num_gpus", "use_srun", "stderr_to_stdout"}
# the end of the batch script, behind the worker's
_REQUEUE_A_DEATH = [
    "code=$?",
    f'case "$code" in {"|".join(map(str, CHOSEN))}) exit "$code" ;; esac',
    "# SLURM_JOB_ID of an array's last task is the whole array's too: name the task",
    "task=$SLURM_JOB_ID",
    '[ -z "$SLURM_ARRAY_JOB_ID" ] || task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
    "# not if the job is on its way out already: cancelled, preempted or requeued",
    'state=$(squeue --noheader --jobs="$task" --format=%T)',
    f'if [ "$state" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ]; then',
    '    scontrol requeue "$task"',
    "fi",
    'exit "$code"',
]


class SlurmError(UserError):
    """Slurm is not here, or refuses what it was asked."""


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, as submitit names them; values are YAML, those of LISTS a line each.

    Raises ConfigError for a key that there is not.
    """
    known = _known_options()
    parsed: dict[str, Any] = {}
    for option in options:
        key, text = key_value("--slurm", option, "partition=gpu", known)
        if key in TIMES and not text.isdecimal():  # 4:00:00 is a number to YAML
            raise ConfigError(f"--slurm {option}: must be whole minutes, such as time=240")
        if key in LISTS:
            parsed[key] = [*parsed.get(key, []), text]
        else:
            parsed[key] = yaml_value("--slurm", key, text)
    return parsed


def _known_options() -> set[str]:
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise ExtraMissing("slurm", "submitit") from None
    return {*SHARED, *SlurmExecutor._valid_parameters()} - NOT_OPTIONS


def parameters(
    command: WorkerCommand, name: str, workers: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The array's parameters, as --slurm has them. Raises SlurmError if its time is too short."""
    minutes = own.get("time", own.get("timeout_min", DEFAULT_TIME_MIN))
    warning_s = own.get("signal_delay_s", round(command.grace_s) + REQUEUE_S)
    if not isinstance(warning_s, int):
        raise SlurmError(f"--slurm signal_delay_s={warning_s}: must be whole seconds")
    if 60 * minutes < 2 * warning_s:
        raise SlurmError(
            f"--slurm time={minutes}: the warning comes {warning_s} s before the end, which "
            f"leaves no time to train; give at least {math.ceil(2 * warning_s / 60)} minutes"
        )
    teardown = own.get("teardown", [])
    return {
        "name": name,
        "timeout_min": DEFAULT_TIME_MIN,
        "signal_delay_s": warning_s,
        "array_parallelism": workers,
        **own,
        "teardown": [*_REQUEUE_A_DEATH[:1], *teardown, *_REQUEUE_A_DEATH[1:]],
        "additional_parameters": {"requeue": True, **own.get("additional_parameters", {})},
    }


STATES_S = 5.0  # between two questions to Slurm's controller, which all users share
SILENT = "failed and said nothing"
MAX_TIMEOUTS = 1_000_000  # a study may outlast any number of time limits
WARNINGS = {signal.SIGUSR1, signal.SIGUSR2}  # of which submitit handles one
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
ENDED |= {"OUT_OF_MEMORY", "TIMEOUT", "UNKNOWN"}


class SlurmTask:
    """What submitit calls in a job: one worker, started again a few times if it dies."""

    def __init__(self, command: WorkerCommand) -> None:
        self.command = command
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        for _ in range(1 + MAX_RESTARTS):
            code = self._run_worker()
            if not is_death(code):
                break
            print(f"a worker died (exit code {code})", file=sys.stderr, flush=True)
        sys.exit(as_shell(code))

    def checkpoint(self) -> "DelayedSubmission":
        """On the warning: the worker ends cleanly; submitit requeues what starts another."""
        from submitit.core.utils import DelayedSubmission

        if self._worker is not None:
            self.command.end(self._worker)
        return DelayedSubmission(SlurmTask(self.command))

    def _run_worker(self) -> int:
        # Slurm signals every process of a step: SIGTERM is the worker's own business, while the
        # warning is submitit's. Blocked, not ignored: none that comes now is lost
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        self._worker = self.command.start(own_session=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)
        while (code := self._worker.poll()) is None:
            time.sleep(POLL_S)
        return code


@dataclass(frozen=True)
class JobState:
    """An array task as Slurm's controller has it; UNKNOWN once it has forgotten it."""

    job_id: str  # "12_3": array 12, task 3
    state: str
    node: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class SlurmWorkers:
    """Submitted jobs of one study, by the ids in its folder."""

    def __init__(self, folder: Path, job_ids: Sequence[str]) -> None:
        self.worst = 0
        self.job_ids = job_ids  # of whole arrays
        self._folder = folder
        self._asked_at = float("-inf")
        self._left = True

    def states(self) -> list[JobState]:
        """Every task's state. Raises SlurmError if the controller doesn't answer.

        By squeue, not by submitit's job.state: that asks sacct, which knows nothing where Slurm
        keeps no accounting, and slows to one look in ten minutes.
        """
        found = []
        for job_id in self.job_ids:
            wanted = ["--array", "--states=all", "--noheader", f"--jobs={job_id}"]
            answer = _slurm("squeue", *wanted, "--format=%F|%K|%T|%N", forgotten="")
            for line in answer.splitlines():
                array, task, state, node = line.split("|")
                found.append(JobState(f"{array}_{task}" if task != "N/A" else array, state, node))
            if not answer:
                found.append(JobState(job_id, "UNKNOWN", ""))
        return found

    def cancel(self) -> None:
        """Slurm sends SIGTERM: workers free their slots. Waiting jobs never start."""
        for job_id in self.job_ids:
            _slurm("scancel", job_id, forgotten="")

    def poll(self) -> bool:
        time.sleep(POLL_S)
        if time.monotonic() < self._asked_at + STATES_S:
            return self._left
        self._asked_at = time.monotonic()
        try:
            self._left = not all(job.ended for job in self.states())
        except SlurmError:  # a controller that is away keeps its jobs
            return self._left
        if not self._left:
            self.worst = 2 if self.last_words().startswith("error: ") else 1
        return self._left

    def end(self, number: int) -> None:
        self.cancel()

    def drop_waiting(self) -> None:
        for job_id in self.job_ids:
            with suppress(SlurmError):  # they would only find nothing to do
                _slurm("scancel", "--state=PENDING", job_id, forgotten="")

    def last_words(self) -> str:
        logs = sorted(
            (log for job_id in self.job_ids for log in self._folder.glob(f"{job_id}_*_log.err")),
            key=lambda log: log.stat().st_mtime,
        )
        lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
        own = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd:"))]
        return own[-1] if own else f"see {self._folder}"


def submitted(folder: Path) -> SlurmWorkers:
    """The jobs that were submitted for the study of folder so far, Slurm's memory permitting."""
    return SlurmWorkers(folder, _remembered(folder))


def _executor(folder: Path) -> "AutoExecutor":
    try:
        from submitit import AutoExecutor

        return AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
    except ImportError:
        raise ExtraMissing("slurm", "submitit") from None
    except RuntimeError:
        raise SlurmError(
            "--launcher slurm: srun is not on the PATH; start this where sbatch works"
        ) from None


def _slurm(*command: str, forgotten: str) -> str:
    """What a command of Slurm says; forgotten if it no longer knows the job."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not on the PATH; start this where it is") from None
    if done.returncode and "Invalid job id" in done.stderr:
        return forgotten
    if done.returncode:
        raise SlurmError(f"{command[0]}: {last_line(done.stderr, SILENT)}")
    return done.stdout


def _remember(folder: Path, job_id: str) -> None:
    with FileLock(folder / "jobs.json.lock"):
        jobs = {"jobs": [*_remembered(folder), job_id]}
        write_whole(folder / "jobs.json", json.dumps(jobs).encode())


def _remembered(folder: Path) -> list[str]:
    path = folder / "jobs.json"
    if not path.exists():
        return []
    ids = json.loads(path.read_text())["jobs"]
    if not all(isinstance(job_id, str) and job_id.isdecimal() for job_id in ids):
        raise SlurmError(f"{path}: not a list of job ids; it was written by someone else")
    return list(ids)


def slurm_dir(config: StudyConfig) -> Path:
    """Ids, batch scripts and logs of a study's Slurm jobs."""
    return config.checkpoints_dir / "slurm"


class Slurm(Launcher):
    """An array of jobs, a worker each."""

    takes = ("slurm", "detach")

    def check(self, config: StudyConfig, env: Mapping[str, str]) -> None:
        if self.placement.detach and self.placement.timeout_s is not None:
            raise UserError(
                "--timeout needs a run that waits, not --detach; end the study with: "
                "deepfake-study stop CONFIG"
            )
        parse_options(self.placement.slurm)

    def warnings(self, config: StudyConfig, env: Mapping[str, str]) -> Iterator[str]:
        return away_from_sqlite(config)

    def start(
        self,
        command: WorkerCommand,
        config: StudyConfig,
        environment: Environment,
        on_end: OnEnd,
    ) -> SlurmWorkers:
        """Submit an array of workers. Raises SlurmError if Slurm refuses it.

        The study's folder is seen by all nodes: it keeps ids, batch scripts and logs.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        workers, folder = self.placement.workers or 1, slurm_dir(config)
        own = {"cpus_per_task": config.train.threads, **parse_options(self.placement.slurm)}
        wanted = parameters(command, config.name, workers, own)
        told = {f"slurm_{key}": value for key, value in wanted.items()}
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # whoever writes there has the jobs run his pickles
        executor = _executor(folder)
        try:
            executor.update_parameters(**told)
            jobs = executor.submit_array([SlurmTask(command)] * workers)
        except (FailedJobError, FailedSubmissionError, TypeError, ValueError) as error:
            raise SlurmError(f"--launcher slurm: {last_line(str(error), SILENT)}") from None
        job_id = jobs[0].job_id.partition("_")[0]
        _remember(folder, job_id)
        return SlurmWorkers(folder, [job_id])
