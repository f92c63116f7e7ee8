"""What can be set about data and training."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import InitErrorDetails, PydanticCustomError

from deepfake.errors import JSONS, JSONS_BY_SPLIT, ConfigError
from deepfake.variants import VARIANTS

REAL, FAKE = 0, 1  # category_id in OpenForensics 1.0.0; FAKE is the positive class everywhere
MAX_PHOTO_MEGAPIXELS = 200  # what phones take at most, in round figures
LABELS = ("real", "fake")  # LABELS[category_id]


def _in_variants(name: object) -> object:
    if not isinstance(name, str) or name not in VARIANTS:
        *most, last = (f"'{known}'" for known in VARIANTS)  # as pydantic says it of a Literal
        known = f"{', '.join(most)} or {last}"
        raise PydanticCustomError("unknown_variant", "Input should be {known}", {"known": known})
    return name


VariantName = Annotated[str, BeforeValidator(_in_variants)]
Split = str  # one of SPLITS, or a further test set's name
SPLITS: tuple[Split, ...] = ("train", "val", "test")  # those of every data set
SEEN: tuple[Split, ...] = ("train", "val")  # every other split is a test set, closed to workers
_TEST_SET = re.compile(r"test[a-z0-9-]*")


class Frozen(BaseModel):
    """An immutable section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


def absolute(path: Path) -> Path:
    """Raises ValueError if it begins with the home of an unknown user, or no path can be so."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r}: a path has no null byte")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


# A path of a configuration: relative to the folder a command is started in, absolute once loaded.
AbsolutePath = Annotated[Path, AfterValidator(absolute)]


# a setting that most studies don't have: without it nothing that is written down shows it
Unset = Field(default=None, exclude_if=lambda value: value is None)


# how the four numbers of a bbox are meant; shares: of the photo's width and height
BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xywh_shares", "xyxy_shares", "cxcywh_shares"]
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)


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


_Jsons = Annotated[tuple[AbsolutePath, ...], Field(min_length=1)]


def _list_or_mapping(value: object) -> str:
    return JSONS_BY_SPLIT if isinstance(value, dict) else JSONS


class DataConfig(Frozen):
    """Where photos and annotations are, and how faces are cut and split."""

    splits: Literal["drawn", "official"] = Field(
        default="drawn", exclude_if=lambda value: value == "drawn"
    )
    # OpenForensics JSONs; with official splits those of train, val, test and further test sets,
    # each by its name
    annotations: Annotated[
        Annotated[_Jsons, Tag(JSONS)] | Annotated[dict[Split, _Jsons], Tag(JSONS_BY_SPLIT)],
        Discriminator(_list_or_mapping),
    ]
    photos_dir: AbsolutePath  # every file_name of a JSON is resolved under it
    # as a hub's cache is made of: taken although a link leads out of photos_dir
    follow_links: bool = Field(default=False, exclude_if=lambda value: not value)
    work_dir: AbsolutePath  # receives faces.csv, dropped.csv, crops/, splits.csv, store/
    box: BoxFormat | None = Unset  # of the JSONs; xywh, and refused where they tell otherwise
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0  # of the box, added on each side
    min_face_px: PositiveInt = 16  # shorter side of the box
    # width times height; a larger photo is dropped before it is decoded
    max_photo_megapixels: Annotated[int, Field(ge=1, le=2000)] = Field(
        default=MAX_PHOTO_MEGAPIXELS, exclude_if=lambda value: value == MAX_PHOTO_MEGAPIXELS
    )
    fractions: Fractions = Fractions()
    group_by: Literal["photo", "face"] = "photo"  # face leaks photos into test: to price the leak
    seed: NonNegativeInt = 0  # of the draw

    @property
    def jsons(self) -> tuple[Path, ...]:
        if isinstance(self.annotations, tuple):
            return self.annotations
        return tuple(path for paths in self.annotations.values() for path in paths)

    @property
    def split_of_source(self) -> dict[str, Split]:
        """Of each JSON's stem, where the splits are official."""
        assert isinstance(self.annotations, dict)
        return {path.stem: name for name, paths in self.annotations.items() for path in paths}

    @model_validator(mode="after")
    def _splits_have_their_jsons(self) -> "DataConfig":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if isinstance(self.annotations, tuple):
            if self.splits == "official":
                yield (
                    "annotations: with splits: official it names the JSONs of each split, such as"
                    " {train: [...], val: [...], test: [...]}"
                )
            return
        names = ", ".join(self.annotations)
        if self.splits == "drawn":
            yield f"annotations: names the splits {names}: set splits to official, or give a list"
        for name in SPLITS:
            if name not in self.annotations:
                yield f"annotations: has no split {name}, only {names or 'an empty mapping'}"
        split_of: dict[Path, Split] = {}
        for name, paths in self.annotations.items():
            if name not in SEEN and not _TEST_SET.fullmatch(name):
                yield (
                    f"annotations: split '{name}' is neither train nor val nor a test set, whose"
                    " name begins with test and goes on with a-z, 0-9 or -"
                )
            for path in paths:
                if path in split_of:
                    yield f"annotations: {path} is named twice, in {split_of[path]} and in {name}"
                split_of[path] = name
        for key in ("fractions", "group_by", "seed"):
            if getattr(self, key) != type(self).model_fields[key].default:
                yield f"{key}: says nothing of official splits; leave it out"


_Side = Annotated[int, Field(ge=32, le=1024)]


class ImageSize(Frozen):
    """Side of the square input in px, by the key that a variant names.

    The key of a further variant has no default.
    """

    model_config = ConfigDict(extra="allow")  # the sides that VARIANTS name, no other
    __pydantic_extra__: dict[str, _Side]
    cnn: _Side = 128  # five halvings leave at least 1 px
    # at 32 the last features are 1 x 1: BatchNorm has no variance in a last batch of one face
    mobilenet_v2: Annotated[int, Field(ge=33, le=1024)] = 224

    @model_validator(mode="before")
    @classmethod
    def _sides_of_variants(cls, sides: Any) -> Any:
        known = {variant.side for variant in VARIANTS.values()}
        for name in sides if isinstance(sides, dict) else ():
            if name not in known:
                error = InitErrorDetails(type="extra_forbidden", loc=(name,), input=sides[name])
                raise ValidationError.from_exception_data(cls.__name__, [error])
        return sides

    def of(self, variant: VariantName) -> int:
        """Raises ConfigError if it is not said."""
        name = VARIANTS[variant].side
        if not hasattr(self, name):
            raise ConfigError(f"image_size: has no '{name}', the side of variant {variant}")
        return int(getattr(self, name))


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


Probability = Annotated[float, Field(ge=0, le=1)]


class Step(Frozen):
    """One thing that is done to a share of the training pictures."""

    p: Probability  # of each picture


class Flip(Step):
    """Mirrored, left for right."""


class _Ranged(Step):
    @model_validator(mode="after")
    def _ordered(self) -> "_Ranged":
        low, high = (getattr(self, end) for end in ("low", "high"))
        if low > high:
            raise ValueError(f"low: {low:g} is above high {high:g}")
        return self


class Downscale(_Ranged):
    """To a share of the side and back."""

    low: Annotated[float, Field(ge=0.05, le=1)] = 0.25
    high: Annotated[float, Field(ge=0.05, le=1)] = 1.0


class Blur(_Ranged):
    """Gaussian, sigma in px; a kernel of the highest fits into a picture of 32 px."""

    low: Annotated[float, Field(ge=0.1, le=10)] = 0.5
    high: Annotated[float, Field(ge=0.1, le=10)] = 3.0


class Noise(_Ranged):
    """Gaussian, sigma in levels of 255."""

    low: Annotated[float, Field(ge=0, le=100)] = 0.0
    high: Annotated[float, Field(ge=0, le=100)] = 20.0


class Jpeg(_Ranged):
    """Quality."""

    low: Annotated[int, Field(ge=1, le=100)] = 30
    high: Annotated[int, Field(ge=1, le=100)] = 95


class Augment(Frozen):
    """What training pictures undergo, in this order; what is not named is not done."""

    flip: Flip | None = Unset
    downscale: Downscale | None = Unset
    blur: Blur | None = Unset
    noise: Noise | None = Unset
    jpeg: Jpeg | None = Unset

    def scaled(self, share: float) -> "Augment | None":
        """With every p times share; None if nothing is left to do."""
        steps = {name: step for name, step in self if step is not None and step.p * share > 0}
        scaled = {
            name: step.model_copy(update={"p": step.p * share}) for name, step in steps.items()
        }
        return Augment(**scaled) if scaled else None


_SMALL: JsonDict = {"format": ".1e"}  # as tables print it
_SHARE: JsonDict = {"format": ".2f"}


class Hyperparameters(Frozen):
    """What a trial draws.

    A further one is a field here, where training uses it, and in the YAML's space; tables and
    charts print it by its name and its format. A title is a narrow line's word for it.
    """

    variant: VariantName
    # initial; the plateau rule lowers it
    lr: PositiveFloat = Field(json_schema_extra=_SMALL)
    # Adam's coupled L2: adds weight_decay * w to the gradient
    weight_decay: NonNegativeFloat = Field(title="wd", json_schema_extra=_SMALL)
    # in the variant's head
    dropout: float = Field(ge=0, lt=1, json_schema_extra=_SHARE)
    # times each p of augment; None if it is not drawn
    augment_p: Annotated[Probability | None, Field(json_schema_extra=_SHARE)] = Unset

    def printed(self, *, short: bool = False) -> dict[str, str]:
        """Each but the variant, by its name or short title, in its format; none that is unset."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name == "variant" or value is None:
                continue
            extra = field.json_schema_extra
            spec = str(extra.get("format", "")) if isinstance(extra, dict) else ""
            found[(field.title or name) if short else name] = format(value, spec)
        return found


class TrainConfig(TrainSettings, Hyperparameters):
    """One training, complete."""

    augment: Augment | None = Unset  # as it is done: augment_p is in its probabilities

    @property
    def side_px(self) -> int:
        return self.image_size.of(self.variant)
