"""Stops a trial that its variant's finished peers have left behind."""

import statistics
from collections.abc import Mapping

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class PeerMedianPruner(BasePruner):
    """Prunes if the best loss so far is above the median of the variant's COMPLETE peers.

    A peer's loss is its best up to the same epoch; one that ended earlier counts with its best.
    Unlike Optuna's MedianPruner, variants are not compared with each other: on curves where the
    slow learner ends best, that pruned every one of its trials.
    """

    def __init__(self, min_peers: int) -> None:
        self.min_peers = min_peers

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if trial.last_step is None:
            return False
        peers = [
            best_until(peer.intermediate_values, trial.last_step)
            for peer in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if peer.params["variant"] == trial.params["variant"]
        ]
        if len(peers) < self.min_peers:
            return False
        return best_until(trial.intermediate_values, trial.last_step) > statistics.median(peers)


def best_until(losses: Mapping[int, float], epoch: int) -> float:
    return min(loss for step, loss in losses.items() if step <= epoch)
