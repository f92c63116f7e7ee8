"""The training loop: Adam, plateau, early stopping, best weights, a state to continue from."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepfake.config import TrainConfig
from deepfake.metrics import accuracy, cross_entropy, predict
from deepfake.reproducibility import autocast, derive_seed, set_precision

EVAL_BATCHES = 4  # a validation batch holds this many training batches: no gradients, so it fits
_INIT = 2**31  # in the place of an epoch, for the seed of the initial weights

Ended = Literal["max_epochs", "early_stop", "on_epoch", "diverged"]


class Feed(Protocol):
    """Faces of one split: labels (N,) and batches of what the model takes.

    A batch may be overwritten once the next is asked for.
    """

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
    val_loss: float  # the monitor, unless there is a robust_val_loss
    val_accuracy: float
    lr: float  # that this epoch used
    seconds: float
    images_per_s: float  # training faces
    best_epoch: int  # so far, by the monitor
    best_val_loss: float  # of the monitor
    robust_val_loss: float | None = None  # of validation faces under corruptions: the monitor then

    @property
    def monitor(self) -> float:
        """The one number that rules: LR, early stop, best epoch, pruning, objective."""
        return self.val_loss if self.robust_val_loss is None else self.robust_val_loss

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


def fit(
    build: Callable[[], nn.Module],
    train: Feed,
    val: Feed,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[EpochStats], bool],
    robust: Feed | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    resume: dict[str, Any] | None = None,
    save: Callable[[int, dict[str, Any]], None] = lambda epoch, state: None,
) -> FitResult:
    """Train until max_epochs, the early stop, a non-finite loss, or until on_epoch says False.

    The curve depends on build, data, config, seed, device and torch.get_num_threads() alone.
    robust: validation faces under corruptions, whose loss is then the monitor in val's place.
    save (epoch, state) is called after each epoch, in a thread of its own beside the next one,
    and on_epoch once it has returned; if that says False, what there is of the next is dropped.
    With a state it was given as resume, training continues behind that epoch, and on_epoch first
    sees the epochs of its history again (only its answer to the last one counts). on_batch
    (done, total), of an epoch's training and validation batches, may raise to drop the epoch.
    """
    set_precision(config, device)
    torch.manual_seed(derive_seed(seed, _INIT))
    progress = _Progress(build().to(device), config)
    if resume is not None:
        progress.restore(resume)
    model, optimizer = progress.model, progress.optimizer
    verdicts = [on_epoch(stats) for stats in progress.history]
    go_on = verdicts[-1] if verdicts else True

    ended: Ended | None = None
    # what is being written when the block is left is written to its end
    with ThreadPoolExecutor(1, "checkpoint") as pool, suppress(_Unwanted):
        saving = _Saving(pool, save, on_epoch)
        while (ended := _end(progress.last, config, go_on)) is None:
            epoch = len(progress.history)
            started = time.perf_counter() - saving.seconds
            lr = progress.lr
            tick = _ticks(train, (val, robust), config, on_batch, saving.settle)
            train_loss, train_accuracy = train_one_epoch(
                model, train, optimizer, config, derive_seed(seed, epoch), device, tick
            )
            logits = evaluate(model, val, config, device, tick)
            monitor = val_loss = cross_entropy(logits, val.labels)
            robust_val_loss = None
            if robust is not None:
                robust_logits = evaluate(model, robust, config, device, tick)
                monitor = robust_val_loss = cross_entropy(robust_logits, robust.labels)
            saving.settle(wait=True)
            if not all(map(math.isfinite, (train_loss, val_loss, monitor))):
                ended = "diverged"
                break
            # after evaluate(): the plateau rule must see this epoch
            best_epoch, best_val_loss = progress.judge(epoch, monitor)
            seconds = time.perf_counter() - saving.seconds - started
            stats = EpochStats(
                epoch=epoch,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=val_loss,
                val_accuracy=accuracy(logits, val.labels),
                lr=lr,
                seconds=seconds,
                images_per_s=len(train) / seconds,
                best_epoch=best_epoch,
                best_val_loss=best_val_loss,
                robust_val_loss=robust_val_loss,
            )
            progress.add(stats, logits)
            saving.begin(stats, progress.state())
        saving.settle(wait=True)
    return progress.result(ended or "on_epoch")


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


class _Progress:
    """A training under way: all that a checkpoint holds."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = Adam(
            trainable, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._scheduler = ReduceLROnPlateau(
            self.optimizer, factor=config.lr_factor, patience=config.lr_patience, threshold=1e-4
        )
        self.history: list[EpochStats] = []
        self._best_state: dict[str, Tensor] | None = None
        self._best_logits: Tensor | None = None

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def last(self) -> EpochStats | None:
        return self.history[-1] if self.history else None

    @property
    def best(self) -> EpochStats | None:
        return self.history[self.history[-1].best_epoch] if self.history else None

    def judge(self, epoch: int, monitor: float) -> tuple[int, float]:
        """The best epoch and its monitor with this one, of equals the first; may lower the LR."""
        self._scheduler.step(monitor)
        best = self.best
        if best is None or monitor < best.monitor:
            return epoch, monitor
        return best.epoch, best.monitor

    def add(self, stats: EpochStats, logits: Tensor) -> None:
        self.history.append(stats)
        if stats.best_epoch == stats.epoch:
            state = self.model.state_dict()
            self._best_state = {
                name: value.detach().cpu().clone() for name, value in state.items()
            }
            self._best_logits = logits

    def result(self, ended: Ended) -> FitResult:
        return FitResult(self.history, self.best, self._best_state, self._best_logits, ended)

    def state(self) -> dict[str, Any]:
        """A copy: it is written while training goes on."""
        last_is_best = self.last is not None and self.last.bad_epochs == 0
        # no generator: (seed, epoch) reseeds order and dropout at each epoch's start
        return {
            # the same tensors as best_state where they are equal: torch.save writes them once
            "model": self._best_state if last_is_best else copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": copy.deepcopy(self._scheduler.state_dict()),
            "history": [asdict(stats) for stats in self.history],
            "best_state": self._best_state,
            "best_logits": self._best_logits,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """To what state() gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.history = [EpochStats(**stats) for stats in state["history"]]
        self._best_state = state["best_state"]
        self._best_logits = state["best_logits"]


class _Unwanted(Exception):
    """The report of the epoch before was answered with False: nothing more is to be trained."""


class _Saving:
    """Checkpoint, then report, for one epoch at a time: the first in the pool's thread."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        save: Callable[[int, dict[str, Any]], None],
        report: Callable[[EpochStats], bool],
    ) -> None:
        self.seconds = 0.0  # that the caller spent here
        self._pool, self._save, self._report = pool, save, report
        self._pending: tuple[Future[None], EpochStats] | None = None

    def begin(self, stats: EpochStats, state: dict[str, Any]) -> None:
        """Save a state that nobody changes any more, and report stats once that is done."""
        assert self._pending is None
        self._pending = (self._pool.submit(self._save, stats.epoch, state), stats)

    def settle(self, *, wait: bool = False) -> None:
        """Report the epoch if it is saved. Raises _Unwanted, and what save or report raises."""
        if self._pending is None:
            return
        (saved, stats), started = self._pending, time.perf_counter()
        if wait or saved.done():
            self._pending = None
            saved.result()
            # amid an epoch: what a report draws must not change the dropout that follows
            with torch.random.fork_rng(devices=[]):
                go_on = self._report(stats)
            self.seconds += time.perf_counter() - started
            if not go_on:
                raise _Unwanted


def _ticks(
    train: Feed,
    held_out: Iterable[Feed | None],
    config: TrainConfig,
    on_batch: Callable[[int, int], None],
    settle: Callable[[], None],
) -> Callable[[], None]:
    """Counts the batches of one epoch, hands each to on_batch, and settles the epoch before."""
    total = math.ceil(len(train) / config.batch_size)
    for feed in held_out:
        n = 0 if feed is None else len(feed)
        total += math.ceil(n / (config.batch_size * EVAL_BATCHES))
    done = itertools.count(1)

    def tick() -> None:
        on_batch(next(done), total)
        settle()

    return tick


def _end(last: EpochStats | None, config: TrainConfig, go_on: bool) -> Ended | None:
    if last is None:
        return None
    if last.epoch + 1 >= config.max_epochs:
        return "max_epochs"
    if last.bad_epochs >= config.stop_patience:
        return "early_stop"
    return None if go_on else "on_epoch"
