from .augment import augmentation as augmentation, augmented as augmented
from .corruptions import (
    KINDS as KINDS,
    SUITE as SUITE,
    robust_faces as robust_faces,
    suite_sha256 as suite_sha256,
    under as under,
)
