"""Whether the data leaks or gives its labels away.

leaks            photos in two splits, faces nearly alike
photo_scan       one reading of each photo for all that the audit asks
perceptual_hash  pictures that look alike, whatever they were saved as
shortcuts        what tells the label without the face: size, colours, encoding, surroundings
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
