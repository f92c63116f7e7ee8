"""Which trial next and which goes on; pure, no database.

space    what a trial draws, and what it drew
sampler  the sampler of one attempt at a slot
pruner   stops a trial that its variant's finished peers have left behind
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
