"""One self-contained HTML file.

report        the page from what the study, MLflow and the data say
comparison    ours beside the report's published figures, and why they differ
search_plots  history, hyperparameters, importances, pruning, curves
test_plots    ROC, reliability, verdicts, corruptions as plotly figures
test_section  what the page says of test
data_section  what the page says of the faces
reproduce     the commands that make it again
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
