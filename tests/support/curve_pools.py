"""Pools of trials whose curves are known beforehand: recorded ones and a parametric family."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator

from deepfake.config import Hyperparameters, VariantName
from study.config.schema import Drawn, Range, Space

RECORDED_CSV = Path(__file__).parents[1] / "curves.csv"  # made by scripts/benches/record_curves.py
FAMILY_SIZE, FAMILY_EPOCHS = 200, 10


@dataclass(frozen=True)
class Curve:
    """A trial that could be run: what it draws and its validation loss after each epoch."""

    params: Hyperparameters
    losses: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.losses)

    def early_stopped(self, patience: int) -> "Curve":
        """As fit ends it: behind patience epochs in a row that are not the best."""
        best_epoch = 0
        for epoch, loss in enumerate(self.losses):
            if loss < self.losses[best_epoch]:
                best_epoch = epoch
            if epoch - best_epoch >= patience:
                return Curve(self.params, self.losses[: epoch + 1])
        return self


@dataclass(frozen=True)
class Learner:
    """A variant of the family: its loss falls from start to floor, by half in half_life epochs."""

    floor: float  # at the best lr
    start: float
    half_life: float  # epochs, at the best lr
    best_lr: float


# Start, best lr and order as the recorded variants have them: the slowest learner ends best.
FAMILY: dict[VariantName, Learner] = {
    "cnn": Learner(floor=0.35, start=0.7, half_life=1.0, best_lr=1e-3),
    "mobilenet_v2_frozen": Learner(floor=0.5, start=1.1, half_life=1.0, best_lr=8e-4),
    "mobilenet_v2_finetuned": Learner(floor=0.15, start=1.0, half_life=2.5, best_lr=2e-3),
}
# Shares of the loss, so that a family measures as the recorded curves do, means of the variants:
LUCK = 0.17  # of a trial's end, best losses off a fit on the hyperparameters: 0.14, recorded 0.15
SWING = 0.17  # of an epoch at the best lr, second differences: 0.11, recorded 0.10


def recorded(csv: Path = RECORDED_CSV) -> list[Curve]:
    table = pd.read_csv(csv)
    losses = table.filter(like="loss_").to_numpy()
    names = [name for name in Hyperparameters.model_fields if name in table]  # drawn by that pool
    drawn = table[names].to_dict("records")
    return [
        Curve(Hyperparameters.model_validate(params), tuple(curve.tolist()))
        for params, curve in zip(drawn, losses, strict=True)
    ]


def half_of(pool: Sequence[Curve], seed: int) -> list[Curve]:
    """Half of each variant's curves, at random: another best than the pool's, more often than not.

    The best of all may be one that no pruner would touch.
    """
    generator = np.random.default_rng(seed)
    kept = []
    for variant in sorted({curve.params.variant for curve in pool}):
        peers = [curve for curve in pool if curve.params.variant == variant]
        kept += [peers[i] for i in generator.permutation(len(peers))[: len(peers) // 2]]
    return kept


def family(seed: int, space: Space) -> list[Curve]:
    """FAMILY_SIZE trials at random from the space, the variants in turn."""
    generator = np.random.default_rng([seed, FAMILY_SIZE])
    return [
        _family_curve(space.variant[number % len(space.variant)], space, generator)
        for number in range(FAMILY_SIZE)
    ]


def _family_curve(variant: VariantName, space: Space, generator: Generator) -> Curve:
    """A lr too low learns slowly, one too high ends high and swings; the rest matters less."""
    lr, weight_decay, dropout = generator.uniform(size=3)
    params = Hyperparameters(
        variant=variant,
        lr=value_at(lr, space.lr),
        weight_decay=value_at(weight_decay, space.weight_decay),
        dropout=value_at(dropout, space.dropout),
    )
    learner = FAMILY[variant]
    decades = float(np.log10(params.lr / learner.best_lr))
    worse = (
        0.2 * max(decades, 0) ** 2 + 0.05 * (weight_decay - 0.5) ** 2 + 0.1 * (dropout - 0.4) ** 2
    )
    floor = min(learner.floor + worse, learner.start) * np.exp(generator.normal(0, LUCK))
    half_life = learner.half_life * 10 ** max(-0.7 * decades, 0)
    epochs = np.arange(1, FAMILY_EPOCHS + 1)
    smooth = floor + (learner.start - floor) * 0.5 ** (epochs / half_life)
    swing = SWING * 5 ** min(decades, 1)
    # upwards only: a lr too high throws a trial out of its valley, not below the floor
    noisy = smooth * np.exp(np.abs(generator.normal(0, swing, FAMILY_EPOCHS)))
    return Curve(params, tuple(noisy.tolist()))


def value_at(share: float, drawn: Drawn) -> float:
    """The value that is a share of the way from low to high, on the scale that is drawn on."""
    assert isinstance(drawn, Range)
    if drawn.log:
        return drawn.low * math.pow(drawn.high / drawn.low, share)
    return drawn.low + share * (drawn.high - drawn.low)


def share_of(value: float, drawn: Drawn) -> float:
    """How far a value is on the way from low to high: value_at's inverse."""
    assert isinstance(drawn, Range)
    if drawn.log:
        return math.log(value / drawn.low) / math.log(drawn.high / drawn.low)
    return (value - drawn.low) / (drawn.high - drawn.low)
