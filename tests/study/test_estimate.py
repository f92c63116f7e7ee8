import pytest
import torch

from deepfake.config import DataConfig, ImageSize, TrainConfig
from deepfake.data.prepare import prepare_data
from deepfake.models.build import build_model, frozen_backbone
from deepfake.models.features import ensure_features
from deepfake.models.layers import count_parameters
from deepfake.timing import Pace, measure_data, time_variant
from study.estimate import SLOT_S, START_S, _makespan, _slots, estimate
from tests.support.photos import draw_set
from tests.support.runs import Folder

CPU = torch.device("cpu")
QUICK = (  # seconds are not looked at: no more of them than need be
    "train.batch_size=4",
    "train.max_epochs=2",
    "study.n_trials=7",
)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, 24, *QUICK)


def test_workers_take_the_next_slot_as_soon_as_they_are_free():
    assert _makespan([5, 1, 1, 1, 4], workers=1) == 12
    assert _makespan([5, 1, 1, 1, 4], workers=2) == 7  # the second: 1, 1, 1 and 4
    assert _makespan([5, 1], workers=8) == 5


def test_drawn_slots_take_turns_behind_the_baselines(make_config):
    variants, fixed = zip(*_slots(make_config("study.n_trials=8")), strict=True)
    in_turn = ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
    assert variants == (*in_turn, *in_turn, *in_turn[:2])
    assert fixed == (True,) * 3 + (False,) * 5


def test_what_is_cut_for_an_estimate_foretells_what_prepare_finds(tmp_path):
    path = draw_set(tmp_path, n_photos=60)
    data = DataConfig(annotations=[path], photos_dir=tmp_path, work_dir=tmp_path / "work")
    before = measure_data(data, [32])
    assert not data.work_dir.exists()
    assert before.prepare_s > 0
    prepare_data(data, [32], processes=1)
    after = measure_data(data, [32])
    assert before.faces == after.faces == 120
    assert before.train == pytest.approx(after.train, abs=2)
    assert before.val == pytest.approx(after.val, abs=2)
    assert before.crops_bytes == pytest.approx(after.crops_bytes, rel=0.1)
    assert after.prepare_s == 0


def test_a_store_that_is_missing_is_still_to_be_paid(tmp_path):
    path = draw_set(tmp_path, n_photos=12)
    data = DataConfig(annotations=[path], photos_dir=tmp_path, work_dir=tmp_path / "work")
    prepare_data(data, [32], processes=1)
    assert measure_data(data, [32, 48]).prepare_s > 0


@pytest.fixture
def prepared(make_config, tmp_path):
    """A configuration of 48 faces of its own, with the stores that it reads."""

    def prepared_with(*overrides):
        config = make_config(
            f"data.annotations=[{draw_set(tmp_path / 'photos', n_photos=24)}]",
            f"data.photos_dir={tmp_path}/photos",
            f"data.work_dir={tmp_path}/faces",
            "train.image_size={cnn: 32, mobilenet_v2: 33}",
            "train.max_epochs=10",
            "study.n_trials=6",
            *overrides,
        )
        prepare_data(config.data, config.sides_px, processes=1)
        return config

    return prepared_with


def timed(config, device, val_share, scratch_dir):
    """As time_variant on a GPU, which no machine here has: fp32 takes four times as long."""
    face_s = 4.0 if config.precision == "fp32" else 1.0
    embed_s = 0.5 if config.variant == "mobilenet_v2_frozen" else 0.0
    return Pace(config.variant, face_s, 0.0, 8, 4, embed_s)


def test_baselines_are_reckoned_in_fp32_whatever_the_study_computes_in(prepared, monkeypatch):
    monkeypatch.setattr("study.estimate.time_variant", timed)
    found = estimate(prepared("train.precision=bf16"), [None], workers=1)
    n = found.train_faces
    assert [(c.variant, c.baselines, c.epoch_s, c.slots) for c in found.variants] == [
        (variant, apart, n * (4.0 if apart else 1.0), 1)
        for variant in ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
        for apart in (False, True)
    ]
    # three slots of 10 epochs in bf16, three in fp32, a second each around them
    training = START_S + 6 * SLOT_S + 3 * 10 * n * (1.0 + 4.0)
    assert found.at_most_s == pytest.approx(training + 0.5 * (n + found.val_faces))
    assert found.disk["artifacts"] == 6 * 4


def test_baselines_have_no_row_of_their_own_where_they_are_trained_as_the_others(
    prepared, monkeypatch
):
    monkeypatch.setattr("study.estimate.time_variant", timed)
    found = estimate(prepared(), [None], workers=1)
    assert [(cost.baselines, cost.slots) for cost in found.variants] == [(False, 2)] * 3
    augmented = estimate(prepared("augment={flip: {p: 0.5}}"), [None], workers=1)
    apart = [cost.variant for cost in augmented.variants if cost.baselines]
    assert apart == ["cnn", "mobilenet_v2_finetuned"]  # what is frozen is never augmented


def test_features_that_are_there_cost_nothing(prepared, monkeypatch):
    monkeypatch.setattr("study.estimate.time_variant", timed)
    config = prepared()
    before = estimate(config, [None], workers=1)
    assert before.embed_s == 0.5 * (before.train_faces + before.val_faces)
    ensure_features(config.data.work_dir, 33, frozen_backbone("mobilenet_v2_frozen", None), CPU)
    after = estimate(config, [None], workers=1)
    assert after.embed_s == 0
    assert before.search_s - after.search_s == pytest.approx(before.embed_s)
    assert after.disk == before.disk
    robust = config.study.model_copy(update={"objective": "robust_val_loss"})
    again = estimate(config.model_copy(update={"study": robust}), [None], workers=1)
    assert again.embed_s == 0.5 * again.val_faces  # of the corrupted ones alone


@pytest.mark.parametrize("variant", ["cnn", "mobilenet_v2_finetuned", "mobilenet_v2_frozen"])
@pytest.mark.slow
def test_a_variants_checkpoint_and_weights_are_as_large_as_said(variant, tmp_path):
    config = TrainConfig(
        variant=variant,
        lr=1e-3,
        weight_decay=0,
        dropout=0.1,
        image_size=ImageSize(cnn=32, mobilenet_v2=33),
        batch_size=4,
    )
    pace = time_variant(config, CPU, 0.25, tmp_path)
    assert not any(tmp_path.iterdir())
    whole = build_model(config, None)
    buffers = sum(buffer.nbytes for buffer in whole.buffers())
    assert pace.weights_bytes == 4 * count_parameters(whole) + buffers
    assert pace.face_s > 0
    assert (pace.embed_s > 0) == (variant == "mobilenet_v2_frozen")
    if variant != "mobilenet_v2_frozen":  # Adam's two moments, the model, and the best if not it
        assert 2.9 <= pace.checkpoint_bytes / pace.weights_bytes <= 4.1


@pytest.mark.slow
def test_an_estimate_says_what_the_study_will_train_and_leaves_nothing(folder):
    found = folder.json("estimate", "--workers", "2")
    assert (found["workers"], found["device"], found["n_trials"]) == (2, "cpu", 7)
    variants = {cost["variant"]: cost for cost in found["variants"]}
    assert {v: cost["slots"] for v, cost in variants.items()} == {
        "cnn": 3,
        "mobilenet_v2_frozen": 2,
        "mobilenet_v2_finetuned": 2,
    }
    assert 0 < found["search_s"] < found["at_most_s"]
    faces = 48
    assert found["disk"]["stores"] == faces * (32 * 32 + 33 * 33) * 3
    assert found["disk"]["features"] == (found["train_faces"] + found["val_faces"]) * 1280 * 4
    assert not (folder.path / "faces").exists()
    assert not (folder.path / "mlruns/study.db").exists()
    assert not [p for p in (folder.path / "mlruns").rglob("*") if p.is_file()]


@pytest.mark.slow
def test_on_a_cluster_more_workers_take_less_time_and_are_timed_alone(folder):
    alone = folder.json("estimate", "--launcher", "slurm")
    many = folder.json("estimate", "--launcher", "slurm", "--workers", "7")
    assert (alone["workers"], many["workers"]) == (1, 7)
    assert many["disk"]["checkpoints"] == pytest.approx(7 * alone["disk"]["checkpoints"], rel=0.4)


@pytest.mark.slow
def test_the_table_says_the_search_and_the_disk(folder):
    done = folder.call("estimate")
    assert done.returncode == 0, done.stderr
    for word in ("7 slots", "mobilenet_v2_finetuned", "search", "at most", "stores", "free"):
        assert word in done.stdout


def test_an_estimate_without_photos_is_refused_as_prepare_refuses_it(folder):
    (folder.path / "photos/Train_poly.json").unlink()
    done = folder.call("estimate")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Train_poly.json" in done.stderr
