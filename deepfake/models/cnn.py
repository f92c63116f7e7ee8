"""The report's own network, trained from the first weight."""

from torch import Tensor, nn

from deepfake.config import TrainConfig
from deepfake.models.layers import init_kaiming

CNN_CHANNELS = (32, 64, 128, 256, 512)  # the report's five blocks
CNN_HIDDEN = 1024


def build(config: TrainConfig, weights: dict[str, Tensor] | None) -> nn.Sequential:
    """The report's CNN: five blocks that halve the side, then Linear -> 1024 -> 2.

    It has no pretrained weights.
    """
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
    side = config.side_px // 2 ** len(CNN_CHANNELS)
    layers += [
        nn.Flatten(),
        nn.Linear(inputs * side * side, CNN_HIDDEN),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(CNN_HIDDEN, 2),
    ]
    model = nn.Sequential(*layers)
    model.apply(init_kaiming)
    return model
