"""Where the workers of a study run, as the command line says it."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Placement:
    """The launcher, by its name in LAUNCHERS, and its options; None is the launcher's default."""

    launcher: str = "local"
    workers: int | None = None
    workers_per_gpu: int | None = None
    slurm: tuple[str, ...] = ()
    detach: bool = False
    ray_address: str | None = None
    gpus_per_worker: float | None = None
    grace_s: float = 25.0
    timeout_s: float | None = None  # from the workers' start to their clean end
    device: str | None = None  # of all workers; None takes every GPU that is visible

    def given(self) -> set[str]:
        """The fields that say something else than the default."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}
