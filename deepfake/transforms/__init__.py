"""Changes of pictures on the device: corruptions that judge, augmentation that trains.

jpeg         JPEG as it changes pixels, on the device
corruptions  JPEG, blur, scaling, noise, light at several levels: the suite that judges
augment      random changes of training faces
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
