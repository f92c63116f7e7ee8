from .augment import augmentation as augmentation, augmented as augmented
from .corruptions import (
    KINDS as KINDS,
    SUITE as SUITE,
    logits_under as logits_under,
    robust_faces as robust_faces,
    suite_sha256 as suite_sha256,
)
