"""One worker: it claims a slot, trains it, tells how it ended, and takes the next.

worker     claim, run, next; what a failure means
objective  one trial on one screen
inputs     what a trial trains on, with which model
setup      what comes before: checks, threads, the study created or joined
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
