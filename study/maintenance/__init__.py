"""What is wrong with a study, and what nobody needs any more.

doctor  studies, slots, runs: what is wrong, and what --fix mends
checks  machine, packages, data: what is wrong with each
gc      weights and checkpoints nobody needs
disk    what a study takes of the disk
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
