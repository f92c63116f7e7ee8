"""Figures, intervals and verdicts, computed from a table of predictions and nothing else."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from deepfake.baselines import FIGURES, Baselines
from deepfake.config import FAKE, REAL
from deepfake.metrics import (
    BOOTSTRAP_RESAMPLES,
    METRICS,
    Chosen,
    choose,
    draw_photos,
    measure,
    percentiles,
    resample,
)
from deepfake.parallel import available_cores
from study.evaluation.error_analysis import slices
from study.evaluation.predictions import Finalist, SplitPredictions, finalists_of, of_split
from study.evaluation.results import (
    Analysis,
    Cell,
    Comparison,
    Figure,
    ModelFigures,
    Prior,
    Published,
    Sides,
)
from study.evaluation.verdict import (
    Estimate,
    best_candidate,
    difference,
    face_losses,
    interval,
    prior_sentence,
    reproduction,
    rule,
    sentence,
)

THRESHOLD_RULE = "the highest balanced accuracy on validation; of several the nearest to 0.5"


@dataclass(frozen=True, eq=False)
class Measured:
    """One model on one split; each seed with the temperature and threshold that it chose."""

    finalist: Finalist
    chosen: list[Chosen]
    estimates: dict[str, Estimate | None]  # by name in METRICS; None where there is none


def analyse(
    predictions: pd.DataFrame,
    baselines: Baselines,
    split: str = "test",
    resamples: int = BOOTSTRAP_RESAMPLES,
) -> Analysis:
    """What `compare --predictions --json` prints.

    predictions: of read_predictions. The best candidate, temperatures and thresholds come from
    its rows of `val` alone: the candidate by NLL, whatever the search's objective was, for the
    table has no face under corruptions. A figure is the mean over seeds; its interval, by
    bootstrap, is over photos, for the seeds as they are: how far these lie apart is said beside
    it. It is widened to hold its figure, for resampling adds to an ECE. `prior`: how far the
    shares of fakes in val and in the split lie apart, and what that moves. Raises
    PredictionsError if there is no such split.
    """
    finalists = finalists_of(predictions)
    val, test = of_split(predictions, "val"), of_split(predictions, split)
    draws = draw_photos(test.photos, test.labels, resamples)
    measured = {m.finalist.model: m for m in measure_all(finalists, val, test, draws)}
    best = best_candidate(val, finalists)
    photos = draws.shape[1]
    return Analysis(
        split=split,
        photos=photos,
        faces=len(test.faces),
        real=int((test.labels == REAL).sum()),
        fake=int((test.labels == FAKE).sum()),
        prior=prior(val, test, split),
        resamples=resamples,
        best=None if best is None else best.model,
        models=[_model(m, float(face_losses(val, name).mean())) for name, m in measured.items()],
        threshold_rule=THRESHOLD_RULE,
        slices=slices(test, finalists, draws),
        comparisons=comparisons(best, measured, photos),
        published=Published(
            source=baselines.source,
            dataset=baselines.published_on.dataset,
            cells=reproductions(measured, baselines, test),
        ),
    )


def prior(val: SplitPredictions, test: SplitPredictions, split: str) -> Prior:
    of_val, of_test = (float((found.labels == FAKE).mean()) for found in (val, test))
    return Prior(of_val, of_test, prior_sentence(split, of_val, of_test))


def measure_all(
    finalists: Sequence[Finalist],
    val: SplitPredictions,
    test: SplitPredictions,
    draws: NDArray[np.uint16],
) -> list[Measured]:
    """Every model's figures on test, whole and on each resample of draw_photos."""
    labels, photos = torch.from_numpy(test.labels), test.photos
    val_labels = torch.from_numpy(val.labels)

    def one(training: tuple[str, int]) -> tuple[Chosen, dict[str, Any], dict[str, Any]]:
        model, at = training
        chosen = choose(torch.from_numpy(val.logits[model][at]), val_labels)
        logits = torch.from_numpy(test.logits[model][at])
        whole = measure(logits, labels, chosen=chosen)
        return chosen, whole, resample(logits, labels, photos, draws, chosen=chosen)

    trainings = [(f.model, at) for f in finalists for at in range(len(f.seeds))]
    with ThreadPoolExecutor(available_cores()) as pool:  # numpy works outside Python's lock
        found = dict(zip(trainings, pool.map(one, trainings), strict=True))
    measured = []
    for finalist in finalists:
        of_seeds = [found[finalist.model, at] for at in range(len(finalist.seeds))]
        estimates: dict[str, Estimate | None] = dict.fromkeys(METRICS)
        for name in of_seeds[0][1]:
            by_seed = np.array([whole[name] for _, whole, _ in of_seeds])
            resampled = np.mean([resamples[name] for _, _, resamples in of_seeds], axis=0)
            estimates[name] = Estimate(by_seed, resampled)
        measured.append(Measured(finalist, [chosen for chosen, _, _ in of_seeds], estimates))
    return measured


def comparisons(
    best: Finalist | None, measured: Mapping[str, Measured], photos: int
) -> list[Comparison]:
    """The best candidate against each baseline; empty if no candidate is among the finalists."""
    if best is None:
        return []
    roles = [m.finalist.role for m in measured.values()]
    ours = measured[best.model]
    against = {name: m for name, m in measured.items() if m.finalist.role == "baseline"}
    nll = {name: _figure(m, "nll") for name, m in against.items()}
    rulings = rule(_figure(ours, "nll"), nll, photos, roles.count("candidate"))
    found = []
    for name, theirs in against.items():
        errors, their_errors = _errors(ours), _errors(theirs)
        comparison = Comparison(
            candidate=best.model,
            baseline=name,
            seeds=(len(best.seeds), len(theirs.finalist.seeds)),
            verdict=rulings[name].verdict,
            p_adjusted=rulings[name].p_adjusted,
            nll=_sides(_figure(ours, "nll"), nll[name], photos),
            auc=_sides(_figure(ours, "auc"), _figure(theirs, "auc"), photos),
            error_rate=_sides(errors, their_errors, photos),
            error_reduction=1 - errors.value / their_errors.value if their_errors.value else None,
        )
        found.append(replace(comparison, sentence=sentence(comparison)))
    return found


def reproductions(
    measured: Mapping[str, Measured], baselines: Baselines, test: SplitPredictions
) -> list[Cell]:
    """Each figure the report printed, beside ours with the interval of verdict.interval.

    A figure that no seed and no resample changes, as one without an error, has an interval of no
    width; there 3 / n takes its place (the rule of three), n the photos of the rarer label.
    """
    n_photos = int(test.photos.max()) + 1
    rarer = min(len(set(test.photos[test.labels == label])) for label in (REAL, FAKE))
    cells = []
    for baseline in baselines.baselines:
        if baseline.published is None or baseline.name not in measured:
            continue
        for figure in FIGURES:
            printed = getattr(baseline.published, figure)
            ours = interval(_figure(measured[baseline.name], figure), n_photos)
            low, high = ours.low, ours.high
            if low is not None and high is not None:
                margin = 3 / rarer if low == high else 0.0
                low, high = max(0.0, low - margin), min(1.0, high + margin)
            verdict = reproduction(printed, low, high)
            cells.append(Cell(baseline.name, figure, printed, ours.value, low, high, verdict))
    return cells


def _figure(measured: Measured, name: str) -> Estimate:
    estimate = measured.estimates[name]
    assert estimate is not None
    return estimate


def _errors(measured: Measured) -> Estimate:
    accuracy = _figure(measured, "accuracy")
    return Estimate(1 - accuracy.by_seed, 1 - accuracy.resampled)


def _sides(ours: Estimate, theirs: Estimate, photos: int) -> Sides:
    return Sides(ours.value, theirs.value, difference(ours, theirs, photos))


def _model(measured: Measured, val_nll: float) -> ModelFigures:
    finalist, chosen = measured.finalist, measured.chosen
    return ModelFigures(
        model=finalist.model,
        role=finalist.role,
        slot=finalist.slot,
        seeds=list(finalist.seeds),
        val_nll=val_nll,
        temperature=[choice.temperature for choice in chosen],
        threshold=[choice.threshold for choice in chosen],
        figures={
            name: None if estimate is None else figure_of(estimate)
            for name, estimate in measured.estimates.items()
        },
    )


def figure_of(estimate: Estimate) -> Figure:
    """Its mean over seeds, and the interval over photos."""
    seeds, found = estimate.by_seed, percentiles(estimate.resampled, estimate.value)
    return Figure(
        value=estimate.value,
        low=found.low,
        high=found.high,
        sd_of_seeds=float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
        by_seed=seeds.tolist(),
    )
