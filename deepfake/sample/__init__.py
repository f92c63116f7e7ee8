"""A data set that is drawn, for tests and first steps.

dataset   photos with faces and face swaps, laid out as OpenForensics
portrait  one drawn face
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
