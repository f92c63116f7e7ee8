"""The weights that a network begins from, and what identifies weights."""

import contextlib
import hashlib
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from deepfake.errors import ConfigError
from deepfake.models.mobilenet_v2 import features_of

_WANTED = "give a torchvision mobilenet_v2 state dict that torch.save wrote, imagenet or none"


def load_weights(weights: str) -> tuple[dict[str, Tensor] | None, str]:
    """The MobileNetV2 state dict that `train.weights` names, and a hash that identifies it.

    Raises ConfigError if the file is absent, is no state dict or has other layers, or if
    ImageNet's weights can't be downloaded. ("none": None and "none".)
    """
    if weights == "none":
        return None, "none"
    state = _download_imagenet() if weights == "imagenet" else _read_state_dict(Path(weights))
    try:
        mobilenet_v2(weights=None).features.load_state_dict(features_of(state))
    except RuntimeError as error:  # a layer is missing, unknown or of another shape
        first = str(error).splitlines()[1].strip()
        raise ConfigError(
            f"train.weights: {weights} is no MobileNetV2 state dict of torchvision's layout "
            f"(below 'features.': {first[:120]}); {_WANTED}"
        ) from error
    return state, state_dict_sha256(state)


def state_dict_sha256(state: dict[str, Tensor]) -> str:
    """A hash of names and values: the same weights in another file hash the same."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        values = state[name].detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return digest.hexdigest()


def _download_imagenet() -> dict[str, Tensor]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces it; stdout is for results
            state = MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
    except Exception as error:  # offline, a proxy's page, a damaged copy: a kind each
        raise ConfigError(
            f"train.weights: imagenet can't be downloaded ({_reason(error)}); give the path of a "
            "torchvision mobilenet_v2 state dict, or none"
        ) from error
    return dict(state)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"train.weights: {path} is not a file; give imagenet, none or a path")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle that it refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a file that is not its own
        raise ConfigError(
            f"train.weights: {path} can't be read as weights ({_reason(error)}); {_WANTED}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ConfigError(f"train.weights: {path} holds no state dict (name -> tensor); {_WANTED}")
    return state


def _reason(error: Exception) -> str:
    # the first sentence: behind it torch tells how to run the file's code
    return f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
