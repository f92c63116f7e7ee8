"""What a classifier is worth: every figure once, and its interval.

classification  confusion matrix, precision, recall, F1, AUC, EER of logits
scorecard       every figure of one training
bootstrap       intervals by drawing whole photos again
calibration     temperature, threshold, expected calibration error
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
