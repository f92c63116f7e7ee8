from study.launchers.monitor import follow as follow
from study.launchers.placement import Launcher as Launcher
from study.launchers.placement import Placement as Placement
from study.launchers.placement import named as named
from study.launchers.placement import slurm_dir as slurm_dir
from study.launchers.run import Ended as Ended
from study.launchers.run import run_workers as run_workers
from study.launchers.slurm import submitted as submitted
