"""The training loop, and the file it continues from.

loop        fit and evaluate: the plateau rule, the early stop, the best epoch
checkpoint  what a killed training continues from, bit for bit
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
