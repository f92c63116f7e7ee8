from .base import (
    Environment as Environment,
    Launcher as Launcher,
    Placement as Placement,
    WorkerCommand as WorkerCommand,
)
from .launchers import launcher_named as launcher_named, launcher_of as launcher_of
from .local import Local as Local
from .monitor import follow as follow
from .run import Ended as Ended, run_workers as run_workers
from .slurm import slurm_dir as slurm_dir, submitted as submitted
