"""A variant's network: (N, 3, side, side) normalised images -> (N, 2) logits, real and fake."""

import importlib
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from deepfake.config import TrainConfig, VariantName
from deepfake.models.layers import Backbone, FrozenBackbone
from deepfake.variants import VARIANTS

Weights = dict[str, Tensor] | None


class Network(Protocol):
    """What the module that an entry of VARIANTS names has, as far as its variants need it."""

    def build(self, config: TrainConfig, weights: Weights) -> nn.Module:
        """The whole, new layers drawn from torch's global generator; of one that isn't frozen."""

    def backbone(self, weights: Weights) -> Backbone:
        """Of a frozen one: what is never trained, drawn from the generator without weights."""

    def head(self, config: TrainConfig) -> nn.Module:
        """Of a frozen one: the backbone's features -> (N, 2), drawn from the generator."""

    def imagenet(self) -> Any:
        """Of a pretrained one: the member of torchvision's WeightsEnum."""

    def check_state(self, state: dict[str, Tensor]) -> None:
        """Of a pretrained one: raises RuntimeError, as load_state_dict, if the layers differ."""


def network_of(variant: VariantName) -> Network:
    """Its module, imported."""
    return cast(Network, importlib.import_module(VARIANTS[variant].network))


def build_model(config: TrainConfig, weights: Weights) -> nn.Module:
    """The variant of config, in channels_last, its new layers drawn from torch's global generator.

    weights: a state dict of its network (load_weights), or None to draw the backbone too. A frozen
    backbone takes no gradient and stays in eval mode; without weights it is the same for every
    seed, and either way it leaves the generator where it was.
    """
    if VARIANTS[config.variant].frozen:
        frozen = frozen_backbone(config.variant, weights)
        model: nn.Module = FrozenBackbone(frozen, build_head(config))
    else:
        model = network_of(config.variant).build(config, weights)
    return model.to(memory_format=torch.channels_last)


def frozen_backbone(variant: VariantName, weights: Weights) -> Backbone:
    """(N, 3, side, side) -> (N, width): the same for every trial, so that its output is kept."""
    with torch.random.fork_rng(devices=[]):  # the head is drawn alike with it and without it
        torch.default_generator.manual_seed(0)
        return network_of(variant).backbone(weights)


def build_head(config: TrainConfig) -> nn.Module:
    """(N, width) -> (N, 2), drawn from torch's global generator; of a frozen variant."""
    return network_of(config.variant).head(config)
