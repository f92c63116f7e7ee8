"""A frozen backbone's features: as the full pass gives them, computed once however many ask."""

import itertools
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from deepfake.config import ImageSize, TrainConfig
from deepfake.data.arrays import Rows
from deepfake.data.feed import Faces
from deepfake.data.store import ensure_store
from deepfake.errors import DataError
from deepfake.models import features
from deepfake.models.build import build_head, build_model, frozen_backbone
from deepfake.models.features import (
    Features,
    ensure_features,
    features_path,
    robust_features,
    rows_to_embed,
)
from deepfake.models.layers import whole_state
from deepfake.training.loop import evaluate, fit
from deepfake.transforms.corruptions import SUITE, Corruption, robust_faces
from tests.support.photos import prepared_set

CPU = torch.device("cpu")
SIDE = 40
CONFIG = TrainConfig(
    variant="mobilenet_v2_frozen",
    lr=1e-2,
    weight_decay=1e-4,
    dropout=0.3,
    image_size=ImageSize(mobilenet_v2=SIDE),
    batch_size=8,
    max_epochs=3,
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """48 faces, 40 of them in train and val. Never written to."""
    folder = tmp_path_factory.mktemp("made")
    return prepared_set(folder, [SIDE])


@pytest.fixture
def work_dir(made, tmp_path):
    return shutil.copytree(made.work_dir, tmp_path / "work")


@pytest.fixture(scope="module")
def backbone():
    return frozen_backbone("mobilenet_v2_frozen", None).eval()


def stored(work_dir, backbone):
    """Faces and features of train and val."""
    path = ensure_features(work_dir, SIDE, backbone, CPU)
    faces = [Faces.load(work_dir, split, SIDE) for split in ("train", "val")]
    of_faces = [
        Features.load(path, work_dir, split, SIDE, of_split.labels)
        for split, of_split in zip(("train", "val"), faces, strict=True)
    ]
    return faces, of_faces


def test_the_logits_of_stored_features_are_the_full_passs(work_dir, backbone):
    torch.manual_seed(1)
    whole = build_model(CONFIG, None)
    for faces, of_faces in zip(*stored(work_dir, backbone), strict=True):
        by_pixels = evaluate(whole, faces, CONFIG, CPU)
        by_features = evaluate(whole[1], of_faces, CONFIG, CPU)
        assert by_pixels.std() > 0.1  # they say something
        assert (by_pixels - by_features).abs().max() < 1e-4


def test_a_head_on_stored_features_learns_as_in_the_full_model(work_dir, backbone):
    """Same first weights, order and dropout: the full model is the reference."""
    faces, of_faces = stored(work_dir, backbone)

    def trained(build, feeds):
        return fit(build, *feeds, CONFIG, seed=5, device=CPU, on_epoch=lambda stats: True)

    whole = trained(lambda: build_model(CONFIG, None), faces)
    head = trained(lambda: build_head(CONFIG), of_faces)
    for ours, theirs in zip(head.history, whole.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, abs=1e-4)
    state = whole_state(backbone, head.best_state)
    assert state.keys() == whole.best_state.keys()
    for name, value in whole.best_state.items():
        assert torch.allclose(state[name].float(), value.float(), atol=1e-4), name


def test_the_backbone_without_weights_is_the_same_for_every_seed_and_draws_nothing():
    heads, backbones = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        backbones.append(frozen_backbone("mobilenet_v2_frozen", None)[0][0][0].weight)
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1))
        torch.manual_seed(seed)
        whole = build_model(CONFIG, None)
        torch.manual_seed(seed)
        assert torch.equal(build_head(CONFIG)[1].weight, whole[1][1].weight)
        heads.append(whole[1][1].weight)
    assert torch.equal(*backbones)
    assert not torch.equal(*heads)


def test_train_and_val_are_embedded_and_never_test(work_dir, backbone):
    path = ensure_features(work_dir, SIDE, backbone, CPU)
    train, val = (Faces.load(work_dir, split, SIDE) for split in ("train", "val"))
    assert np.load(path).shape == (len(train) + len(val), 1280)
    assert np.load(path).dtype == np.float32
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == [path.name]


def test_other_weights_another_side_or_other_crops_have_features_of_their_own(
    made, work_dir, backbone
):
    first = ensure_features(work_dir, SIDE, backbone, CPU)
    told = []
    again = ensure_features(work_dir, SIDE, backbone, CPU, progress=lambda *now: told.append(now))
    assert (again, told) == (first, [])
    other = frozen_backbone("mobilenet_v2_frozen", None)
    with torch.no_grad():
        other[0][0][0].weight.view(-1)[0] += 1e-3
    ensure_store(work_dir, 33, made.crops_sha256)
    paths = {first, features_path(work_dir, SIDE, other), features_path(work_dir, 33, backbone)}
    ensure_store(work_dir, SIDE, "f" * 64)
    paths.add(features_path(work_dir, SIDE, backbone))
    assert len(paths) == 4


def test_features_under_another_suite_of_corruptions_are_not_those_that_are_kept(
    work_dir, backbone, monkeypatch
):
    val = Faces.load(work_dir, "val", SIDE)
    kept = robust_features(robust_faces(val), work_dir, backbone, CPU).rows.path
    before = kept.read_bytes()
    assert rows_to_embed(work_dir, SIDE, backbone, robust=True) == 40
    monkeypatch.setitem(SUITE, "blur_9", Corruption("blur", 9))
    assert rows_to_embed(work_dir, SIDE, backbone, robust=True) == 40 + len(val)
    other = robust_features(robust_faces(val), work_dir, backbone, CPU).rows.path
    assert other != kept
    assert other.read_bytes() != kept.read_bytes() == before  # faces are under others now


def test_shuffled_features_come_in_the_order_of_shuffled_faces(work_dir, backbone):
    (faces, _), (of_faces, _) = stored(work_dir, backbone)
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    for (images, labels), (rows, same) in zip(
        faces.batches(8, CPU, seeded[0]), of_faces.batches(8, CPU, seeded[1]), strict=True
    ):
        assert torch.equal(labels, same)
        with torch.inference_mode():
            assert torch.allclose(backbone(images), rows, atol=1e-4)


def test_who_is_told_to_stop_leaves_what_it_has_done(work_dir, backbone, monkeypatch):
    monkeypatch.setattr(features, "CHUNK_ROWS", 8)
    batches = iter(range(3))

    def tick():
        if next(batches, None) is None:
            raise KeyboardInterrupt

    told = []
    assert rows_to_embed(work_dir, SIDE, backbone, robust=False) == 40
    with pytest.raises(KeyboardInterrupt):
        ensure_features(work_dir, SIDE, backbone, CPU, tick, lambda *now: told.append(now[1]))
    assert not features_path(work_dir, SIDE, backbone).exists()
    assert told == [8, 16, 24]
    assert rows_to_embed(work_dir, SIDE, backbone, robust=False) == 16
    ensure_features(work_dir, SIDE, backbone, CPU, progress=lambda *now: told.append(now[1]))
    assert told == [8, 16, 24, 32, 40]
    assert rows_to_embed(work_dir, SIDE, backbone, robust=False) == 0


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_features(work_dir, backbone, monkeypatch):
    monkeypatch.setattr(features, "CHUNK_ROWS", 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # of 204,928 bytes
    try:
        with pytest.raises(DataError, match=r"\.npy: File too large; mend that"):
            ensure_features(work_dir, SIDE, backbone, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not features_path(work_dir, SIDE, backbone).exists()
    assert len(Rows(ensure_features(work_dir, SIDE, backbone, CPU), 0, 40)) == 40


def test_features_that_end_too_early_are_named(work_dir, backbone):
    path = ensure_features(work_dir, SIDE, backbone, CPU)
    path.write_bytes(path.read_bytes()[:-7])
    _, (_, val) = stored(work_dir, backbone)
    with pytest.raises(DataError, match=r"\.npy: ends within row 39; delete it"):
        list(val.batches(8, CPU))


EMBED = """
import os, signal, sys, time
from pathlib import Path
import torch
from deepfake.models import features
from deepfake.models.build import frozen_backbone

torch.set_num_threads(1)
features.CHUNK_ROWS = 4
work_dir, die_after = Path(sys.argv[1]), int(sys.argv[2])
backbone = frozen_backbone("mobilenet_v2_frozen", None)
print("ready", flush=True)
sys.stdin.readline()
told = []

def progress(stage, done, total):
    told.append(done)
    print(done, flush=True)
    if len(told) == die_after:
        os.kill(os.getpid(), signal.SIGKILL)

features.ensure_features(work_dir, 40, backbone, torch.device("cpu"), progress=progress)
"""


def embed(work_dir, die_after=0):
    command = [sys.executable, "-c", EMBED, work_dir, str(die_after)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def chunks_of(processes):
    """Started together when all are ready; the chunks each embedded, by its last row."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [[int(line) for line in p.communicate(timeout=300)[0].split()] for p in processes]


@pytest.mark.slow
def test_workers_who_want_features_at_once_share_one_embedding(work_dir, backbone):
    processes = [embed(work_dir) for _ in range(4)]
    shares = chunks_of(processes)
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(itertools.chain(*shares)) == list(range(4, 41, 4))  # each chunk once
    path = features_path(work_dir, SIDE, backbone)
    alone = ensure_features(shutil.copytree(work_dir, work_dir / "again"), SIDE, backbone, CPU)
    path_of_one = replace_features(alone, backbone)
    assert np.allclose(np.load(path), np.load(path_of_one), atol=1e-5)


def replace_features(path, backbone):
    """Computed anew, in one chunk."""
    path.unlink()
    return ensure_features(path.parents[1], SIDE, backbone, CPU)


@pytest.mark.slow
def test_a_killed_embedding_is_continued_by_whoever_comes(work_dir, backbone):
    killed = embed(work_dir, die_after=3)
    assert chunks_of([killed]) == [[4, 8, 12]]
    assert killed.returncode == -signal.SIGKILL
    assert not features_path(work_dir, SIDE, backbone).exists()
    assert chunks_of([embed(work_dir)]) == [list(range(16, 41, 4))]
    assert len(np.load(features_path(work_dir, SIDE, backbone))) == 40
