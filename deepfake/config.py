"""What can be set about data and training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

REAL, FAKE = 0, 1  # category_id in OpenForensics 1.0.0; FAKE is the positive class everywhere
LABELS = ("real", "fake")  # LABELS[category_id]

Variant = Literal["cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class UserError(ValueError):
    """What a user can mend: one line that names the place, the value and the way out."""


class ConfigError(UserError):
    """A setting is wrong; the message names its dotted key."""


class DataError(UserError):
    """A file of the data is wrong; the message names the file and the row or id."""


class Frozen(BaseModel):
    """An immutable section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


def absolute(path: Path) -> Path:
    """Raises ValueError if it begins with the home of an unknown user."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


# A path of a configuration: relative to the folder a command is started in, absolute once loaded.
AbsolutePath = Annotated[Path, AfterValidator(absolute)]


class Fractions(Frozen):
    """Shares of the faces in each split; they sum to 1."""

    train: PositiveFloat = 0.70
    val: PositiveFloat = 0.15
    test: PositiveFloat = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Fractions":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test is {total:g}; the three must sum to 1")
        return self


class DataConfig(Frozen):
    """Where photos and annotations are, and how faces are cut and split."""

    annotations: Annotated[tuple[AbsolutePath, ...], Field(min_length=1)]  # OpenForensics JSONs
    photos_dir: AbsolutePath  # every file_name of a JSON is resolved under it
    work_dir: AbsolutePath  # receives faces.csv, dropped.csv, crops/, splits.csv, store/
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0  # of the box, added on each side
    min_face_px: PositiveInt = 16  # shorter side of the box
    fractions: Fractions = Fractions()
    group_by: Literal["photo", "face"] = "photo"  # face leaks photos into test: to price the leak
    seed: NonNegativeInt = 0


class ImageSize(Frozen):
    """Side of the square input, px."""

    cnn: Annotated[int, Field(ge=32, le=1024)] = 128  # five halvings leave at least 1 px
    # at 32 the last features are 1 x 1: BatchNorm has no variance in a last batch of one face
    mobilenet_v2: Annotated[int, Field(ge=33, le=1024)] = 224

    def of(self, variant: Variant) -> int:
        return self.cnn if variant == "cnn" else self.mobilenet_v2


class TrainSettings(Frozen):
    """What every trial of a study shares."""

    image_size: ImageSize = ImageSize()
    weights: str = "imagenet"  # imagenet | none | path of a MobileNetV2 state dict
    batch_size: PositiveInt = 32
    max_epochs: PositiveInt = 10
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    lr_patience: NonNegativeInt = (
        3  # epochs without improvement; the drop comes on the next bad one
    )
    stop_patience: PositiveInt = 5  # epochs; above lr_patience, or training ends before a drop
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 needs CUDA; baselines are always fp32
    threads: PositiveInt = 1  # CPU threads a worker; part of what makes a curve repeatable


class Hyperparameters(Frozen):
    """What a trial draws."""

    variant: Variant
    lr: PositiveFloat  # initial; the plateau rule lowers it
    weight_decay: NonNegativeFloat  # Adam's coupled L2: adds weight_decay * w to the gradient
    dropout: Annotated[float, Field(ge=0, lt=1)]  # in the variant's head


class TrainConfig(TrainSettings, Hyperparameters):
    """One training, complete."""

    @property
    def side_px(self) -> int:
        return self.image_size.of(self.variant)
