import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from deepfake.config import ImageSize, TrainConfig
from deepfake.data.feed import Faces, normalise
from deepfake.data.store import store_path
from deepfake.models.build import build_model
from deepfake.training.loop import fit
from tests.support.large_store import draw_large_store, private_mib_of_feeding
from tests.support.photos import prepared_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared work_dir of 48 faces with stores of 32 and 64 px. Never written to."""
    folder = tmp_path_factory.mktemp("made")
    return prepared_set(folder, [32, 64])


def every_byte_in_every_channel():
    values = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(1, 16, 16, 3)
    pictures = np.concatenate([values, values // 3, values[:, ::-1] // 3 + 7]).astype(np.uint8)
    for channel in range(3):
        assert len(np.unique(pictures[..., channel])) == 256
    return pictures


def test_normalise_is_torchvisions_within_a_millionth_on_every_byte_value():
    pictures = every_byte_in_every_channel()
    reference = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    expected = torch.stack([reference(Image.fromarray(picture)) for picture in pictures])
    images = normalise(torch.from_numpy(pictures))
    assert (images - expected).abs().max() < 1e-6
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_pixel_is_normalised_the_same_wherever_it_stands():
    """Vectorised code and its remainder may round differently."""
    values = torch.arange(256, dtype=torch.uint8)
    for side in (1, 5, 37):
        pictures = values.view(256, 1, 1, 1).expand(256, side, side, 3).contiguous()
        images = normalise(pictures)
        assert torch.equal(images, images[:, :, :1, :1].expand_as(images))
        assert torch.equal(images[:, :, :1, :1], normalise(pictures[:, :1, :1].contiguous()))


def test_batches_in_order_hold_every_face_once_and_the_last_may_be_smaller(made):
    faces = Faces.load(made.work_dir, "train", 32)
    n = len(faces)
    batches = [(images.clone(), labels) for images, labels in faces.batches(7, CPU)]
    assert [len(labels) for _, labels in batches] == [7] * (n // 7) + [n % 7] * (n % 7 > 0)
    assert torch.equal(torch.cat([labels for _, labels in batches]), faces.labels)
    assert torch.equal(torch.cat([images for images, _ in batches]), normalise(faces.images))
    images, _ = next(faces.batches(7, CPU))
    assert images.shape == (7, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_written_where_the_one_before_was(made):
    """So that memory doesn't grow, and no page is touched for the first time."""
    faces = Faces.load(made.work_dir, "train", 32)
    assert len({images.data_ptr() for images, _ in faces.batches(7, CPU)}) == 1


def test_a_batch_larger_than_the_split_holds_all_of_it(made):
    faces = Faces.load(made.work_dir, "val", 32)
    ((images, labels),) = faces.batches(1000, CPU)
    assert len(images) == len(labels) == len(faces)


def test_shuffled_batches_follow_the_generator_and_keep_labels_with_images(made):
    faces = Faces.load(made.work_dir, "train", 32)

    def one_pass(seed):
        shuffled = faces.batches(8, CPU, torch.Generator().manual_seed(seed))
        batches = [(images.clone(), labels) for images, labels in shuffled]
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))

    (images, labels), (again, _), (other, _) = one_pass(1), one_pass(1), one_pass(2)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(1))
    assert torch.equal(images, normalise(faces.images[order]))
    assert torch.equal(labels, faces.labels[order])


def test_reading_batches_writes_nothing_to_disk(made):
    path = store_path(made.work_dir, 32)
    before = path.read_bytes()
    for images, _ in Faces.load(made.work_dir, "train", 32).batches(8, CPU):
        images.zero_()
    assert path.read_bytes() == before


class DecodedEachTime:
    """The slow path: every face opened and resized by Pillow each time it is asked for."""

    def __init__(self, faces, work_dir, side):
        self.faces, self.work_dir, self.side = faces, work_dir, side
        self.labels = faces.labels

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, device, generator=None):
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        names = self.faces.table["cutted_name"].tolist()
        for numbers in order.split(batch_size):
            pictures = [self.opened(self.work_dir / "crops" / names[i]) for i in numbers.tolist()]
            yield normalise(torch.from_numpy(np.stack(pictures))), self.labels[numbers]

    def opened(self, crop):
        with Image.open(crop) as face:
            small = face.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.asarray(small)


@pytest.mark.parametrize("variant", ["cnn", "mobilenet_v2_finetuned"])
def test_the_curve_on_the_store_is_bit_for_bit_the_slow_paths(made, variant):
    side = 64
    config = TrainConfig(
        variant=variant,
        lr=1e-3,
        weight_decay=1e-5,
        dropout=0.3,
        image_size=ImageSize(cnn=side, mobilenet_v2=side),
        batch_size=7,  # the last batch is smaller
        max_epochs=2,
    )
    stored = [Faces.load(made.work_dir, split, side) for split in ("train", "val")]
    decoded = [DecodedEachTime(faces, made.work_dir, side) for faces in stored]
    curves, weights = [], []
    for feeds in (stored, decoded):
        result = fit(
            lambda: build_model(config, None),
            *feeds,
            config,
            seed=3,
            device=CPU,
            on_epoch=lambda stats: True,
        )
        curves.append([(stats.train_loss, stats.val_loss) for stats in result.history])
        weights.append(result.best_state)
    assert curves[0] == curves[1]
    assert len(curves[0]) == 2
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="smaps is Linux's")
def test_feeding_150_000_faces_takes_less_than_300_mib_of_a_workers_own_memory(tmp_path):
    """12,000 of 224 px and 6,000 more, 2.7 GB: had their pages stayed, it would show."""
    draw_large_store(tmp_path)
    assert 0 < private_mib_of_feeding(tmp_path, n_faces=12_000) < 300
