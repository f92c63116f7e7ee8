from .monitor import follow as follow
from .placement import (
    Launcher as Launcher,
    Placement as Placement,
    named as named,
    slurm_dir as slurm_dir,
)
from .run import Ended as Ended, run_workers as run_workers
from .slurm import submitted as submitted
