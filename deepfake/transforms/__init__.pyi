from deepfake.transforms.augment import augmentation as augmentation
from deepfake.transforms.augment import augmented as augmented
from deepfake.transforms.corruptions import SUITE as SUITE
from deepfake.transforms.corruptions import VERSION as VERSION
from deepfake.transforms.corruptions import logits_under as logits_under
from deepfake.transforms.corruptions import robust_faces as robust_faces
