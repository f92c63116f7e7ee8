"""The weights that a network begins from, and what identifies weights."""

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from deepfake.config import VariantName
from deepfake.errors import ConfigError, first_sentence
from deepfake.models.build import network_of
from deepfake.variants import VARIANTS

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

ABSENT = "none"  # as train.weights says it, and the hash of no weights


class Pretrained(NamedTuple):
    """What a network begins from."""

    state: dict[str, Tensor] | None  # None: all is drawn
    sha256: str


DRAWN = Pretrained(None, ABSENT)


def load_pretrained(weights: str, variants: Iterable[VariantName]) -> dict[str, Pretrained]:
    """What load_weights gives each pretrained network of these variants, by network.

    Without any the first pretrained one of VARIANTS: a study's fingerprint holds what its
    train.weights names, whatever it trains.
    """
    begin = [name for name in VARIANTS if VARIANTS[name].pretrained]
    used = set(variants)
    chosen = [name for name in begin if name in used] or begin[:1]
    by_network = {VARIANTS[name].network: name for name in reversed(chosen)}
    return {network: load_weights(weights, by_network[network]) for network in sorted(by_network)}


def load_weights(weights: str, variant: VariantName) -> Pretrained:
    """The state dict that `train.weights` names for a variant, and a hash that identifies it.

    Raises ConfigError if the file is absent, is no state dict or has other layers, or if
    ImageNet's weights can't be downloaded. ("none", or a variant that begins from no weights:
    None and "none".)
    """
    if weights == ABSENT or not VARIANTS[variant].pretrained:
        return DRAWN
    name = VARIANTS[variant].network.rpartition(".")[2]
    wanted = f"give a torchvision {name} state dict that torch.save wrote, imagenet or none"
    network = network_of(variant)
    if weights == "imagenet":
        state = _download(network.imagenet(), name)
    else:
        state = _read_state_dict(Path(weights), wanted)
    try:
        network.check_state(state)
    except RuntimeError as error:  # a layer is missing, unknown or of another shape
        first = str(error).splitlines()[1].strip()
        raise ConfigError(
            f"train.weights: {weights} is no {name} state dict of torchvision's layout "
            f"({first[:120]}); {wanted}"
        ) from error
    return Pretrained(state, state_dict_sha256(state))


def state_dict_sha256(state: dict[str, Tensor]) -> str:
    """A hash of names and values: the same weights in another file hash the same."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        values = state[name].detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return digest.hexdigest()


def _download(imagenet: "WeightsEnum", name: str) -> dict[str, Tensor]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces it; stdout is for results
            state = imagenet.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # offline, a proxy's page, a damaged copy: a kind each
        raise ConfigError(
            f"train.weights: imagenet can't be downloaded ({_reason(error)}); give the path of a "
            f"torchvision {name} state dict, or none"
        ) from error
    return dict(state)


def _read_state_dict(path: Path, wanted: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"train.weights: {path} is not a file; give imagenet, none or a path")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle that it refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a file that is not its own
        raise ConfigError(
            f"train.weights: {path} can't be read as weights ({_reason(error)}); {wanted}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ConfigError(f"train.weights: {path} holds no state dict (name -> tensor); {wanted}")
    return state


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_sentence(error)}"
