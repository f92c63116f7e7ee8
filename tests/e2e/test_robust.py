"""The validation loss under corruptions as the one number that rules."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from deepfake.config import Augment, ImageSize, TrainConfig
from deepfake.data.arrays import Rows
from deepfake.data.feed import Faces
from deepfake.metrics.classification import cross_entropy
from deepfake.models.build import build_head, build_model, frozen_backbone
from deepfake.models.features import Features, ensure_features, robust_features
from deepfake.training.checkpoint import Checkpoints
from deepfake.training.loop import evaluate, fit
from deepfake.transforms.augment import augmented
from deepfake.transforms.corruptions import robust_faces
from study.config.siblings import final_of
from study.slots.study import join
from tests.deepfake.training.test_loop import (
    Feed,
    Stop,
    assert_same,
    config_of,
    curve,
    faces,
    lrs,
    stop_after,
)
from tests.support.photos import prepared_set
from tests.support.runs import Folder

CPU = torch.device("cpu")
SIDE = 32
pytestmark = pytest.mark.usefixtures("one_thread")


# what the monitor rules


class Scripted(nn.Module):
    """Says what gives the n-th clean loss on clean faces (zeros) and the n-th robust on others."""

    def __init__(self, clean, robust):
        super().__init__()
        self.losses = {False: clean, True: robust}
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("evaluations", torch.tensor(0))

    def forward(self, images):
        if self.training:
            return self.weight * images.mean((1, 2, 3)).view(-1, 1).repeat(1, 2)
        is_robust = bool(images.any())
        loss = self.losses[is_robust][self.evaluations.item()]
        self.evaluations += is_robust  # the second of an epoch
        score = math.log(math.expm1(loss)) if math.isfinite(loss) else loss
        return torch.tensor([[0.0, score]]).repeat(len(images), 1)


def script(clean, robust, **more):
    real = torch.zeros(6, dtype=torch.int64)
    return fit(
        lambda: Scripted(clean, robust),
        faces(8, seed=1),
        Feed(torch.zeros(6, 3, 4, 4), real),
        config_of(lr=1e-3, max_epochs=len(clean)),
        robust=Feed(torch.ones(6, 3, 4, 4), real),
        seed=0,
        device=CPU,
        on_epoch=more.pop("on_epoch", lambda stats: True),
        **more,
    )


def test_the_robust_loss_drops_the_lr_and_picks_the_best_epoch_and_the_clean_is_beside_it():
    clean = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]  # would never drop the LR, and be best at the end
    result = script(clean, [0.8, 0.7, 0.9, 0.9, 0.9, 0.9])
    assert [stats.val_loss for stats in result.history] == pytest.approx(clean, abs=1e-6)
    assert [stats.monitor for stats in result.history] == pytest.approx(
        [0.8, 0.7, 0.9, 0.9, 0.9, 0.9], abs=1e-6
    )
    assert result.best.epoch == 1
    assert result.best.monitor == result.best.best_val_loss == pytest.approx(0.7, abs=1e-6)
    assert result.best_state["evaluations"] == 2
    assert result.history[-1].bad_epochs == 4
    assert lrs(script([*clean, 0.1], [0.8, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]))[-1] == 1e-4
    # the kept logits are of the clean faces: the figures of a run are
    assert cross_entropy(result.best_logits, torch.zeros(6, dtype=torch.int64)) == (
        result.best.val_loss
    )


def test_a_robust_loss_that_stands_still_stops_early_though_the_clean_one_falls():
    clean = [0.9 - 0.05 * epoch for epoch in range(9)]
    result = script(clean, [0.5] * 9)
    assert (result.ended, len(result.history)) == ("early_stop", 6)


@pytest.mark.parametrize("which", ["clean", "robust"])
def test_either_loss_that_is_not_finite_ends_as_diverged(which):
    losses = {"clean": [0.5, 0.5, 0.5], "robust": [0.5, 0.4, 0.5], which: [0.5, 0.4, math.nan]}
    result = script(**losses)
    assert (result.ended, len(result.history), result.best.epoch) == ("diverged", 2, 1)


def test_on_batch_counts_the_robust_batches_too():
    told = []
    script([0.5], [0.5], on_batch=lambda done, total: told.append((done, total)))
    assert told == [(done, 4) for done in (1, 2, 3, 4)]  # 8 faces by 4, 6 by 16, twice


def test_a_checkpoint_from_before_there_was_a_robust_loss_is_continued(tmp_path):
    files = Checkpoints(tmp_path)
    with pytest.raises(Stop):
        fit(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
            *(faces(14, seed=1), faces(9, seed=2)),
            config_of(),
            seed=3,
            device=CPU,
            on_epoch=stop_after(1),
            save=files.save,
        )
    state = files.load()
    for stats in state["history"]:
        assert stats.pop("robust_val_loss") is None
    resumed = fit(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        *(faces(14, seed=1), faces(9, seed=2)),
        config_of(),
        seed=3,
        device=CPU,
        on_epoch=lambda stats: True,
        resume=state,
    )
    assert [stats.monitor for stats in resumed.history] == [s.val_loss for s in resumed.history]


# real faces


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return prepared_set(folder, [SIDE, 40]).work_dir


def config_at(variant="cnn", side=SIDE, **more):
    size = ImageSize(cnn=side, mobilenet_v2=max(side, 33))
    settings = {"lr": 1e-3, "weight_decay": 1e-5, "dropout": 0.3, "batch_size": 8, "max_epochs": 3}
    return TrainConfig(variant=variant, image_size=size, **{**settings, **more})


def test_the_best_weights_give_the_robust_loss_again_and_a_resumed_run_the_same_curve(
    made, tmp_path
):
    train, val = (Faces.load(made, split, SIDE) for split in ("train", "val"))
    config, files = config_at(), Checkpoints(tmp_path)

    def run(on_epoch=lambda stats: True, **more):
        return fit(
            lambda: build_model(config, None),
            *(train, val),
            config,
            robust=robust_faces(val),  # made anew, as another worker would
            seed=1,
            device=CPU,
            on_epoch=on_epoch,
            **more,
        )

    whole = run()
    model = build_model(config, None)
    model.load_state_dict(whole.best_state)
    again = cross_entropy(evaluate(model, robust_faces(val), config, CPU), val.labels)
    assert again == whole.best.robust_val_loss != whole.best.val_loss
    with pytest.raises(Stop):
        run(on_epoch=stop_after(0), save=files.save)
    assert_same(run(resume=files.load()), whole)


def test_a_robust_set_leaves_training_and_the_clean_curve_as_they_are_without_it(made):
    """Up to the LR's first drop, which the monitor decides."""
    train, val = (Faces.load(made, split, SIDE) for split in ("train", "val"))
    config = config_at(lr_patience=9)

    def run(robust):
        result = fit(
            lambda: build_model(config, None),
            *(train, val),
            config,
            robust=robust,
            seed=1,
            device=CPU,
            on_epoch=lambda stats: True,
        )
        same = {"best_epoch": 0, "best_val_loss": 0, "robust_val_loss": None}
        return [replace(stats, **same) for stats in curve(result.history)]

    assert run(robust_faces(val)) == run(None)


def drawn_faces(folder, n, seed):
    """Fakes have a fine checkerboard, strong but gone after a blur, and are a little brighter."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    fine = np.indices((SIDE, SIDE)).sum(0)[..., None] % 2 * 2 - 1
    pixels = 120 + 12 * draw.normal(size=(n, 1, 1, 1)) + 6 * draw.normal(size=(n, SIDE, SIDE, 3))
    pixels += labels.reshape(n, 1, 1, 1) * (14 * fine + 14)
    path = folder / f"faces_{seed}.npy"
    np.save(path, pixels.clip(0, 255).astype(np.uint8))
    table = pd.DataFrame({"cutted_name": [f"{seed}_{number}.jpg" for number in range(n)]})
    return Faces(table, Rows(path, 0, n), torch.from_numpy(labels))


@pytest.mark.slow
def test_the_robust_loss_ranks_first_who_learned_what_survives_a_corruption(tmp_path):
    train, val = (drawn_faces(tmp_path, n, seed) for n, seed in ((128, 1), (64, 2)))
    config = config_at(lr=3e-4, batch_size=32, max_epochs=5, stop_patience=5)
    steps = {name: {"p": 0.5} for name in ("downscale", "blur", "noise", "jpeg")}
    plain, hardened = (
        fit(
            lambda: build_model(config, None),
            *(augmented(train, augment), val),
            config,
            robust=robust_faces(val),
            seed=1,
            device=CPU,
            on_epoch=lambda stats: True,
        )
        for augment in (None, Augment.model_validate(steps))
    )
    assert min(s.val_loss for s in plain.history) < min(s.val_loss for s in hardened.history)
    assert plain.best.monitor > hardened.best.monitor
    for result in (plain, hardened):
        losses = [stats.robust_val_loss for stats in result.history]
        assert result.best.epoch == losses.index(min(losses))


# a frozen backbone


def test_the_features_of_the_robust_set_are_the_backbones_output_for_its_pictures(made):
    side, config = 40, config_at("mobilenet_v2_frozen", side=40)
    val = Faces.load(made, "val", side)
    backbone = frozen_backbone("mobilenet_v2_frozen", None).eval()
    plain = ensure_features(made, side, backbone, CPU)
    before = plain.read_bytes()
    robust = robust_features(robust_faces(val), made, backbone, CPU)
    assert isinstance(robust, Features)
    assert robust.rows.path != plain
    assert plain.read_bytes() == before
    assert torch.equal(robust.labels, val.labels)
    torch.manual_seed(1)
    whole = build_model(config, None)
    by_pixels = evaluate(whole, robust_faces(val), config, CPU)
    assert (by_pixels - evaluate(whole[1], robust, config, CPU)).abs().max() < 1e-4
    assert (by_pixels - evaluate(whole, val, config, CPU)).abs().max() > 1e-2

    told = []
    again = robust_features(
        robust_faces(val), made, backbone, CPU, progress=lambda *now: told.append(now)
    )
    assert (again.rows.path, told) == (robust.rows.path, [])


def test_a_heads_robust_curve_on_stored_features_is_the_full_models(made):
    side, config = 40, config_at("mobilenet_v2_frozen", side=40, lr=1e-2, max_epochs=2)
    train, val = (Faces.load(made, split, side) for split in ("train", "val"))
    backbone = frozen_backbone("mobilenet_v2_frozen", None).eval()
    path = ensure_features(made, side, backbone, CPU)
    of_faces = [
        Features.load(path, made, split, side, of_split.labels)
        for split, of_split in (("train", train), ("val", val))
    ]

    def run(build, feeds, robust):
        return fit(
            build, *feeds, config, robust=robust, seed=5, device=CPU, on_epoch=lambda stats: True
        )

    whole = run(lambda: build_model(config, None), (train, val), robust_faces(val))
    stored = robust_features(robust_faces(val), made, backbone, CPU)
    head = run(lambda: build_head(config), of_faces, stored)
    for ours, theirs in zip(head.history, whole.history, strict=True):
        assert ours.robust_val_loss == pytest.approx(theirs.robust_val_loss, abs=1e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, abs=1e-4)


# a whole study


@pytest.mark.slow
def test_a_study_that_optimises_the_robust_loss_with_augmentation(tmp_path):
    robust = "study.objective=robust_val_loss"
    augment = ("augment={flip: {p: 0.5}, jpeg: {p: 0.5}}", "space.augment_p={low: 0, high: 1}")
    folder = Folder(tmp_path, 24, "study.n_trials=7", "train.max_epochs=2", robust, *augment)
    done = folder.run("run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "robust_val_loss 0." in done.stderr + done.stdout

    records = join(folder.study_config()).records()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")

    def logged(run_id, name):
        return {m.step: m.value for m in client.get_metric_history(run_id, name)}

    for record in records:
        run = client.get_run(record.run_id)
        assert logged(record.run_id, "robust_val_loss") == record.losses
        clean = logged(record.run_id, "val_loss")
        assert clean.keys() == record.losses.keys()
        assert set(clean.values()).isdisjoint(record.losses.values())
        assert run.data.metrics["best_robust_val_loss"] == record.best_loss
        assert run.data.metrics["best_val_loss"] == clean[record.best_epoch]
        is_augmented = not record.baseline and record.params.variant != "mobilenet_v2_frozen"
        assert ("augment.jpeg.p" in run.data.params) == is_augmented
        assert ("augment" in run.data.tags) == (
            not record.baseline and record.params.variant == "mobilenet_v2_frozen"
        )
        assert float(run.data.params["augment_p"]) == record.params.augment_p
        if is_augmented:
            p = float(run.data.params["augment.jpeg.p"])
            assert p == pytest.approx(0.5 * record.params.augment_p)
    assert [record.params.augment_p for record in records[:3]] == [0.0] * 3

    again = folder.run("evaluate", "--seeds", "1", "--workers", "2", "--no-corruptions", "--json")
    assert again.returncode == 0, again.stderr
    retrained = join(final_of(folder.study_config())).records()
    for found, trained in (
        (folder.json("evaluate", "--no-corruptions"), records),
        (json.loads(again.stdout), retrained),
    ):
        losses = {(r.rerun.slot if r.rerun else r.number): r.best_loss for r in trained}
        for finalist in found["finalists"]:  # each logged loss is proven
            proof = finalist["proof"]
            assert proof["objective"] == "robust_val_loss"
            assert proof["logged"] == losses[finalist["slot"]]
            assert abs(proof["recomputed"] - finalist["val"]["metrics"]["nll"]) > 1e-4

    drawn = [r for r in records if r.baseline is None and r.state == "complete"]
    (best,) = {f["slot"] for f in found["finalists"] if f["role"] == "candidate"}
    assert best == min(drawn, key=lambda r: r.best_loss).number
    differences = folder.json("compare")["differences"]
    assert "study.objective is robust_val_loss, the report's val_loss" in differences
    assert folder.call("report").returncode == 0
    page = (tmp_path / "sample.html").read_text()
    assert "<dt>Validation loss under corruptions</dt>" in page
    assert folder.call("export", "--out", "model").returncode == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "by validation loss under corruptions" in card
    assert "| epoch kept, validation loss under corruptions |" in card

    for change, named in {
        "study.objective=val_loss": "study.objective was robust_val_loss, is None",
        "augment.jpeg.p=0.1": "augment.jpeg.p was 0.5, is 0.1",
    }.items():
        refused = folder.run("run", "--set", change)
        assert refused.returncode == 2
        assert named in refused.stderr
