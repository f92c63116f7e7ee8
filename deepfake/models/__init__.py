"""The classifiers, their pretrained weights, and features of a frozen backbone.

variants  cnn, mobilenet_v2_frozen, mobilenet_v2_finetuned; their weights
features  a frozen backbone's output for every face, computed once for all studies
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
