"""The classifiers, their pretrained weights, and features of a frozen backbone.

build         the network of an entry of VARIANTS, and what a network's module has
cnn           the report's own network
mobilenet_v2  torchvision's, its backbone and our head
layers        what networks share: initialisation, a backbone that stays frozen
pretrained    the weights that a network begins from, and their hash
features      a frozen backbone's output for every face, computed once for all studies
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
