"""The three variants: (N, 3, side, side) normalised images -> (N, 2) logits, real and fake."""

import contextlib
import hashlib
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from deepfake.config import TrainConfig
from deepfake.errors import ConfigError

CNN_CHANNELS = (32, 64, 128, 256, 512)  # the report's five blocks
CNN_HIDDEN = 1024
MOBILENET_FEATURES = 1280


def build_model(config: TrainConfig, weights: dict[str, Tensor] | None) -> nn.Module:
    """The variant of config, in channels_last, its new layers drawn from torch's global generator.

    weights: a MobileNetV2 state dict (load_weights), or None to draw the backbone too.
    The CNN is always drawn. The frozen backbone takes no gradient and stays in eval mode; without
    weights it is the same for every seed, and either way it leaves the generator where it was.
    """
    model: nn.Module
    match config.variant:
        case "cnn":
            model = cnn(config.side_px, config.dropout)
        case "mobilenet_v2_frozen":
            model = FrozenBackbone(frozen_backbone(weights), build_head(config))
        case "mobilenet_v2_finetuned":
            model = nn.Sequential(_backbone(weights), build_head(config))
        case _:
            raise AssertionError(config.variant)
    return model.to(memory_format=torch.channels_last)


def cnn(side_px: int, dropout: float) -> nn.Sequential:
    """The report's CNN: five blocks that halve the side, then Linear -> 1024 -> 2."""
    layers: list[nn.Module] = []
    inputs = 3
    for channels in CNN_CHANNELS:
        layers += [
            nn.Conv2d(inputs, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        ]
        inputs = channels
    side = side_px // 2 ** len(CNN_CHANNELS)
    layers += [
        nn.Flatten(),
        nn.Linear(inputs * side * side, CNN_HIDDEN),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(CNN_HIDDEN, 2),
    ]
    model = nn.Sequential(*layers)
    model.apply(init_kaiming)
    return model


class FrozenBackbone(nn.Sequential):
    """A backbone that is never trained, and a head that is."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self[0].requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        super().train(mode)
        self[0].eval()  # or BatchNorm's running statistics drift under "frozen" weights
        return self


def init_kaiming(layer: nn.Module) -> None:
    """He et al. 2015: variance 2 / fan_in, bias 0; BatchNorm scale 1, shift 0."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)


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
        mobilenet_v2(weights=None).features.load_state_dict(_features(state))
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


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def frozen_backbone(weights: dict[str, Tensor] | None) -> nn.Module:
    """(N, 3, side, side) -> (N, 1280): the same for every trial, so that its output is kept."""
    with torch.random.fork_rng(devices=[]):  # the head is drawn alike with it and without it
        torch.default_generator.manual_seed(0)
        return _backbone(weights)


def build_head(config: TrainConfig) -> nn.Module:
    """(N, 1280) -> (N, 2), drawn from torch's global generator."""
    head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(MOBILENET_FEATURES, 2))
    head.apply(init_kaiming)
    return head


def whole_state(backbone: nn.Module, head_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The FrozenBackbone's state dict, of a head that was trained alone."""
    own = {f"0.{name}": value.cpu() for name, value in backbone.state_dict().items()}
    return own | {f"1.{name}": value for name, value in head_state.items()}


def _backbone(weights: dict[str, Tensor] | None) -> nn.Module:
    backbone = nn.Sequential(
        mobilenet_v2(weights=None).features, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    # fan_in: torchvision's own init (fan_out) shrinks a frozen random backbone to ~1e-9
    backbone.apply(init_kaiming)
    if weights is not None:
        backbone[0].load_state_dict(_features(weights))
    return backbone


def _features(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "features."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


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
