"""Where workers run: on this machine, through Slurm, through Ray.

launchers  LAUNCHERS by name: one entry a launcher
base       the protocol of a launcher, its options, and the worker as a command line
local      processes on this machine, a GPU each
forked     how they begin in a moment: forked from a process that has imported everything
slurm      an array of Slurm jobs, requeued at their limit
ray        Ray tasks, on a cluster or on this machine
run        workers started, watched, and how they ended
monitor    looks at the study while its workers run
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
