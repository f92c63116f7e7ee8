"""What a training would say, with figures known by hand."""

import torch

from deepfake.training.loop import EpochStats, FitResult
from study.tracking.spool import SlotRun

LABELS = torch.tensor([0, 1, 1, 0])
# the first and the last face are right: one real as real, one real as fake, and so on
LOGITS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
WEIGHTS = {"0.weight": torch.arange(6.0).reshape(2, 3)}


def stats(epoch: int, val_loss: float) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        train_loss=0.9,
        train_accuracy=0.5,
        val_loss=val_loss,
        val_accuracy=0.5,
        lr=1e-3,
        seconds=2.0,
        images_per_s=10.0,
        best_epoch=0,
        best_val_loss=val_loss,
    )


def result(*losses: float) -> FitResult:
    history = [stats(epoch, loss) for epoch, loss in enumerate(losses)]
    return FitResult(history, history[0], WEIGHTS, LOGITS, "max_epochs")


def start(run: SlotRun, **tags: str) -> None:
    run.start(
        "000 cnn lr=1.0e-03",
        params={"variant": "cnn", "lr": 0.001},
        tags={"variant": "cnn", "baseline": "", **tags},
        files={"config.yaml": "name: sample\n"},
    )


def train(run: SlotRun, epochs: int, **tags: str) -> None:
    """A whole attempt: epoch i has the validation loss 0.6 - i / 10."""
    start(run, **tags)
    losses = [0.6 - epoch / 10 for epoch in range(epochs)]
    for epoch, loss in enumerate(losses):
        run.log_epoch(stats(epoch, loss))
    run.log_result(result(*losses), LABELS)
    run.end("complete", None)
