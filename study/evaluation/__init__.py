"""What finalists are worth on test, and who is better: the only maker of an Opening.

evaluator       proves logged figures, opens test for a frozen list of finalists
finalists       who they are, and their trainings with fresh seeds
results         what an evaluation found, as the study's database holds it
predictions     one table of what each finalist says of each face
analysis        every figure and interval from that table alone
verdict         better, worse, not distinguishable: the test, and its sentence
error_analysis  error rates by what a face is like; ROC, reliability; the worst mistakes
robustness      finalists on test faces under corruptions
artifacts       what an evaluation leaves in MLflow, and how the report gets it again
export          a slot proven, exported and registered, with its model card
leak            what a leak is worth: a baseline trained on faces split both ways
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
