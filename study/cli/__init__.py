"""The command: the only room with typer, rich and the environment.

app          the commands in their order, main, and one line for what a user can mend
options      what commands share: their options, the YAML loaded, what is printed
workers      workers that a command starts and waits for
data         sample, prepare, audit, estimate
search       run, jobs, worker, enqueue, stop, status, sync
results      evaluate, compare, report, export, predict, ui
maintenance  doctor, gc
live         what a terminal shows while a study runs, and when it will be over
tables       tables that are printed once
fork_server  what local workers are forked from: their imports, once for all
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
