from .augment import augmentation as augmentation, augmented as augmented
from .corruptions import (
    SUITE as SUITE,
    VERSION as VERSION,
    logits_under as logits_under,
    robust_faces as robust_faces,
)
