"""Studies without a difference: every model is of one kind, so that each verdict is false."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from deepfake.config import TrainConfig
from deepfake.metrics.bootstrap import draw_photos
from deepfake.models.build import build_head
from deepfake.models.mobilenet_v2 import FEATURES
from deepfake.training.loop import fit
from study.evaluation.predictions import Finalist, SplitPredictions
from study.evaluation.verdict import best_candidate, face_losses, nll_estimate, rule
from study.slots.training import Role, Training

CANDIDATES = BASELINES = 3
PHOTOS = 200  # of a split, one to four faces each

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What was said of one study: for each baseline, better or worse."""

    better: tuple[bool, ...]
    worse: tuple[bool, ...]


def finalists(seeds: int) -> list[Finalist]:
    names = [f"baseline {i}" for i in range(BASELINES)] + [f"slot {i}" for i in range(CANDIDATES)]
    roles: list[Role] = ["baseline"] * BASELINES + ["candidate"] * CANDIDATES
    pairs = enumerate(zip(names, roles, strict=True))
    return [finalist(name, role, at, *range(seeds)) for at, (name, role) in pairs]


def finalist(model: str, role: Role, slot: int, *seeds: int) -> Finalist:
    return Finalist(tuple(Training(model, role, slot, seed) for seed in seeds))


def draw_faces(rng: np.random.Generator, photos: int = PHOTOS) -> pd.DataFrame:
    of_photo = np.repeat(np.arange(photos), rng.integers(1, 5, photos))
    names = [f"{number:05}.png" for number in range(len(of_photo))]
    return pd.DataFrame(
        {
            "source": "drawn",
            "image_id": of_photo,
            "cutted_name": names,
            "label": rng.integers(0, 2, len(of_photo)),
            "face_px": 100.0,
        }
    )


def ruled(val: SplitPredictions, test: SplitPredictions, resamples: int = 2000) -> Outcome:
    """The verdicts on one study, from the choice of its best candidate on."""
    ours = finalists(len(next(iter(val.logits.values()))))
    best = best_candidate(val, ours)
    assert best is not None
    draws = draw_photos(test.photos, test.labels, resamples)
    of_baselines = {
        f.model: nll_estimate(test, f.model, draws) for f in ours if f.role == "baseline"
    }
    found = rule(nll_estimate(test, best.model, draws), of_baselines, draws.shape[1], CANDIDATES)
    verdicts = [ruling.verdict for ruling in found.values()]
    return Outcome(
        tuple(verdict == "better" for verdict in verdicts),
        tuple(verdict == "worse" for verdict in verdicts),
    )


def simulated(
    rng: np.random.Generator, seeds: int, seed_effect: float
) -> tuple[SplitPredictions, SplitPredictions]:
    """Validation and test of one study.

    A face's margin is the sum of what all models see in photo and face, what one model sees in
    them, and its seed's luck, the same on both splits. seed_effect: the standard deviation that
    luck gives to the NLL, in standard errors over photos of the difference of two models.
    """
    names = [finalist.model for finalist in finalists(seeds)]
    luck = dict(zip(names, rng.normal(size=(len(names), seeds)), strict=True))
    val, test = (_split(rng, luck, seed_effect) for _ in range(2))
    return val, test


def _split(
    rng: np.random.Generator, luck: Mapping[str, Floats], seed_effect: float
) -> SplitPredictions:
    faces = draw_faces(rng)
    photo, n = faces["image_id"].to_numpy(), len(faces)

    def of_photos_and_faces(scale: float) -> Floats:
        return scale * (rng.normal(size=PHOTOS)[photo] + rng.normal(size=n))

    seen_by_all = 3 + of_photos_and_faces(1.5)
    margins = {name: seen_by_all + of_photos_and_faces(0.5) for name in luck}
    first, second, *_ = (np.logaddexp(0, -margin) for margin in margins.values())
    gap = first - second
    error = np.sqrt((np.bincount(photo, gap - gap.mean()) ** 2).sum()) / n
    slope = (1 / (1 + np.exp(seen_by_all))).mean()  # of the NLL, by a shift of all margins
    sign = 2 * faces["label"].to_numpy() - 1
    logits = {}
    for name, margin in margins.items():
        of_seeds = sign * (margin + luck[name][:, None] * seed_effect * error / slope)
        logits[name] = np.stack([0 * of_seeds, of_seeds], axis=2).astype(np.float32)
    return SplitPredictions(faces, logits)


def plain_bootstrap_differs(
    test: SplitPredictions, rng: np.random.Generator, resamples: int = 2000
) -> bool:
    """The usual way, on the first two models: are zero and a percentile interval apart?"""
    draws = draw_photos(test.photos, test.labels, resamples)
    of_models = []
    for model in list(test.logits)[:2]:
        losses = face_losses(test, model)
        photo_sums = np.stack([np.bincount(test.photos, of_seed) for of_seed in losses])
        faces = draws @ np.bincount(test.photos)
        of_seeds = (draws @ photo_sums.T) / faces[:, None]
        drawn = rng.integers(0, len(losses), (resamples, len(losses)))
        of_models.append(np.take_along_axis(of_seeds, drawn, axis=1).mean(axis=1))
    low, high = np.percentile(of_models[0] - of_models[1], [2.5, 97.5])
    return bool(low > 0 or high < 0)


@dataclass(frozen=True, eq=False)
class DrawnFeatures:
    """What a frozen backbone might give: faces of one photo are alike, labels show a little."""

    faces: pd.DataFrame
    rows: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def draw(cls, rng: np.random.Generator, photos: int) -> "DrawnFeatures":
        faces = draw_faces(rng, photos)
        photo, labels = faces["image_id"].to_numpy(), faces["label"].to_numpy()
        rows = 0.5 * rng.normal(size=(photos, FEATURES))[photo]
        rows += rng.normal(size=(len(faces), FEATURES))
        rows[:, :60] += labels[:, None]
        rows *= 0.3
        return cls(faces, torch.from_numpy(rows).float(), torch.from_numpy(labels.copy()))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size, device, generator=None):
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for numbers in torch.split(order, batch_size):
            yield self.rows[numbers], self.labels[numbers]


HEAD = TrainConfig(
    variant="mobilenet_v2_frozen",
    lr=3e-3,
    weight_decay=1e-5,
    dropout=0.5,
    max_epochs=4,
    stop_patience=4,
)


def trained(rng: np.random.Generator, seeds: int) -> tuple[SplitPredictions, SplitPredictions]:
    """Validation and test of one study whose models are heads of one configuration."""
    train, val, test = (DrawnFeatures.draw(rng, photos) for photos in (100, 60, 150))
    of_split: tuple[dict[str, list], dict[str, list]] = ({}, {})
    for finalist in finalists(seeds):
        for _ in range(seeds):
            result = fit(
                partial(build_head, HEAD),
                train,
                val,
                HEAD,
                seed=int(rng.integers(2**31)),
                device=torch.device("cpu"),
                on_epoch=lambda stats: True,
            )
            head = build_head(HEAD)
            head.load_state_dict(result.best_state)
            with torch.inference_mode():
                for logits, rows in zip(of_split, (val.rows, test.rows), strict=True):
                    said = head.eval()(rows).numpy()
                    logits.setdefault(finalist.model, []).append(said)
    val_logits, test_logits = (
        {model: np.stack(said) for model, said in logits.items()} for logits in of_split
    )
    return SplitPredictions(val.faces, val_logits), SplitPredictions(test.faces, test_logits)
