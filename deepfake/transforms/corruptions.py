"""What happens to pictures on their way: JPEG, blur, noise and more; and faces under it."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from deepfake.data import Faces
from deepfake.reproducibility import full_precision
from deepfake.transforms.jpeg import jpeg

PIXELS = 1  # raised when a kind gives other pixels at the same level


@dataclass(frozen=True)
class Kind:
    """One way to corrupt pictures."""

    level: str  # what a level is, as an axis names it
    # (B, H, W, 3) uint8 to the same, at a level. (B,), on the CPU: of each picture's noise
    change: Callable[[Tensor, float, Tensor], Tensor]
    neutral: float | None = None  # the level that changes nothing, where some lie on either side


@dataclass(frozen=True)
class Corruption:
    """One thing that is done to pictures, always the same to the same picture."""

    kind: str  # of KINDS
    value: float  # JPEG quality, sigma in px, factor of the side, sigma in levels of 255, factor

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.value:g}"

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to the same. seeds (B,), on the CPU: of each picture's noise."""
        return KINDS[self.kind].change(images, self.value, seeds)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian, sigma in px, cut at 3 sigma; the border is mirrored."""
    size = 2 * math.ceil(3 * sigma) + 1
    planes: Tensor = images.permute(0, 3, 1, 2).float()
    with full_precision():  # rows, then columns: in one pass it takes up to 19 times the products
        planes = vision.gaussian_blur(planes, [size, 1], [sigma, sigma])
        planes = vision.gaussian_blur(planes, [1, size], [sigma, sigma])
    return planes.round_().byte().permute(0, 2, 3, 1)


def downscale(images: Tensor, factor: float) -> Tensor:
    """To that share of the side and back, both bilinear with antialiasing, as Pillow has it."""
    size = list(images.shape[1:3])
    small = [max(round(side * factor), 1) for side in size]
    planes: Tensor = vision.resize(images.permute(0, 3, 1, 2), small, antialias=True)
    planes = vision.resize(planes, size, antialias=True)
    return planes.permute(0, 2, 3, 1)


def noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian, sigma in levels of 255, drawn where the generator is."""
    drawn = torch.randn(images.shape, generator=generator, device=generator.device)
    return drawn.to(images.device).mul_(sigma).add_(images).round_().clamp_(0, 255).byte()


def _own_noise(images: Tensor, sigma: float, seeds: Tensor) -> Tensor:
    # picture by picture: the same whatever batch it is in
    drawn = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    pairs = zip(torch.split(images, 1), drawn, strict=True)
    return torch.cat([noise(one, sigma, generator) for one, generator in pairs])


def _channels_first(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _brightness(images: Tensor, factor: float, _: Tensor) -> Tensor:
    return _channels_first(images, lambda planes: vision.adjust_brightness(planes, factor))


def _contrast(images: Tensor, factor: float, _: Tensor) -> Tensor:
    return _channels_first(images, lambda planes: vision.adjust_contrast(planes, factor))


KINDS = {
    "jpeg": Kind("JPEG quality", lambda images, quality, _: jpeg(images, round(quality))),
    "blur": Kind("blur, sigma in px", lambda images, sigma, _: blur(images, sigma)),
    "downscale": Kind(
        "scaled down to this share, and back", lambda images, share, _: downscale(images, share)
    ),
    "noise": Kind("noise, sigma in grey levels", _own_noise),
    "brightness": Kind("brightness, factor", _brightness, neutral=1),
    "contrast": Kind("contrast, factor", _contrast, neutral=1),
}

# The suite: what a finalist is measured under, by name. Mild to harsh within each kind.
SUITE = {
    corruption.name: corruption
    for corruption in (
        *[Corruption("jpeg", quality) for quality in (90, 70, 50, 30)],
        *[Corruption("blur", sigma) for sigma in (1, 2, 3)],
        *[Corruption("downscale", factor) for factor in (0.75, 0.5, 0.25)],
        *[Corruption("noise", sigma) for sigma in (5, 10, 20)],
        *[Corruption("brightness", factor) for factor in (0.7, 1.3)],
        *[Corruption("contrast", factor) for factor in (0.7, 1.3)],
    )
}


def suite_sha256() -> str:
    """Of kinds and levels in their order: another, and a face may be under something else."""
    levels = [(corruption.kind, float(corruption.value)) for corruption in SUITE.values()]
    return hashlib.sha256(json.dumps([PIXELS, *levels]).encode()).hexdigest()


def under(faces: Faces, corruption: Corruption) -> Faces:
    """The same faces, each under that corruption; the same pixels every time and everywhere."""
    assert faces.change is None
    seeds = _seeds(faces)
    return replace(faces, change=lambda images, numbers, _: corruption(images, seeds[numbers]))


def robust_faces(faces: Faces) -> Faces:
    """The same faces, as many, each as its name has it: clean, or under one of the suite."""
    assert faces.change is None
    seeds = _seeds(faces)
    suite = list(SUITE.values())
    chosen = [corruption_of(name) for name in faces.table["cutted_name"]]
    kinds = torch.tensor([-1 if one is None else suite.index(one) for one in chosen])

    def change(images: Tensor, numbers: Tensor, _: torch.Generator | None) -> Tensor:
        of_batch = kinds[numbers]
        for kind, corruption in enumerate(suite):
            places = (of_batch == kind).nonzero().flatten()
            if len(places):
                images[places] = corruption(images[places], seeds[numbers[places]])
        return images

    return replace(faces, change=change)


def corruption_of(name: str) -> Corruption | None:
    """What a face of the robust set is under, None if clean: all with equal chances."""
    return (None, *SUITE.values())[_hash(name) % (1 + len(SUITE))]


def _seeds(faces: Faces) -> Tensor:
    """(N,) int64, of each face's name alone."""
    return torch.tensor([_hash(name) for name in faces.table["cutted_name"]])


def _hash(name: str) -> int:
    """63 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
