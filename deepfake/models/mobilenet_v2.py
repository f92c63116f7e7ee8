"""MobileNetV2 of torchvision: its features under a head of our own."""

from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from deepfake.config import TrainConfig
from deepfake.models.layers import Backbone, init_kaiming

FEATURES = 1280
PREFIX = "features."  # of all but torchvision's classifier


def build(config: TrainConfig, weights: dict[str, Tensor] | None) -> nn.Module:
    return nn.Sequential(backbone(weights), head(config))


def backbone(weights: dict[str, Tensor] | None) -> Backbone:
    layers = mobilenet_v2(weights=None).features, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = Backbone("mobilenet_v2", FEATURES, *layers)
    # fan_in: torchvision's own init (fan_out) shrinks a frozen random backbone to ~1e-9
    network.apply(init_kaiming)
    if weights is not None:
        network[0].load_state_dict(_features(weights))
    return network


def head(config: TrainConfig) -> nn.Module:
    layers = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(FEATURES, 2))
    layers.apply(init_kaiming)
    return layers


def imagenet() -> MobileNet_V2_Weights:
    return MobileNet_V2_Weights.IMAGENET1K_V1


def check_state(state: dict[str, Tensor]) -> None:
    layers = nn.ModuleDict({"features": mobilenet_v2(weights=None).features})
    layers.load_state_dict({k: v for k, v in state.items() if k.startswith(PREFIX)})


def _features(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(PREFIX) :]: value for key, value in state.items() if key.startswith(PREFIX)}
