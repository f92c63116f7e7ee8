"""The study's sampler and pruner, replayed on a pool of known curves, beside random search."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from deepfake.config import Hyperparameters
from study.config.load import load_config
from study.config.schema import SearchConfig, Space, StudyConfig
from study.search.pruner import PeerMedianPruner
from study.search.sampler import new_sampler
from study.search.space import suggest
from tests.support.curve_pools import Curve, share_of

NEAR = 1.01  # times the pool's best loss: near enough
CONFIGS = Path(__file__).parents[2] / "configs"

optuna.logging.set_verbosity(optuna.logging.WARNING)  # as study.storage: no line a study


def report_study() -> StudyConfig:
    """The settings that are shown: the real study's."""
    return load_config(CONFIGS / "report.yaml", [f"baselines={CONFIGS / 'baselines.yaml'}"])


class Search(Protocol):
    """What a replay asks: which curve next, and whether it is worth another epoch."""

    def claim(self, left: Collection[int]) -> int: ...

    def goes_on(self, number: int, epoch: int) -> bool: ...

    def end(self, number: int, *, pruned: bool) -> None: ...


@dataclass(frozen=True)
class Replayed:
    """What a search spent on a pool."""

    epochs_to_near: int  # trained by all workers until one came near the pool's best
    best_pruned: bool  # the curve that ends best of the pool
    trained: Mapping[int, int]  # epochs of each curve that ended, in the order of their ends


def replay(pool: Sequence[Curve], search: Search, workers: int, at_least: int = 0) -> Replayed:
    """Runs the pool until a loss is near its best, its best curve has ended, and at_least curves.

    Each worker trains an epoch in turn. If nothing comes near, every epoch trained counts.
    """
    best = min(range(len(pool)), key=lambda number: pool[number].best)
    left = set(range(len(pool)))
    running: dict[int, int] = {}  # number -> epochs trained
    trained: dict[int, int] = {}
    epochs, epochs_to_near, best_pruned = 0, None, False
    while left or running:
        while left and len(running) < workers:
            number = search.claim(left)
            left.remove(number)
            running[number] = 0
        for number, epoch in list(running.items()):
            losses = pool[number].losses
            epochs += 1
            running[number] += 1
            if epochs_to_near is None and losses[epoch] <= NEAR * pool[best].best:
                epochs_to_near = epochs
            goes_on = search.goes_on(number, epoch)
            is_last = epoch + 1 == len(losses)  # it completes, whatever the pruner says
            if is_last or not goes_on:
                search.end(number, pruned=not is_last)
                best_pruned |= number == best and not is_last
                trained[number] = running.pop(number)
        if epochs_to_near is not None and best in trained and len(trained) >= at_least:
            break
    return Replayed(epochs_to_near or epochs, best_pruned, trained)


class RandomSearch:
    """The pool in random order, nothing pruned."""

    def __init__(self, pool: Sequence[Curve], seed: int) -> None:
        self.order = np.random.default_rng(seed).permutation(len(pool)).tolist()

    def claim(self, left: Collection[int]) -> int:
        return next(number for number in self.order if number in left)

    def goes_on(self, number: int, epoch: int) -> bool:
        return True

    def end(self, number: int, *, pruned: bool) -> None:
        pass


class StudySearch:
    """study/search's sampler and pruner, the plateau rule, on an Optuna study in memory.

    A curve left of the suggested variant (of any, if none is left) stands for what is suggested.
    The study's baselines are left out: what they know of a good trial is the report's merit.
    """

    def __init__(
        self, pool: Sequence[Curve], seed: int, space: Space, config: SearchConfig
    ) -> None:
        self.pool, self.seed, self.space, self.config = pool, seed, space, config
        self.study = optuna.create_study(pruner=PeerMedianPruner(config.prune_min_peers))
        self.trials: dict[int, Trial] = {}

    def claim(self, left: Collection[int]) -> int:
        self.study.sampler = new_sampler(self.seed, slot=len(self.trials), attempt=0)
        drawn = self.study.ask()
        wanted = suggest(drawn, self.space)
        self.study.tell(drawn, state=TrialState.FAIL)  # TPE never learns from these
        peers = [n for n in sorted(left) if self.pool[n].params.variant == wanted.variant]
        number = self._stand_in(wanted, peers or sorted(left))
        self.study.enqueue_trial(self.pool[number].params.model_dump())
        self.trials[number] = self.study.ask()
        assert suggest(self.trials[number], self.space) == self.pool[number].params
        return number

    def goes_on(self, number: int, epoch: int) -> bool:
        losses = self.pool[number].losses[: epoch + 1]
        self.trials[number].report(losses[epoch], epoch)
        bad_epochs = epoch - losses.index(min(losses))
        plateaued = bad_epochs >= self.config.prune_patience  # as study.objective
        return not (plateaued and self.trials[number].should_prune())

    def end(self, number: int, *, pruned: bool) -> None:
        if pruned:
            self.study.tell(self.trials[number], state=TrialState.PRUNED)
        else:
            self.study.tell(self.trials[number], self.pool[number].best)

    def _stand_in(self, wanted: Hyperparameters, curves: list[int]) -> int:
        """The curve that stands for wanted, each for an equal share of the space.

        The space is halved along each dimension in turn, and the curves with it. The nearest
        curve would not do: the recorded best stands alone, so that even random draws found it
        after 22 trials, where a random order needs 36.
        """
        place = self._place(wanted)
        for axis in itertools.cycle(range(len(place))):
            if len(curves) == 1:
                break
            curves = sorted(curves, key=lambda n: self._place(self.pool[n].params)[axis])
            half = len(curves) // 2
            share = half / len(curves)
            if place[axis] < share:
                curves, place[axis] = curves[:half], place[axis] / share
            else:
                curves, place[axis] = curves[half:], (place[axis] - share) / (1 - share)
        return curves[0]

    def _place(self, params: Hyperparameters) -> list[float]:
        """In the unit cube of the space."""
        return [
            share_of(getattr(params, name), drawn) for name, drawn in self.space.drawn().items()
        ]
