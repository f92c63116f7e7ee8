"""What a study will cost here, before it is spent: timed on this machine, nothing kept."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from deepfake.checkpoint import KEPT, check_writable
from deepfake.config import Hyperparameters, Variant
from deepfake.models import MOBILENET_FEATURES
from deepfake.parallel import in_parallel
from deepfake.room import free_bytes, stores_bytes
from deepfake.timing import Amount, Pace, measure_data, time_variant
from study.config import StudyConfig

SLOT_S = 1.0  # a slot that trains nothing: claim, tracking and the rest (bench: search)
START_S = 8.0  # from the command to the first epoch: imports, the study, its workers
EPOCHS_LEFT = 0.83  # of drawn trials' epochs, behind pruning and early stops (bench: pruning)


@dataclass(frozen=True)
class VariantCost:
    """Of one variant."""

    variant: Variant
    side_px: int
    epoch_s: float  # with its checkpoint, beside the other workers of this machine
    images_per_s: float  # training faces of one worker
    slots: int  # the baselines, and an even share of those that are drawn


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
    embed_s: float  # of the frozen backbone's features, shared by all workers
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
    slots = _slots(config)
    epoch_s = {v: p.face_s * amount.train + p.checkpoint_s for v, p in paces.items()}
    embedded = amount.train + amount.val * _val_passes(config)
    embed_s = sum(pace.embed_s for pace in paces.values()) * embedded / workers
    epochs = config.train.max_epochs

    def search_s(left: float) -> float:
        shares = [1.0 if fixed else left for _, fixed in slots]
        each = [
            SLOT_S + epochs * share * epoch_s[variant]
            for (variant, _), share in zip(slots, shares, strict=True)
        ]
        return START_S + embed_s + _makespan(each, workers)

    counts = Counter(variant for variant, _ in slots)
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
                side_px=config.train.image_size.of(variant),
                epoch_s=epoch_s[variant],
                images_per_s=1 / pace.face_s,
                slots=counts[variant],
            )
            for variant, pace in paces.items()
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


def _val_passes(config: StudyConfig) -> int:
    """Over the validation faces, an epoch: they are seen under corruptions, too, for robust_*."""
    return 1 if config.study.objective == "val_loss" else 2


def _slots(config: StudyConfig) -> list[tuple[Variant, bool]]:
    """The variant of each slot and whether it is fixed; what is drawn takes turns."""
    fixed = [(baseline.params.variant, True) for baseline in config.baselines.baselines]
    drawn = ((variant, False) for variant in itertools.cycle(config.space.variant))
    return [*fixed, *itertools.islice(drawn, config.study.n_trials - len(fixed))]


def _paces(config: StudyConfig, gpus: Sequence[str | None], amount: Amount) -> dict[Variant, Pace]:
    """The median worker's, of all that are timed at once."""
    named = list(dict.fromkeys(gpu for gpu in gpus if gpu is not None))
    devices = ["cpu" if gpu is None else f"cuda:{named.index(gpu)}" for gpu in gpus]
    val_share = _val_passes(config) * amount.val / amount.train
    timed = list(in_parallel(partial(_time, config, val_share), devices, len(devices)))
    return {
        variant: sorted((of_one[variant] for of_one in timed), key=lambda pace: pace.face_s)[
            len(timed) // 2
        ]
        for variant in config.space.variant
    }


def _time(config: StudyConfig, val_share: float, device: str) -> dict[Variant, Pace]:
    """All variants in turn, on one device."""
    paces = {}
    for variant in config.space.variant:
        params = Hyperparameters(variant=variant, lr=1e-4, weight_decay=1e-5, dropout=0.2)
        train = config.train_config(params, fixed=False)
        paces[variant] = time_variant(
            train, torch.device(device), val_share, config.checkpoints_dir
        )
    return paces


def _makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last worker ends, each taking the next slot as soon as it is free."""
    free_at = [0.0] * workers
    for of_slot in seconds:
        heapq.heapreplace(free_at, free_at[0] + of_slot)
    return max(free_at)


def _disk(
    config: StudyConfig,
    paces: dict[Variant, Pace],
    amount: Amount,
    slots: Counter[Variant],
    workers: int,
) -> dict[str, int]:
    row_bytes = MOBILENET_FEATURES * 4
    frozen = "mobilenet_v2_frozen" in paces
    embedded = amount.train + amount.val * _val_passes(config)
    largest = max(pace.checkpoint_bytes for pace in paces.values())
    return {
        "crops": amount.crops_bytes,
        "stores": stores_bytes(amount.faces, config.sides_px),
        "features": embedded * row_bytes if frozen else 0,
        # of each worker: those that are kept, and the one being written
        "checkpoints": (KEPT + 1) * largest * workers,
        "artifacts": sum(pace.weights_bytes * slots[v] for v, pace in paces.items()),
    }
