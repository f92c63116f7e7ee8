"""The command: the only room with typer, rich and the environment.

app     every command: parse, load the YAML, call one function
live    what a terminal shows while a study runs, and when it will be over
tables  tables that are printed once
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
