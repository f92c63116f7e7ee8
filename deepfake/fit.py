"""The training loop: Adam, plateau, early stopping, best weights, a state to continue from."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepfake.config import ConfigError, TrainConfig
from deepfake.metrics import accuracy, cross_entropy, predict
from deepfake.seeds import derive_seed

EVAL_BATCHES = 4  # a validation batch holds this many training batches: no gradients, so it fits
_INIT = 2**31  # in the place of an epoch, for the seed of the initial weights


Ended = Literal["max_epochs", "early_stop", "on_epoch", "diverged"]


class Feed(Protocol):
    """Faces of one split: labels (N,) and batches of normalised images."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class EpochStats:
    """What one epoch left. Losses are cross-entropies, means over faces."""

    epoch: int  # from 0
    train_loss: float
    train_accuracy: float
    val_loss: float  # the monitor
    val_accuracy: float
    lr: float  # that this epoch used
    seconds: float
    images_per_s: float  # training faces
    best_epoch: int  # so far
    best_val_loss: float

    @property
    def bad_epochs(self) -> int:
        """Epochs since the best."""
        return self.epoch - self.best_epoch

    def plateaued(self, patience: int) -> bool:
        return self.bad_epochs >= patience


@dataclass(frozen=True)
class FitResult:
    """A training that ended. best and its weights and logits are None if no epoch was finite."""

    history: list[EpochStats]
    best: EpochStats | None
    best_state: dict[str, Tensor] | None  # on the CPU
    best_logits: Tensor | None  # (N_val, 2), of the best epoch
    ended: Ended


@dataclass
class _Progress:
    """What a checkpoint holds besides model, optimiser and scheduler."""

    history: list[EpochStats] = field(default_factory=list)
    best_state: dict[str, Tensor] | None = None
    best_logits: Tensor | None = None

    @property
    def last(self) -> EpochStats | None:
        return self.history[-1] if self.history else None

    @property
    def best(self) -> EpochStats | None:
        return self.history[self.history[-1].best_epoch] if self.history else None

    def add(self, stats: EpochStats, model: nn.Module, logits: Tensor) -> None:
        self.history.append(stats)
        if stats.best_epoch == stats.epoch:
            state = model.state_dict()
            self.best_state = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.best_logits = logits

    def result(self, ended: Ended) -> FitResult:
        return FitResult(self.history, self.best, self.best_state, self.best_logits, ended)


def fit(
    build: Callable[[], nn.Module],
    train: Feed,
    val: Feed,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[EpochStats], bool],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    resume: dict[str, Any] | None = None,
    save: Callable[[int, dict[str, Any]], None] = lambda epoch, state: None,
) -> FitResult:
    """Train until max_epochs, the early stop, a non-finite loss, or until on_epoch says False.

    The curve depends on build, data, config, seed, device and torch.get_num_threads() alone.
    save (epoch, state) is called after each epoch, before on_epoch. With a state it was given as
    resume, training continues behind that epoch, and on_epoch first sees the epochs of its
    history again (only its answer to the last one counts). on_batch (done, total), of an epoch's
    training and validation batches, may raise to drop the epoch.
    """
    set_precision(config, device)
    torch.manual_seed(derive_seed(seed, _INIT))
    model = build().to(device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    scheduler = ReduceLROnPlateau(
        optimizer, factor=config.lr_factor, patience=config.lr_patience, threshold=1e-4
    )
    progress = _restore(resume, model, optimizer, scheduler)
    verdicts = [on_epoch(stats) for stats in progress.history]
    go_on = verdicts[-1] if verdicts else True

    while (ended := _end(progress.last, config, go_on)) is None:
        epoch = len(progress.history)
        started = time.perf_counter()
        lr = optimizer.param_groups[0]["lr"]
        tick = _ticks(train, val, config, on_batch)
        train_loss, train_accuracy = train_one_epoch(
            model, train, optimizer, config, derive_seed(seed, epoch), device, tick
        )
        logits = evaluate(model, val, config, device, tick)
        val_loss = cross_entropy(logits, val.labels)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            ended = "diverged"
            break
        scheduler.step(val_loss)  # after evaluate(): the plateau rule must see this epoch
        best = progress.best
        improved = best is None or val_loss < best.val_loss
        seconds = time.perf_counter() - started
        stats = EpochStats(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=accuracy(logits, val.labels),
            lr=lr,
            seconds=seconds,
            images_per_s=len(train) / seconds,
            best_epoch=epoch if improved or best is None else best.epoch,
            best_val_loss=val_loss if improved or best is None else best.val_loss,
        )
        progress.add(stats, model, logits)
        save(epoch, _state(progress, model, optimizer, scheduler))
        go_on = on_epoch(stats)

    return progress.result(ended)


def train_one_epoch(
    model: nn.Module,
    feed: Feed,
    optimizer: Adam,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """One pass over the training faces; its loss and accuracy, both means over faces.

    tick is called after each batch.
    """
    torch.manual_seed(seed)  # dropout
    order = torch.Generator().manual_seed(seed)
    model.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in feed.batches(config.batch_size, device, order):
        optimizer.zero_grad(set_to_none=True)
        with autocast(config, device):
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.detach().double() * len(labels)
        correct += (predict(logits.detach()) == labels).sum()
        tick()
    return loss_sum.item() / len(feed), correct.item() / len(feed)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    feed: Feed,
    config: TrainConfig,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """The logits (N, 2) of a feed in its own order, float32 on the CPU."""
    model.eval()
    logits = []
    for images, _ in feed.batches(config.batch_size * EVAL_BATCHES, device):
        with autocast(config, device):
            logits.append(model(images).float())
        tick()
    return torch.cat(logits).cpu()


def _ticks(
    train: Feed, val: Feed, config: TrainConfig, on_batch: Callable[[int, int], None]
) -> Callable[[], None]:
    """Counts the batches of one epoch, and hands each to on_batch."""
    total = math.ceil(len(train) / config.batch_size)
    total += math.ceil(len(val) / (config.batch_size * EVAL_BATCHES))
    done = itertools.count(1)
    return lambda: on_batch(next(done), total)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def set_precision(config: TrainConfig, device: torch.device) -> None:
    """Full fp32 or, where bf16 asks for speed, TF32 too. Raises ConfigError for bf16 on a CPU."""
    if config.precision == "bf16" and device.type != "cuda":
        raise ConfigError("train.precision: bf16 needs CUDA and this device is the CPU; use fp32")
    tf32 = config.precision == "bf16"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # torch's own default is True


def _end(last: EpochStats | None, config: TrainConfig, go_on: bool) -> Ended | None:
    if last is None:
        return None
    if last.epoch + 1 >= config.max_epochs:
        return "max_epochs"
    if last.bad_epochs >= config.stop_patience:
        return "early_stop"
    return None if go_on else "on_epoch"


def _state(
    progress: _Progress, model: nn.Module, optimizer: Adam, scheduler: ReduceLROnPlateau
) -> dict[str, Any]:
    # no generator: (seed, epoch) reseeds order and dropout at each epoch's start
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": [asdict(stats) for stats in progress.history],
        "best_state": progress.best_state,
        "best_logits": progress.best_logits,
    }


def _restore(
    state: dict[str, Any] | None,
    model: nn.Module,
    optimizer: Adam,
    scheduler: ReduceLROnPlateau,
) -> _Progress:
    if state is None:
        return _Progress()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return _Progress(
        history=[EpochStats(**stats) for stats in state["history"]],
        best_state=state["best_state"],
        best_logits=state["best_logits"],
    )
