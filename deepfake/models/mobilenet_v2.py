"""MobileNetV2 of torchvision: its features under a head of our own."""

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from deepfake.config import TrainConfig
from deepfake.models.layers import init_kaiming

MOBILENET_FEATURES = 1280


def frozen_backbone(weights: dict[str, Tensor] | None) -> nn.Module:
    """(N, 3, side, side) -> (N, 1280): the same for every trial, so that its output is kept."""
    with torch.random.fork_rng(devices=[]):  # the head is drawn alike with it and without it
        torch.default_generator.manual_seed(0)
        return backbone(weights)


def build_head(config: TrainConfig) -> nn.Module:
    """(N, 1280) -> (N, 2), drawn from torch's global generator."""
    head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(MOBILENET_FEATURES, 2))
    head.apply(init_kaiming)
    return head


def backbone(weights: dict[str, Tensor] | None) -> nn.Module:
    network = nn.Sequential(
        mobilenet_v2(weights=None).features, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    # fan_in: torchvision's own init (fan_out) shrinks a frozen random network to ~1e-9
    network.apply(init_kaiming)
    if weights is not None:
        network[0].load_state_dict(features_of(weights))
    return network


def features_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "features."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
