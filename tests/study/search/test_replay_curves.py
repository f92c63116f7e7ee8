"""The replay of known curves, on pools small enough to count epochs by hand."""

import itertools
import statistics
from collections import Counter
from collections.abc import Collection

import pytest

from deepfake.config import Hyperparameters, VariantName
from study.config.schema import SearchConfig, StudyConfig
from tests.support.curve_pools import FAMILY, Curve, family, half_of, recorded, share_of, value_at
from tests.support.replay_curves import RandomSearch, Replayed, StudySearch, replay, report_study


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return report_study()


def curve(*losses: float, variant: VariantName = "cnn", lr: float = 1e-3) -> Curve:
    params = Hyperparameters(variant=variant, lr=lr, weight_decay=1e-5, dropout=0.5)
    return Curve(params, losses)


class InOrder(RandomSearch):
    """The pool as it is listed; the curves that are named are given up at an epoch."""

    def __init__(self, pool: list[Curve], give_up: dict[int, int] | None = None) -> None:
        self.order = list(range(len(pool)))
        self.given_up = give_up or {}

    def goes_on(self, number: int, epoch: int) -> bool:
        return self.given_up.get(number) != epoch


class AsListed(StudySearch):
    """The study's search, but for what it is offered."""

    def claim(self, left: Collection[int]) -> int:
        return super().claim({min(left)})


@pytest.mark.parametrize(
    ("patience", "epochs"),
    [
        (1, 3),  # 4 again is no improvement
        (2, 4),
        (3, 5),
        (4, 6),  # the last epoch improves: not the early stop, but the end
    ],
)
def test_a_curve_stops_early_behind_as_many_bad_epochs_as_the_patience(patience, epochs):
    whole = curve(5, 4, 4, 4.5, 6, 1)
    assert whole.early_stopped(patience).losses == whole.losses[:epochs]


@pytest.mark.parametrize(
    ("workers", "to_near", "trained"),
    [
        (1, 4, {0: 2, 1: 3}),  # 2 of the first, 2 of the second
        (2, 4, {0: 2, 1: 3}),  # first, second, first, second
        (3, 5, {0: 2, 1: 3, 2: 3}),  # all three, first, second
    ],
)
def test_epochs_of_all_workers_count_until_one_is_near_the_best(workers, to_near, trained):
    pool = [curve(0.9, 0.8), curve(0.7, 0.505, 0.5), curve(0.6, 0.6, 0.6)]  # 0.505: 1 % above
    assert replay(pool, InOrder(pool), workers) == Replayed(to_near, False, trained)


def test_a_replay_goes_on_until_enough_curves_have_ended():
    pool = [curve(0.5), curve(0.9, 0.8), curve(0.9)]
    assert replay(pool, InOrder(pool), 1, at_least=2) == Replayed(1, False, {0: 1, 1: 2})


def test_every_epoch_counts_if_the_best_is_given_up():
    pool = [curve(0.9, 0.8), curve(0.7, 0.6, 0.5), curve(0.6, 0.6)]
    given_up = InOrder(pool, give_up={1: 1})
    assert replay(pool, given_up, 1) == Replayed(2 + 2 + 2, True, {0: 2, 1: 2, 2: 2})


def test_a_trial_that_is_given_up_at_its_last_epoch_is_complete():
    pool = [curve(0.7, 0.5)]  # as fit asks: the end comes before on_epoch's answer
    assert replay(pool, InOrder(pool, give_up={0: 1}), 1) == Replayed(2, False, {0: 2})


def test_random_search_runs_the_whole_pool_once_in_an_order_of_its_seed():
    pool = [curve(1.0 + number) for number in range(8)]
    first, other = (list(replay(pool, RandomSearch(pool, seed), 1, 8).trained) for seed in (0, 1))
    assert sorted(first) == sorted(other) == list(range(8))
    assert first != other


def test_each_curve_stands_for_an_equal_share_of_the_space(config):
    pool = [curve(0.5, lr=lr) for lr in (8e-3, 9e-3, 1e-2)]  # the nearest: 8e-3, for nearly all
    search = StudySearch(pool, 0, config.space, config.study)
    middles = [(step + 0.5) / 6 for step in range(6)]
    stands = Counter(
        search._stand_in(
            Hyperparameters(
                variant="cnn",
                lr=value_at(lr, config.space.lr),
                weight_decay=value_at(weight_decay, config.space.weight_decay),
                dropout=value_at(dropout, config.space.dropout),
            ),
            [0, 1, 2],
        )
        for lr, weight_decay, dropout in itertools.product(middles, repeat=3)
    )
    assert stands == {0: 72, 1: 72, 2: 72}  # of 6 * 6 * 6


def test_a_share_of_a_range_is_where_its_value_is(config):
    assert value_at(0.5, config.space.dropout) == 0.35
    assert value_at(2 / 3, config.space.lr) == pytest.approx(1e-3)  # 1e-5 to 1e-2, log
    assert share_of(1e-3, config.space.lr) == pytest.approx(2 / 3)
    assert share_of(0.35, config.space.dropout) == 0.5


def test_the_study_gives_up_on_a_plateau_above_its_variants_peers(config):
    good, bad = [0.5, 0.4, 0.3, 0.2], [0.9, 0.9, 0.9, 0.9]
    pool = [curve(*losses, lr=1e-3 / n) for n, losses in enumerate([good, good, bad, bad], 1)]
    settings = SearchConfig(n_trials=4, storage="", prune_min_peers=2, prune_patience=2)
    search = AsListed(pool, 0, config.space, settings)
    # 0.9 at epoch 0, bad epochs 1 and 2: given up after three epochs
    assert replay(pool, search, 1, at_least=4).trained == {0: 4, 1: 4, 2: 3, 3: 3}


def test_at_least_sixty_curves_of_three_variants_are_recorded(config):
    pool = recorded()
    assert len(pool) >= 60
    counts = Counter(curve.params.variant for curve in pool)
    assert set(counts) == set(config.space.variant)
    assert min(counts.values()) >= 20
    assert all(config.space.problem_with(curve.params) is None for curve in pool)
    assert all(len(curve.losses) == config.train.max_epochs for curve in pool)


def test_half_of_a_pool_is_half_of_each_variant():
    pool = recorded()
    half = half_of(pool, 0)
    assert Counter(curve.params.variant for curve in half) == dict.fromkeys(FAMILY, 12)
    assert len(set(half)) == 36
    assert set(half) < set(pool)


@pytest.mark.parametrize("seed", range(3))
def test_the_slowest_variant_of_the_family_ends_best(config, seed):
    pool = family(seed, config.space)
    left = {  # of the way from the first loss to the best, after three epochs; median
        variant: statistics.median(
            (min(c.losses[:3]) - c.best) / (c.losses[0] - c.best)
            for c in pool
            if c.params.variant == variant and c.best < c.losses[0]
        )
        for variant in FAMILY
    }
    slowest = max(left, key=lambda variant: left[variant])
    assert slowest == "mobilenet_v2_finetuned"
    assert min(pool, key=lambda curve: curve.best).params.variant == slowest


@pytest.mark.parametrize("seed", range(3))
def test_the_best_recorded_curve_is_found_and_never_pruned(config, seed):
    pool = [c.early_stopped(config.train.stop_patience) for c in recorded()]
    found = replay(pool, StudySearch(pool, seed, config.space, config.study), workers=4)
    assert not found.best_pruned
    assert sum(found.trained.values()) < sum(len(c.losses) for c in pool)
