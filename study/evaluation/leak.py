"""The price of a leak: one baseline on faces split by face, and on the same split by photo."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from deepfake.config import SEEN, DataConfig
from deepfake.data import SIZE, Prepared, read_faces, read_split, write_faces
from deepfake.errors import UserError, writing_data
from deepfake.metrics import draw_photos
from study.config import ARMS, Arm, StudyConfig, leak_dir, leak_of
from study.evaluation.analysis import figure_of, measure_all
from study.evaluation.evaluator import Evaluator
from study.evaluation.finalists import contenders_of_reruns
from study.evaluation.predictions import finalists_of, of_split
from study.evaluation.results import Figure, Welch
from study.evaluation.verdict import MIN_SEEDS, Estimate, difference
from study.slots import Slots, Training
from study.worker import begin

FIGURES = ("nll", "auc", "accuracy")


@dataclass(frozen=True)
class ArmFigures:
    """What the baseline reached on the faces that its arm held out."""

    faces: int
    photos: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Price:
    """How much better the same model looks where faces of its photos are in training."""

    baseline: str
    seeds: int
    arms: dict[Arm, ArmFigures]  # by group_by
    differences: dict[str, Welch]  # by face minus by photo
    sentence: str


def baseline_of(config: StudyConfig, name: str | None) -> str:
    """The baseline of that name, the file's first without one. Raises UserError."""
    names = [baseline.name for baseline in config.baselines.baselines]
    if name is None:
        return names[0]
    if name not in names:
        raise UserError(f"--baseline {name}: the baselines are {', '.join(names)}")
    return name


def slot_of(config: StudyConfig, baseline: str) -> int:
    """Of the search."""
    return [known.name for known in config.baselines.baselines].index(baseline)


def begin_leak(
    config: StudyConfig,
    baseline: str,
    seeds: int,
    prepare: Callable[[StudyConfig, tuple[int, ...]], Prepared],
    warn: Callable[[str], None],
) -> dict[Arm, Slots]:
    """The pair of leak_of, each with a slot a seed; called again it is the same, or grows.

    config: its data are prepared. prepare: of a config's data, with the stores of some sides.
    """
    write_seen(config.data)
    number = slot_of(config, baseline)
    params = config.baseline_params(config.baselines.baselines[number])
    side = config.train.image_size.of(params.variant)  # a store of another would not be read
    reruns = [Training(baseline, "baseline", number, seed) for seed in range(seeds)]
    begun = {}
    for arm, of_arm in leak_of(config).items():
        begun[arm] = begin(of_arm, lambda split: prepare(split, (side,)), warn)
        begun[arm].add_reruns([(rerun, params) for rerun in reruns])
    return begun


def write_seen(data: DataConfig) -> None:
    """The faces of train and val as the JSONs of the pair, which splits them anew.

    The study's test split is closed to whatever is measured on them: each of the two cuts one of
    its own. Raises DataError if they can't be written.
    """
    seen = pd.concat([read_split(data.work_dir, split) for split in SEEN], ignore_index=True)
    sizes = read_faces(data.jsons, data.box)[["cutted_name", *SIZE]]
    seen = seen.merge(sizes, "left", "cutted_name", validate="one_to_one")
    with writing_data(leak_dir(data)):
        write_faces(seen, leak_dir(data))


def price(arms: Mapping[Arm, Slots], baseline: str, seeds: int, device: torch.device) -> Price:
    """Measure each arm's finished slots of the baseline on the faces that it held out.

    The two held-out sets hold other faces, so that each is resampled by itself: where the sets
    share photos, the interval is rather too wide. Raises UserError if an arm has none.
    """
    measured: dict[Arm, dict[str, Estimate]] = {}
    found: dict[Arm, ArmFigures] = {}
    for number, arm in enumerate(ARMS):
        evaluator = Evaluator(arms[arm], device)
        slot = slot_of(arms[arm].config, baseline)
        evaluator.evaluate(*contenders_of_reruns(arms[arm], {slot}, seeds))
        table = evaluator.predictions
        val, test = of_split(table, "val"), of_split(table, "test")
        draws = draw_photos(test.photos, test.labels, seed=number)
        (of_arm,) = measure_all(finalists_of(table), val, test, draws)
        estimates = {name: _known(of_arm.estimates[name]) for name in FIGURES}
        measured[arm] = estimates
        figures = {name: figure_of(estimate) for name, estimate in estimates.items()}
        found[arm] = ArmFigures(len(test.faces), draws.shape[1], figures)
    photos = min(figures.photos for figures in found.values())
    differences = {
        name: difference(measured["face"][name], measured["photo"][name], photos)
        for name in FIGURES
    }
    n = min(len(estimates["nll"].by_seed) for estimates in measured.values())
    said = _sentence(baseline, found, differences)
    return Price(baseline, n, found, differences, said)


def _known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def _sentence(
    baseline: str, arms: Mapping[Arm, ArmFigures], differences: Mapping[str, Welch]
) -> str:
    nll = {arm: figures.figures["nll"].value for arm, figures in arms.items()}
    found = differences["nll"]
    pair = f"NLL {nll['face']:.4f} when split by face, {nll['photo']:.4f} when by photo"
    if found.low is None or found.high is None:
        return f"{baseline}: {pair}; an interval needs at least {MIN_SEEDS} seeds"
    span = f"difference {found.value:+.4f} (95 % {found.low:+.4f} to {found.high:+.4f})"
    if found.high < 0:
        return f"the leak makes {baseline} look better: {pair}, {span}"
    if found.low > 0:
        return f"the leak makes {baseline} look worse: {pair}, {span}"
    return f"no effect of the leak on {baseline} was found: {pair}, {span}"
