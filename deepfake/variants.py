"""VARIANTS: the classifiers that a trial may draw.

A further one takes three files: its network in deepfake/models, its entry here, and the YAML that
names it. Nothing here imports torch: a setting is checked and a chart is coloured by it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """What tells a variant from the others.

    network: a module with what deepfake.models.build.Network says, imported once it is built.
    """

    network: str
    side: str  # its key in train.image_size
    title: str  # as a sentence names it
    short: str  # as an axis names it
    colour: str  # 3:1 on white and on near-black, told apart by the colour-blind
    pretrained: bool = False  # begins from train.weights
    frozen: bool = False  # its backbone learns nothing: what that gives is computed once a face


VARIANTS: dict[str, Variant] = {  # colours from Okabe and Ito's palette
    "cnn": Variant(
        network="deepfake.models.cnn",
        side="cnn",
        title="CNN",
        short="cnn",
        colour="#0072B2",
    ),
    "mobilenet_v2_frozen": Variant(
        network="deepfake.models.mobilenet_v2",
        side="mobilenet_v2",
        title="MobileNetV2, its backbone frozen",
        short="mnv2-frozen",
        colour="#D55E00",
        pretrained=True,
        frozen=True,
    ),
    "mobilenet_v2_finetuned": Variant(
        network="deepfake.models.mobilenet_v2",
        side="mobilenet_v2",
        title="MobileNetV2, fine-tuned",
        short="mnv2-tuned",
        colour="#009E73",
        pretrained=True,
    ),
}
