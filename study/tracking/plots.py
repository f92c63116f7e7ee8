"""The pictures that a worker draws: learning curves and the confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from deepfake.config import LABELS
from deepfake.metrics import ConfusionMatrix
from deepfake.training import EpochStats


def confusion_figure(matrix: ConfusionMatrix, split: str) -> Figure:
    """Counts by truth (rows) and prediction (columns)."""
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(np.array(matrix.rows()), display_labels=LABELS)
    display.plot(ax=axes, cmap="Blues", colorbar=False, values_format="d")
    axes.set(title=split, xlabel="predicted", ylabel="true")
    return figure


def curves_figure(history: Sequence[EpochStats]) -> Figure:
    """Loss and accuracy of training and validation by epoch, the best epoch marked."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    epochs = [stats.epoch for stats in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            values = [getattr(stats, f"{split}_{name}") for stats in history]
            axes.plot(epochs, values, style, marker="o", label=split)
        axes.axvline(history[-1].best_epoch, color="grey", linewidth=0.8, label="best epoch")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure
