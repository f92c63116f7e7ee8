"""The three variants: (N, 3, side, side) normalised images -> (N, 2) logits, real and fake."""

import torch
from torch import Tensor, nn

from deepfake.config import TrainConfig
from deepfake.models.cnn import cnn
from deepfake.models.layers import FrozenBackbone
from deepfake.models.mobilenet_v2 import backbone, build_head, frozen_backbone


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
            model = nn.Sequential(backbone(weights), build_head(config))
        case _:
            raise AssertionError(config.variant)
    return model.to(memory_format=torch.channels_last)
