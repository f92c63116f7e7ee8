"""Augmented training: repeatable, resumable, by chance only where it was asked for."""

import pytest
import torch

from deepfake.config import Augment, ImageSize, TrainConfig
from deepfake.data.feed import Faces, normalise
from deepfake.models.build import build_model
from deepfake.training.checkpoint import Checkpoints
from deepfake.training.loop import fit
from deepfake.transforms.augment import augmented
from tests.deepfake.training.test_loop import Stop, assert_same, stop_after
from tests.support.photos import prepared_set

CPU = torch.device("cpu")
SIDE = 32
ALL = Augment.model_validate(
    {
        "flip": {"p": 0.5},
        "downscale": {"p": 0.4},
        "blur": {"p": 0.4},
        "noise": {"p": 0.4},
        "jpeg": {"p": 0.4},
    }
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def feeds(tmp_path_factory):
    """34 training faces of 48, and 7 of validation."""
    folder = tmp_path_factory.mktemp("made")
    work_dir = prepared_set(folder, [SIDE]).work_dir
    return [Faces.load(work_dir, split, SIDE) for split in ("train", "val")]


def run(feeds, augment, seed=3, on_epoch=lambda stats: True, **more):
    train, val = feeds
    config = TrainConfig(
        variant="cnn",
        lr=1e-3,
        weight_decay=1e-5,
        dropout=0.3,
        image_size=ImageSize(cnn=SIDE),
        batch_size=8,
        max_epochs=3,
    )
    return fit(
        lambda: build_model(config, None),
        augmented(train, augment),
        val,
        config,
        seed=seed,
        device=CPU,
        on_epoch=on_epoch,
        **more,
    )


def test_the_same_seed_gives_the_same_augmented_curve_bit_for_bit(feeds):
    first = run(feeds, ALL)
    torch.manual_seed(99)
    assert_same(run(feeds, ALL), first)
    assert run(feeds, ALL, seed=4).history[0].train_loss != first.history[0].train_loss
    assert run(feeds, None).history[0].train_loss != first.history[0].train_loss


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_augmented_run_resumes_bit_for_bit(feeds, epoch, tmp_path):
    whole, files = run(feeds, ALL), Checkpoints(tmp_path)
    with pytest.raises(Stop):
        run(feeds, ALL, on_epoch=stop_after(epoch), save=files.save)
    assert len(files.load()["history"]) == epoch + 1
    assert_same(run(feeds, ALL, resume=files.load(), save=files.save), whole)


def test_an_augmentation_scaled_to_nothing_is_none_and_the_curve_the_plain_one(feeds):
    assert ALL.scaled(0) is None
    assert augmented(feeds[0], None).change is None
    assert_same(run(feeds, ALL.scaled(0)), run(feeds, None))


def passes(faces, augment, seed=1, batch_size=8):
    """A shuffled pass as it was given, and the same pictures unchanged."""
    seeded = [torch.Generator().manual_seed(seed) for _ in range(2)]
    plain, changed = faces.batches(batch_size, CPU, seeded[0]), augmented(faces, augment)
    pairs = zip(changed.batches(batch_size, CPU, seeded[1]), plain, strict=True)
    return [
        (one.clone(), other.clone(), torch.equal(labels, same))
        for (one, labels), (other, same) in pairs
    ]


def test_augmented_faces_come_in_the_order_of_plain_ones(feeds):
    assert all(same for *_, same in passes(feeds[0], ALL))
    flipped = Augment.model_validate({"flip": {"p": 1.0}})
    for images, plain, _ in passes(feeds[0], flipped):
        assert torch.equal(images, plain.flip(3))  # left for right, and the right way up


@pytest.mark.parametrize("name", ["flip", "downscale", "blur", "noise", "jpeg"])
def test_about_a_share_p_of_the_pictures_is_changed(feeds, name):
    """Of 34 faces in each of 30 passes: 306 of 1,020 in the mean, four deviations are 59."""
    augment = Augment.model_validate({name: {"p": 0.3}})
    changed = sum(
        int((images != plain).flatten(1).any(1).sum())
        for seed in range(30)
        for images, plain, _ in passes(feeds[0], augment, seed)
    )
    assert changed == pytest.approx(306, abs=59)


def test_each_pass_changes_other_pictures_in_another_way(feeds):
    noisy = Augment.model_validate({"noise": {"p": 1.0, "low": 5, "high": 20}})
    first, second = ([a - b for a, b, _ in passes(feeds[0], noisy, seed)] for seed in (1, 2))
    strengths = [batch.std().item() for batch in [*first, *second]]
    assert len(set(strengths)) == len(strengths)
    # 5 to 20 levels of 255, over ImageNet's deviation of about 0.225
    assert all(4 < strength * 0.225 * 255 < 21 for strength in strengths)


def test_a_pass_in_order_of_augmented_faces_is_refused(feeds):
    with pytest.raises(AssertionError):
        next(augmented(feeds[0], ALL).batches(8, CPU))


def test_the_stored_pictures_stay_as_they_are(feeds):
    before = normalise(feeds[0].images)
    passes(feeds[0], ALL)
    assert torch.equal(normalise(feeds[0].images), before)
