"""What a classifier is worth: every figure once, and its interval.

figures         METRICS: every figure once, how it is computed and where it is shown
weighting       the faces that figures are computed from, each as often as it was drawn
classification  what logits say: probability, verdict, confusion matrix, cross-entropy
bootstrap       intervals by drawing whole photos again
calibration     temperature, threshold, expected calibration error
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
