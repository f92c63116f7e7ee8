"""What a study will cost here, before it is spent: timed on this machine, nothing kept."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from deepfake.config import TrainConfig, VariantName
from deepfake.data import stores_bytes
from deepfake.errors import DataError
from deepfake.files import free_bytes
from deepfake.models import frozen_backbone, load_weights, rows_to_embed
from deepfake.parallel import in_parallel
from deepfake.timing import Amount, Pace, measure_data, time_variant
from deepfake.training import KEPT, check_writable
from deepfake.variants import VARIANTS
from study.config import StudyConfig

SLOT_S = 1.0  # a slot that trains nothing: claim, tracking and the rest (bench: search)
START_S = 8.0  # from the command to the first epoch: imports, the study, its workers
EPOCHS_LEFT = 0.83  # of drawn trials' epochs, behind pruning and early stops (bench: pruning)

Kind = tuple[VariantName, bool]  # of a training: whether it is trained as a baseline is


@dataclass(frozen=True)
class VariantCost:
    """Of one variant; of its baselines apart, where those are trained otherwise."""

    variant: VariantName
    baselines: bool  # in fp32 and not augmented, while the study's own are one or the other
    side_px: int
    epoch_s: float  # with its checkpoint, beside the other workers of this machine
    images_per_s: float  # training faces of one worker
    slots: int  # an even share of those that are drawn, and the baselines unless they are apart


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a whole study."""

    name: str
    workers: int
    device: str
    n_trials: int
    train_faces: int
    val_faces: int
    variants: list[VariantCost]
    prepare_s: float  # what is left of it, on all cores
    embed_s: float  # of the frozen backbone's features that are not there yet; by all workers
    search_s: float  # behind prepare, features included
    at_most_s: float  # if every slot runs all its epochs
    disk: dict[str, int]  # bytes; what is there already counts, too
    free: dict[str, int]  # bytes on the disk of each setting


def estimate(config: StudyConfig, gpus: Sequence[str | None], workers: int) -> Estimate:
    """Time each variant for some seconds, and reckon the study from that.

    gpus: of each worker that shares this machine, None the CPU: these are timed side by side.
    workers: all of them. Raises UserError for what `run` would refuse.
    """
    workers = min(workers, config.study.n_trials)
    gpus = gpus[:workers]
    check_writable(config.checkpoints_dir)
    amount = measure_data(config.data, config.sides_px)
    paces = _paces(config, gpus, amount)
    slots = [(kind if kind in paces else (kind[0], False), kind[1]) for kind in _slots(config)]
    epoch_s = {kind: p.face_s * amount.train + p.checkpoint_s for kind, p in paces.items()}
    embed_s = sum(
        max(pace.embed_s for kind, pace in paces.items() if kind[0] == variant)
        * _to_embed(config, amount, variant)
        for variant in _frozen(config)
    )
    embed_s /= workers
    epochs = config.train.max_epochs

    def search_s(left: float) -> float:
        each = [
            SLOT_S + epochs * (1.0 if fixed else left) * epoch_s[kind] for kind, fixed in slots
        ]
        return START_S + embed_s + _makespan(each, workers)

    counts = Counter(kind for kind, _ in slots)
    return Estimate(
        name=config.name,
        workers=workers,
        device="cpu" if None in gpus else torch.cuda.get_device_name(0),
        n_trials=config.study.n_trials,
        train_faces=amount.train,
        val_faces=amount.val,
        variants=[
            VariantCost(
                variant=variant,
                baselines=apart,
                side_px=config.train.image_size.of(variant),
                epoch_s=epoch_s[variant, apart],
                images_per_s=1 / pace.face_s,
                slots=counts[variant, apart],
            )
            for (variant, apart), pace in paces.items()
        ],
        prepare_s=amount.prepare_s,
        embed_s=embed_s,
        search_s=search_s(EPOCHS_LEFT),
        at_most_s=search_s(1.0),
        disk=_disk(config, paces, amount, counts, workers),
        free={
            "data.work_dir": free_bytes(config.data.work_dir),
            "study.checkpoints_dir": free_bytes(config.checkpoints_dir),
        },
    )


def _frozen(config: StudyConfig) -> list[VariantName]:
    return [variant for variant in config.space.variant if VARIANTS[variant].frozen]


def _to_embed(config: StudyConfig, amount: Amount, variant: VariantName) -> int:
    """Faces, each time that one is embedded, whose features are not on disk yet."""
    work_dir, side = config.data.work_dir, config.train.image_size.of(variant)
    everyone = amount.train + amount.val * config.study.val_passes
    if not any((work_dir / "features").glob(f"*_{side}_*")):
        return everyone  # and no weights have to be downloaded to know it
    weights, _ = load_weights(config.train.weights, variant)
    backbone = frozen_backbone(variant, weights)
    try:
        return rows_to_embed(work_dir, side, backbone, robust=config.study.robust)
    except DataError:  # the store has to be built anew: no features are of it
        return everyone


def _slots(config: StudyConfig) -> list[Kind]:
    """The variant of each slot and whether it is fixed; what is drawn takes turns."""
    fixed = [(baseline.params.variant, True) for baseline in config.baselines.baselines]
    drawn = ((variant, False) for variant in itertools.cycle(config.space.variant))
    return [*fixed, *itertools.islice(drawn, config.study.n_trials - len(fixed))]


def _trainings(config: StudyConfig) -> dict[Kind, TrainConfig]:
    """Each variant as it is drawn, and as its baseline is trained where that differs."""
    found = {}
    with_baseline = {baseline.params.variant for baseline in config.baselines.baselines}
    for variant in config.space.variant:
        params = config.space.first_of(variant)
        drawn, fixed = (config.train_config(params, fixed=fixed) for fixed in (False, True))
        found[variant, False] = drawn
        if fixed != drawn and variant in with_baseline:
            found[variant, True] = fixed
    return found


def _paces(config: StudyConfig, gpus: Sequence[str | None], amount: Amount) -> dict[Kind, Pace]:
    """The median worker's, of all that are timed at once."""
    named = list(dict.fromkeys(gpu for gpu in gpus if gpu is not None))
    devices = ["cpu" if gpu is None else f"cuda:{named.index(gpu)}" for gpu in gpus]
    val_share = config.study.val_passes * amount.val / amount.train
    timed = list(in_parallel(partial(_time, config, val_share), devices, len(devices)))
    return {
        kind: sorted((of_one[kind] for of_one in timed), key=lambda pace: pace.face_s)[
            len(timed) // 2
        ]
        for kind in _trainings(config)
    }


def _time(config: StudyConfig, val_share: float, device: str) -> dict[Kind, Pace]:
    """All trainings in turn, on one device."""
    where = (torch.device(device), val_share, config.checkpoints_dir)
    return {kind: time_variant(train, *where) for kind, train in _trainings(config).items()}


def _makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last worker ends, each taking the next slot as soon as it is free."""
    free_at = [0.0] * workers
    for of_slot in seconds:
        heapq.heapreplace(free_at, free_at[0] + of_slot)
    return max(free_at)


def _disk(
    config: StudyConfig,
    paces: dict[Kind, Pace],
    amount: Amount,
    slots: Counter[Kind],
    workers: int,
) -> dict[str, int]:
    row_bytes = sum(paces[variant, False].feature_bytes for variant in _frozen(config))
    embedded = amount.train + amount.val * config.study.val_passes
    largest = max(pace.checkpoint_bytes for pace in paces.values())
    return {
        "crops": amount.crops_bytes,
        "stores": stores_bytes(amount.faces, config.sides_px),
        "features": embedded * row_bytes,
        # of each worker: those that are kept, and the one being written
        "checkpoints": (KEPT + 1) * largest * workers,
        "artifacts": sum(pace.weights_bytes * slots[kind] for kind, pace in paces.items()),
    }
