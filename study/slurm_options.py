"""What `--slurm KEY=VALUE` may say, and what submitit is told: the array of one `run`."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from deepfake.errors import UserError
from study.command import CHOSEN, ExtraMissing, WorkerCommand

DEFAULT_TIME_MIN = 60  # of a job; its array task is requeued and goes on
REQUEUE_S = 35  # between a worker's end and the time limit, for submitit to requeue its job
MAX_REQUEUES = 10  # of a job whose processes die
TIMES = ("time", "timeout_min")
LISTS = ("setup", "teardown", "srun_args")  # given once for each line
# one task of one node is one worker, and its log is where it is looked for
NOT_OPTIONS = {"nodes", "ntasks_per_node", "tasks_per_node", "num_gpus", "use_srun"}
NOT_OPTIONS |= {"stderr_to_stdout"}
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

    Raises SlurmError for a key that there is not.
    """
    known = _known_options()
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise SlurmError(f"--slurm {option!r}: must be KEY=VALUE, such as partition=gpu")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
            raise SlurmError(f"--slurm: unknown key '{key}'; {hint}")
        if key in TIMES and not text.isdecimal():  # 4:00:00 is a number to YAML
            raise SlurmError(f"--slurm {option}: must be whole minutes, such as time=240")
        if key in LISTS:
            parsed[key] = [*parsed.get(key, []), text]
            continue
        try:
            parsed[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SlurmError(f"--slurm {key}: the value is not YAML") from None
    return parsed


def _known_options() -> set[str]:
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise ExtraMissing("slurm", "submitit") from None
    accepted = {*SlurmExecutor._valid_parameters(), *SlurmExecutor._equivalence_dict()}
    return accepted - NOT_OPTIONS


def parameters(
    command: WorkerCommand, name: str, workers: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The array's parameters, in submitit's names. Raises SlurmError if its time is too short."""
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
        "job_name": name,
        "time": DEFAULT_TIME_MIN,
        "signal_delay_s": warning_s,
        "array_parallelism": workers,
        **own,
        "teardown": [*_REQUEUE_A_DEATH[:1], *teardown, *_REQUEUE_A_DEATH[1:]],
        "additional_parameters": {"requeue": True, **own.get("additional_parameters", {})},
    }
