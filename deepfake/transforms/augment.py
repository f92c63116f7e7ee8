"""Training pictures that differ each epoch: mirrored, scaled, blurred, with noise, compressed."""

from dataclasses import replace

import torch
from torch import Tensor

from deepfake.config import Augment, Blur, Downscale, Flip, Jpeg, Noise, Step
from deepfake.data import Change, Faces
from deepfake.transforms.corruptions import blur, downscale, noise
from deepfake.transforms.jpeg import jpeg


def augmented(faces: Faces, augment: Augment | None) -> Faces:
    """The same faces, changed by chance in every pass that is shuffled."""
    return replace(faces, change=augmentation(augment))


def augmentation(augment: Augment | None) -> Change | None:
    """All its chance is of a pass's generator, behind its order.

    So (seed, slot, epoch) repeats a curve, and the order is that of a plain training.
    """
    if augment is None:
        return None
    steps = [step for _, step in augment if step is not None]

    def change(images: Tensor, _: Tensor, generator: torch.Generator | None) -> Tensor:
        assert generator is not None  # a pass in order is an evaluation
        for step in steps:
            images = _changed(images, step, generator)
        return images

    return change


def _changed(images: Tensor, step: Step, generator: torch.Generator) -> Tensor:
    """Each picture has its own chance; how strongly is drawn once, for all of the batch.

    So a batch holds clean and changed pictures, and what is changed takes one kernel, one size or
    one table. A strength for each picture would take a call for each.
    """
    chosen = torch.rand(len(images), generator=generator) < step.p
    share = torch.rand((), generator=generator).item()
    places = chosen.nonzero().flatten()
    if len(places):
        images[places] = _done(images[places], step, share, generator)
    return images


def _done(images: Tensor, step: Step, share: float, generator: torch.Generator) -> Tensor:
    """share: of the way from low to high."""
    match step:
        case Flip():
            return images.flip(2)
        case Downscale(low=low, high=high):
            return downscale(images, low + share * (high - low))
        case Blur(low=low, high=high):
            return blur(images, low + share * (high - low))
        case Noise(low=low, high=high):
            # on the pictures' device: on a CPU alone it would take longer than a GPU's step
            on_device = torch.Generator(images.device)
            on_device.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return noise(images, low + share * (high - low), on_device)
        case Jpeg(low=low, high=high):
            return jpeg(images, round(low + share * (high - low)))
        case _:
            raise AssertionError(step)
