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
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from study.command import MAX_RESTARTS, POLL_S, ExtraMissing, WorkerCommand, as_shell, is_death
from study.slurm_options import SlurmError, parameters, parse_options

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.core.utils import DelayedSubmission

STATES_S = 5.0  # between two questions to Slurm's controller, which all users share
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


def submit(
    command: WorkerCommand,
    folder: Path,
    name: str,
    workers: int,
    defaults: Mapping[str, Any],
    options: Sequence[str],
) -> SlurmWorkers:
    """An array of workers. folder: seen by all nodes; keeps ids, batch scripts and logs.

    options: KEY=VALUE of submitit, before the defaults. Raises SlurmError if Slurm refuses,
    ExtraMissing without submitit.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    told = parameters(command, name, workers, {**defaults, **parse_options(options)})
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # whoever writes there has the jobs run his pickles
    executor = _executor(folder)
    try:
        executor.update_parameters(**executor._convert_parameters(told))
        jobs = executor.submit_array([SlurmTask(command)] * workers)
    except (FailedJobError, FailedSubmissionError, TypeError) as error:
        raise SlurmError(f"--launcher slurm: {_last_line(str(error))}") from None
    job_id = jobs[0].job_id.partition("_")[0]
    _remember(folder, job_id)
    return SlurmWorkers(folder, [job_id])


def submitted(folder: Path) -> SlurmWorkers:
    """The jobs that were submitted for the study of folder so far, Slurm's memory permitting."""
    return SlurmWorkers(folder, _remembered(folder))


def _executor(folder: Path) -> "SlurmExecutor":
    try:
        from submitit import SlurmExecutor

        return SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
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
        raise SlurmError(f"{command[0]}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "failed and said nothing"


def _remember(folder: Path, job_id: str) -> None:
    with FileLock(folder / "jobs.json.lock"):
        new = folder / "jobs.json.new"
        new.write_text(json.dumps({"jobs": [*_remembered(folder), job_id]}))
        new.replace(folder / "jobs.json")


def _remembered(folder: Path) -> list[str]:
    path = folder / "jobs.json"
    if not path.exists():
        return []
    ids = json.loads(path.read_text())["jobs"]
    if not all(isinstance(job_id, str) and job_id.isdecimal() for job_id in ids):
        raise SlurmError(f"{path}: not a list of job ids; it was written by someone else")
    return list(ids)
