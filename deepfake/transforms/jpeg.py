"""What a JPEG encoder and decoder leave of pictures, computed on the pictures' own device."""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from deepfake.reproducibility import full_precision

# ITU-T T.81, annex K: what libjpeg scales by quality
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """(B, H, W, 3) uint8 as they come back from a JPEG of that quality, 1 to 100.

    4:2:0 chroma and the standard tables, as Pillow writes them by default; from its pictures these
    differ by 0.1 to 0.3 of 255 levels in the mean, where JPEG itself changes a photo by 4 to 10.
    """
    height, width = images.shape[1:3]
    planes = functional.pad(_ycc(images), (0, -width % 16, 0, height % 2), mode="replicate")
    # libjpeg rounds means of four up and down by turns, so that they are not biased
    turns = torch.arange(planes.shape[-1] // 2, device=images.device) % 2 / 4 + 0.25
    chroma = functional.avg_pool2d(planes[1:], 2).add_(turns).floor_()
    luma = _coded(planes[:1], quality, _LUMA)[0, :, :height, :width]
    chroma = _coded(chroma, quality, _CHROMA)[..., : -(-width // 2)]
    # the triangle filter, libjpeg's "fancy" upsampling
    blues, reds = functional.interpolate(chroma, scale_factor=2, mode="bilinear").round_()
    return _rgb(luma, blues[:, :height, :width], reds[:, :height, :width])


def _ycc(images: Tensor) -> Tensor:
    """(3, B, H, W) float: JFIF's luma and chroma, rounded, all about 0."""
    red, green, blue = images.float().unbind(-1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma - 128, (blue - luma) / 1.772, (red - luma) / 1.402])
    return planes.round_()


def _rgb(luma: Tensor, blues: Tensor, reds: Tensor) -> Tensor:
    """_ycc's inverse: (B, H, W, 3) uint8."""
    luma = luma + 128
    channels = (
        luma + 1.402 * reds,
        luma - 0.344136 * blues - 0.714136 * reds,
        luma + 1.772 * blues,
    )
    return torch.stack(channels, -1).round_().clamp_(0, 255).byte()


def _coded(planes: Tensor, quality: int, table: tuple[tuple[int, ...], ...]) -> Tensor:
    """(C, B, H, W), W a multiple of 8, through the DCT, its steps and back, rounded; about 0."""
    transform, steps = _constants(quality, table, planes.device)
    rows = planes.shape[2]
    padded = functional.pad(planes, (0, 0, 0, -rows % 8), mode="replicate")
    high, wide = padded.shape[2] // 8, padded.shape[3] // 8
    # one 64 x 64 product for all: 8 x 8 ones don't vectorise
    blocks = padded.reshape(-1, high, 8, wide, 8).transpose(2, 3).reshape(-1, 64)
    with full_precision():  # TF32 keeps 10 bits, a coefficient needs 11
        eighths = (blocks @ transform.T).mul_(8).round_()  # as libjpeg's integers hold them
        levels = eighths.abs().add_(4 * steps).div_(8 * steps).floor_()  # halves away from 0
        blocks = (levels.copysign_(eighths).mul_(steps) @ transform).round_().clamp_(-128, 127)
    coded = blocks.view(-1, high, wide, 8, 8).transpose(2, 3).reshape(padded.shape)
    return coded[:, :, :rows]


@functools.cache
def _constants(
    quality: int, table: tuple[tuple[int, ...], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The 2-D DCT of a block as one (64, 64) matrix, and the step of each coefficient."""
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * k + 1) * k.view(8, 1) * torch.pi / 16) / 2
    dct[0] /= 2**0.5
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality  # libjpeg's
    steps = ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)
    return torch.kron(dct, dct).float().to(device), steps.flatten().float().to(device)
