"""What makes a training repeatable: seeds that do not repeat, the device and its precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from deepfake.config import TrainConfig, TrainSettings
from deepfake.errors import ConfigError, UserError

if TYPE_CHECKING:  # not loaded for a seed, which is all that most who come here want
    import torch


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative numbers, each change of which changes it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def pick_device(name: str | None) -> "torch.device":
    """The device of that name; without one the first GPU, or the CPU where there is none."""
    import torch

    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} CUDA devices")
    return device


def autocast(config: TrainConfig, device: "torch.device") -> AbstractContextManager[Any]:
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def check_precision(config: TrainSettings, device: "torch.device") -> None:
    """Raises ConfigError for bf16 on a CPU."""
    if config.precision == "bf16" and device.type != "cuda":
        raise ConfigError(f"train.precision: bf16 needs CUDA, the device is {device}; set fp32")


def set_precision(config: TrainConfig, device: "torch.device") -> None:
    """Full fp32 or, where bf16 asks for speed, TF32 too. Raises as check_precision."""
    check_precision(config, device)
    _allow_tf32(config.precision == "bf16")


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 without TF32 in the block, whatever was set before it."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(False)
    try:
        yield
    finally:
        _allow_tf32(before)


def _allow_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed  # torch's own default is True
