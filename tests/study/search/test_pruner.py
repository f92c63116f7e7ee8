"""Pruning among peers of a variant. Losses are chosen so that medians are seen at a glance."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from study.search.pruner import PeerMedianPruner, best_until

VARIANTS = CategoricalDistribution(("cnn", "mobilenet_v2_frozen"))


def study_with(*peers: tuple[str, list[float], TrialState]) -> optuna.Study:
    study = optuna.create_study(pruner=PeerMedianPruner(min_peers=2))
    for variant, losses, state in peers:
        study.add_trial(
            create_trial(
                state=state,
                value=losses[-1],
                params={"variant": variant},
                distributions={"variant": VARIANTS},
                intermediate_values=dict(enumerate(losses)),
            )
        )
    return study


def should_prune(study: optuna.Study, losses: list[float], variant: str = "cnn") -> bool:
    study.enqueue_trial({"variant": variant})
    trial = study.ask()
    trial.suggest_categorical("variant", VARIANTS.choices)
    for epoch, loss in enumerate(losses):
        trial.report(loss, epoch)
    return trial.should_prune()


COMPLETE = TrialState.COMPLETE


@pytest.mark.parametrize(
    ("losses", "pruned"),
    [
        # peers' best until epoch 1: 0.6 and 0.4, median 0.5
        ([0.9, 0.51], True),
        ([0.9, 0.5], False),  # not worse than the median
        ([0.49, 0.9], False),  # the best so far counts, not the last
    ],
)
def test_a_trial_is_held_to_the_median_of_the_best_so_far(
    losses: list[float], pruned: bool
) -> None:
    study = study_with(("cnn", [0.6, 0.8, 0.1], COMPLETE), ("cnn", [0.7, 0.4, 0.1], COMPLETE))
    assert should_prune(study, losses) is pruned


def test_a_peer_that_ended_earlier_counts_with_its_best() -> None:
    # at epoch 3 the first peer has 0.5 since epoch 0, the second 0.3: median 0.4
    study = study_with(("cnn", [0.5], COMPLETE), ("cnn", [0.9, 0.8, 0.7, 0.3], COMPLETE))
    assert should_prune(study, [0.45, 0.45, 0.45, 0.45])
    assert not should_prune(study, [0.4, 0.9, 0.9, 0.9])


def test_other_variants_and_other_ends_are_no_peers() -> None:
    study = study_with(
        ("cnn", [0.1, 0.1], COMPLETE),
        ("mobilenet_v2_frozen", [0.1, 0.1], COMPLETE),
        ("cnn", [0.1, 0.1], TrialState.PRUNED),
    )
    assert not should_prune(study, [0.9, 0.9])  # one peer, two are needed


def test_nothing_is_pruned_before_its_first_epoch() -> None:
    study = study_with(("cnn", [0.1], COMPLETE), ("cnn", [0.1], COMPLETE))
    assert not should_prune(study, [])


def test_the_best_until_an_epoch_looks_no_further() -> None:
    assert best_until({0: 0.5, 1: 0.6, 2: 0.1}, 1) == 0.5
