"""Verdicts on studies whose models are all of one kind: each better or worse is false."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.stats import binom

from benches.table import Row
from study.evaluation import SplitPredictions
from tests.support.nulls import (
    BASELINES,
    CANDIDATES,
    plain_bootstrap_differs,
    ruled,
    simulated,
    trained,
)

SIMULATIONS, TRAINED = 1000, 200
SEEDS = (3, 5)
SEED_EFFECTS = (0.0, 0.5, 2.0)  # standard errors over photos
LEVEL = 0.05

Draw = Callable[[np.random.Generator], tuple[SplitPredictions, SplitPredictions]]


def bench() -> list[Row]:
    """About 15 minutes on one core."""
    torch.set_num_threads(1)
    rows = []
    for seeds in SEEDS:
        for effect in SEED_EFFECTS:
            draw = partial(simulated, seeds=seeds, seed_effect=effect)
            setting = f"{seeds} seeds, seed effect {effect:g} photo errors"
            rows += _rows(setting, draw, SIMULATIONS)
        rows += _rows(f"{seeds} seeds, trained heads", partial(trained, seeds=seeds), TRAINED)
    return rows


def _rows(setting: str, draw: Draw, studies: int) -> list[Row]:
    """The share of studies with a false verdict; at most 5 %, within binomial error."""
    rng = np.random.default_rng(0)
    better, worse, plain = [], [], []
    for _ in range(studies):
        val, test = draw(rng)
        outcome = ruled(val, test)
        better.append(outcome.better)
        worse.append(outcome.worse)
        plain.append(plain_bootstrap_differs(test, rng))
    won, lost = np.array(better), np.array(worse)
    most = float(binom.ppf(0.99, studies, LEVEL) / studies)
    note = f"{studies} studies; usual: a plain bootstrap's better or worse"
    any_of = f"any of {BASELINES} baselines"
    return [
        Row(
            f"{setting}: best of {CANDIDATES} wins over a baseline",
            float(won[:, 0].mean()),
            float(np.mean(plain)),
            high=most,
            note=note,
        ),
        Row(f"{setting}: over {any_of}", float(won.any(axis=1).mean()), high=most),
        Row(
            f"{setting}: wins or loses, {any_of}",
            float((won | lost).any(axis=1).mean()),
            high=most,
        ),
    ]
