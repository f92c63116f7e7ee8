"""The study's sampler and pruner on known curves, beside random search that prunes nothing."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benches.table import Row
from study.config import StudyConfig
from tests.support.curve_pools import FAMILY_SIZE, Curve, family, half_of, recorded
from tests.support.replay_curves import RandomSearch, Replayed, StudySearch, replay, report_study

SEEDS = range(100, 120)  # the settings were chosen on 0 to 19
WORKERS = (1, 4)


@dataclass(frozen=True)
class Pair:
    """Both searches on the pool of one seed."""

    pool: Sequence[Curve]
    ours: Replayed
    usual: Replayed


def bench() -> list[Row]:
    """Both searches stop early as the report's study does; an epoch is an epoch of any variant."""
    config = report_study()
    curves = recorded()
    on_recorded = {n: _pairs(config, lambda seed: curves, n) for n in WORKERS}
    on_family = {n: _pairs(config, partial(family, space=config.space), n) for n in WORKERS}
    on_halves = _pairs(config, partial(half_of, curves), max(WORKERS))
    rows = []
    for n in WORKERS:
        rows += _rows(f"{len(curves)} recorded curves, workers: {n}", on_recorded[n])
        rows += _rows(f"a family of {FAMILY_SIZE}, workers: {n}", on_family[n])
    rows.append(_pruned(f"half the recorded curves, workers: {max(WORKERS)}", on_halves))
    rows.append(_epochs_left(config, on_recorded[max(WORKERS)]))
    return rows


def _pairs(config: StudyConfig, draw: Callable[[int], list[Curve]], workers: int) -> list[Pair]:
    pairs = []
    for seed in SEEDS:
        pool = [curve.early_stopped(config.train.stop_patience) for curve in draw(seed)]
        search = StudySearch(pool, seed, config.space, config.study)
        ours = replay(pool, search, workers, at_least=config.study.n_trials)
        pairs.append(Pair(pool, ours, replay(pool, RandomSearch(pool, seed), workers)))
    return pairs


def _rows(where: str, pairs: list[Pair]) -> list[Row]:
    ours = statistics.median(pair.ours.epochs_to_near for pair in pairs)
    usual = statistics.median(pair.usual.epochs_to_near for pair in pairs)
    figure = f"epochs to within 1 % of the best; {where}"
    note = f"usual: random search, unpruned; medians of {len(pairs)} seeds"
    return [Row(figure, ours, usual, usual / ours, low=2.0, note=note), _pruned(where, pairs)]


def _pruned(where: str, pairs: list[Pair]) -> Row:
    share = 100 * statistics.mean(pair.ours.best_pruned for pair in pairs)
    return Row(f"how often the best is pruned, %; {where}", share, high=10.0)


def _epochs_left(config: StudyConfig, pairs: list[Pair]) -> Row:
    """Of the epochs that n_trials would train without early stop and pruning."""
    ours, stopped = [], []
    for pair in pairs:
        possible = config.train.max_epochs * len(pair.ours.trained)
        ours.append(sum(pair.ours.trained.values()) / possible)
        stopped.append(sum(len(pair.pool[n].losses) for n in pair.ours.trained) / possible)
    return Row(
        f"epochs left by early stop and pruning, % of {config.study.n_trials} recorded trials'",
        100 * statistics.median(ours),
        100 * statistics.median(stopped),
        note="usual: early stop alone; medians",
    )
