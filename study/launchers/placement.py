"""Where the workers of a study run, as the command line says it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from deepfake.errors import UserError
from deepfake.parallel import available_cores
from study.config import StudyConfig
from study.launchers.base import OnEnd, WorkerCommand, Workers
from study.launchers.forked import fork_server
from study.launchers.local import LocalWorkers, assign_gpus, visible_gpus
from study.worker import check_precision, pick_device

GRACE_S = 25.0  # what --grace is without being given


class Launcher(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


def named(launcher: str) -> Launcher:
    """Raises UserError for a name that is none."""
    try:
        return Launcher(launcher)
    except ValueError:
        raise UserError(f"--launcher {launcher}: must be local, slurm or ray") from None


OWNERS = {  # options that only one launcher knows
    "--workers-per-gpu": Launcher.LOCAL,
    "--device": Launcher.LOCAL,
    "--slurm": Launcher.SLURM,
    "--detach": Launcher.SLURM,
    "--ray-address": Launcher.RAY,
    "--gpus-per-worker": Launcher.RAY,
}


@dataclass(frozen=True)
class Placement:
    """The launcher and its options; None is the launcher's default."""

    launcher: Launcher
    workers: int | None = None
    workers_per_gpu: int | None = None
    slurm: tuple[str, ...] = ()
    detach: bool = False
    ray_address: str | None = None
    gpus_per_worker: float | None = None
    grace_s: float = GRACE_S
    timeout_s: float | None = None  # from the workers' start to their clean end
    device: str | None = None  # local: of all workers; None takes every GPU that is visible

    @property
    def local(self) -> bool:
        return self.launcher == Launcher.LOCAL

    @property
    def starts_ray(self) -> bool:
        return self.launcher == Launcher.RAY and self.ray_address is None

    def warnings(self, config: StudyConfig, env: Mapping[str, str]) -> Iterator[str]:
        """What is allowed and seldom meant."""
        if self.local:
            cores, threads = available_cores(), config.train.threads
            if (workers := len(self.local_gpus(env))) * threads != cores:
                said = f"{workers} worker{'s' * (workers > 1)} of train.threads {threads} on "
                yield f"{said}{cores} cores; on CPUs one worker a core is best: --workers {cores}"
        elif not self.starts_ray and config.study.storage.get_secret_value().startswith("sqlite"):
            yield "study.storage: SQLite is for one machine"

    def arguments(self) -> list[str]:
        """The command-line options that say this placement again."""
        given = [
            ("--launcher", None if self.local else self.launcher.value),
            ("--workers", self.workers),
            ("--workers-per-gpu", self.workers_per_gpu),
            ("--device", self.device),
            *(("--slurm", option) for option in self.slurm),
            ("--ray-address", self.ray_address),
            ("--gpus-per-worker", self.gpus_per_worker),
            ("--grace", None if self.grace_s == GRACE_S else f"{self.grace_s:g}s"),
            ("--timeout", None if self.timeout_s is None else f"{self.timeout_s:.15g}s"),
        ]
        return [str(part) for pair in given if pair[1] is not None for part in pair]

    def check(self, config: StudyConfig, env: Mapping[str, str]) -> None:
        """Before data is touched. Raises UserError, one line, for what can't be placed so."""
        given = {*self.arguments(), *(("--detach",) if self.detach else ())}
        for option, owner in OWNERS.items():
            if option in given and owner != self.launcher:
                raise UserError(f"{option} is for --launcher {owner}, not {self.launcher}")
        if self.detach and self.timeout_s is not None:
            raise UserError(
                "--timeout needs a run that waits, not --detach; end the study with: "
                "deepfake-study stop CONFIG"
            )
        match self.launcher:
            case Launcher.LOCAL:
                gpus = self.local_gpus(env)  # may refuse
                check_precision(config, torch.device("cpu" if None in gpus else "cuda"))
            case Launcher.SLURM:
                from study.launchers.slurm import parse_options

                parse_options(self.slurm)
            case Launcher.RAY:
                from study.launchers.ray import check_installed

                check_installed()

    def local_gpus(self, env: Mapping[str, str]) -> list[str | None]:
        """The GPU of each local worker; None is the CPU. Raises UserError for no such device."""
        # counted by NVML: this process takes no memory on any of them
        count = torch.cuda.device_count()
        gpus = visible_gpus(env.get("CUDA_VISIBLE_DEVICES"), count)
        if self.device is not None:
            device = pick_device(self.device)
            gpus = [gpus[device.index or 0]] if device.type == "cuda" else []
        return assign_gpus(gpus, self.workers, self.workers_per_gpu or 1)

    def place(
        self,
        config: StudyConfig,
        arguments: tuple[str, ...],
        environment: Callable[[], dict[str, str]],
        on_end: OnEnd,
    ) -> Workers:
        """Start the workers. arguments: behind `deepfake-study`. environment: a worker's, there.

        on_end is called with the name of each that died, where that can be known.
        """
        command = WorkerCommand(arguments, str(Path.cwd()), self.grace_s)
        log_dir = config.checkpoints_dir / "logs"
        match self.launcher:
            case Launcher.LOCAL:
                env = environment()
                server = fork_server(command, env)
                return LocalWorkers(command, self.local_gpus(env), env, log_dir, on_end, server)
            case Launcher.SLURM:
                from study.launchers.slurm import submit

                options = {"cpus_per_task": config.train.threads}
                return submit(
                    command, slurm_dir(config), config.name, self.workers or 1, options, self.slurm
                )
            case Launcher.RAY:
                from study.launchers.ray import start

                return start(
                    command,
                    environment,
                    log_dir,
                    workers=self.workers or 1,
                    cpus=config.train.threads,
                    gpus=self.gpus_per_worker,
                    address=self.ray_address,
                )
            case _:
                raise AssertionError(self.launcher)


def slurm_dir(config: StudyConfig) -> Path:
    """Ids, batch scripts and logs of a study's Slurm jobs."""
    return config.checkpoints_dir / "slurm"
