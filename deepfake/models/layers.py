"""What networks share: He's initialisation, a backbone that stays as it is, their size."""

from torch import Tensor, nn


class Backbone(nn.Sequential):
    """Layers that make of each picture a row of width numbers."""

    def __init__(self, name: str, width: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.name, self.width = name, width


class FrozenBackbone(nn.Sequential):
    """A backbone that is never trained, and a head that is."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self[0].requires_grad_(False)
        self.width = backbone.width

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


def whole_state(backbone: nn.Module, head_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The FrozenBackbone's state dict, of a head that was trained alone."""
    own = {f"0.{name}": value.cpu() for name, value in backbone.state_dict().items()}
    return own | {f"1.{name}": value for name, value in head_state.items()}


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
