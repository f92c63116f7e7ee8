"""Everything about a study, from one YAML and --set overrides, checked once."""

import operator
import re
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeGuard,
    Union,
    get_args,
    get_origin,
)
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from deepfake.baselines import Baseline, Baselines
from deepfake.config import (
    AbsolutePath,
    Augment,
    DataConfig,
    Frozen,
    Hyperparameters,
    TrainConfig,
    TrainSettings,
    Unset,
    VariantName,
    absolute,
)
from deepfake.errors import CHOICE, FIXED, RANGE, ConfigError
from deepfake.variants import VARIANTS


class Range(Frozen):
    """An interval that a trial draws from."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} must be above 0 on a log scale")
        return self

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _single(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _none_twice(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{list(values)} names one twice")
    return values


def _form(value: object) -> str:
    if isinstance(value, dict | Range):
        return RANGE
    return CHOICE if isinstance(value, list | tuple) else FIXED


def _drawn(value: Any) -> Any:
    """A fixed value, a range or a choice of some; told apart first, so that an error speaks of
    the one that was meant. A text has no range.
    """
    choice = Annotated[tuple[value, ...], Field(min_length=1), AfterValidator(_none_twice)]
    tagged = Annotated[value, Tag(FIXED)] | Annotated[choice, Tag(CHOICE)]
    return Annotated[tagged | Annotated[Range, Tag(RANGE)], Discriminator(_form)]


Value = float | int | str | bool
Choice = tuple[Value, ...]
Drawn = Value | Range | Choice


class SpaceOfVariants(Frozen):
    """What a trial draws; a single value fixes it. space_of adds the other hyperparameters."""

    PARAMS: ClassVar[type[Hyperparameters]]

    variant: Annotated[
        tuple[VariantName, ...],
        BeforeValidator(_single),
        Field(min_length=1),
        AfterValidator(_none_twice),
    ]

    @model_validator(mode="after")
    def _each_end_is_possible(self) -> Self:
        """Ends of ranges and each of a choice must be hyperparameters that a training takes."""
        every = {name: drawn for name, drawn in self if name != "variant"}
        first = {name: _ends(drawn)[0] for name, drawn in every.items()}
        for name, drawn in every.items():
            for value in _ends(drawn):
                try:
                    self.PARAMS.model_validate({"variant": self.variant[0], **first, name: value})
                except ValidationError as error:
                    problem = error.errors()[0]
                    where, message = problem["loc"][0], problem["msg"]
                    raise ValueError(f"{where}: {message}, not {problem['input']}") from error
        return self

    def drawn(self) -> dict[str, Drawn]:
        """Of each hyperparameter but the variant what a trial is asked for.

        Where it has its default, it is not; nor for a fixed augment_p, which is no parameter.
        """
        return {
            name: drawn
            for name, drawn in self
            if name != "variant" and (self._is_asked(name, drawn) or _varies(drawn))
        }

    def _is_asked(self, name: str, drawn: Drawn) -> bool:
        field = self.PARAMS.model_fields[name]
        return field.is_required() or (name != "augment_p" and drawn != field.default)

    def varied(self) -> dict[str, Range | Choice]:
        """Of those the ones that are not fixed."""
        return {name: drawn for name, drawn in self.drawn().items() if _varies(drawn)}

    def first_of(self, variant: VariantName) -> Hyperparameters:
        """One that may be drawn: of each that has no default the first value."""
        first = {
            name: _ends(drawn)[0]
            for name, drawn in self.drawn().items()
            if self.PARAMS.model_fields[name].is_required()
        }
        return self.PARAMS.model_validate({"variant": variant, **first})

    def problem_with(self, params: Hyperparameters) -> str | None:
        """Why params are outside this space, or None if they are in it."""
        if params.variant not in self.variant:
            return f"variant {params.variant} is not among {', '.join(self.variant)}"
        for name, drawn in self.drawn().items():
            value = getattr(params, name)
            match drawn:
                case Range() if value not in drawn:
                    return f"{name} {_said(value)} is not in [{drawn.low:g}, {drawn.high:g}]"
                case tuple() if value not in drawn:
                    among = ", ".join(map(_said, drawn))
                    return f"{name} {_said(value)} is not among {among}"
                case str() | float() | int() if value != drawn:
                    return f"{name} {_said(value)} is not the fixed {_said(drawn)}"
        return None


def _varies(drawn: Drawn) -> TypeGuard[Range | Choice]:
    return isinstance(drawn, Range | tuple)


def _ends(drawn: Drawn) -> Choice:
    if isinstance(drawn, Range):
        return drawn.low, drawn.high
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_type(params: type[Hyperparameters], name: str) -> Any:
    """What a value of one is: without the None of one that may be unset, and without bounds."""
    annotation: Any = params.model_fields[name].annotation
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def space_of(params: type[Hyperparameters]) -> type[SpaceOfVariants]:
    """A space with each of these hyperparameters, in their order.

    One with a default may be left out of the YAML: then it has that, and nothing that is written
    down shows it.
    """
    fields: dict[str, Any] = {}
    for name, field in params.model_fields.items():
        if name == "variant":
            continue
        kind = _drawn(value_type(params, name))
        if field.is_required():
            fields[name] = (kind, ...)
            continue
        default = 1.0 if name == "augment_p" else field.default
        kind = kind | None if default is None else kind
        fields[name] = (kind, Field(default=default, exclude_if=partial(operator.eq, default)))
    space = create_model("Space", __base__=SpaceOfVariants, __module__=__name__, **fields)
    space.PARAMS = params
    return space


if TYPE_CHECKING:

    class Space(SpaceOfVariants):
        """Of Hyperparameters."""

        lr: Drawn
        weight_decay: Drawn
        dropout: Drawn
        augment_p: Drawn = 1.0

else:
    Space = space_of(Hyperparameters)
    Space.__doc__ = SpaceOfVariants.__doc__


Objective = Literal["val_loss", "robust_val_loss"]
OBJECTIVES = {  # as a sentence names them
    "val_loss": "validation loss",
    "robust_val_loss": "validation loss under corruptions",
}


class SearchConfig(Frozen):
    """The budget and how it is spent."""

    n_trials: PositiveInt  # slots, the baselines among them
    objective: Objective = "val_loss"  # the monitor: robust_val_loss is under fixed corruptions
    seed: NonNegativeInt = 0
    sampler: Literal["tpe", "random"] = "tpe"  # random: the control that shows what TPE is worth
    storage: SecretStr  # sqlite:///path or postgresql+psycopg://...; may hold a password
    checkpoints_dir: AbsolutePath = Path("mlruns/checkpoints")  # what a killed slot resumes from
    # On curves replayed by four workers, seeds 0 to 19 (scripts/benches/pruning.py): patience 1, 2
    # and 3 leave 62, 83 and 92 % of the epochs; 1 prunes the best of half the recorded curves in
    # 7 of 60 replays, 2 in none. One peer or five: 82 to 86 % of the epochs, no best pruned.
    prune_min_peers: PositiveInt = 2  # finished peers of the variant before anything is pruned
    prune_patience: PositiveInt = 2  # epochs without improvement before pruning may strike
    max_attempts: PositiveInt = 2  # of a slot that raises; a killed one is tried again
    max_lost: PositiveInt = 5  # workers that died of a slot in a row, without one more epoch
    max_failed: NonNegativeInt = 10  # failed slots; one more ends the study
    heartbeat_s: PositiveInt = 10
    lease_s: PositiveInt = 60  # a worker silent for longer has lost its slot
    stall_s: PositiveInt = 1800  # a trial without a batch for longer hangs: that attempt failed

    @property
    def robust(self) -> bool:
        """Whether the monitor is of the validation faces under corruptions."""
        return self.objective == "robust_val_loss"

    @property
    def val_passes(self) -> int:
        """Over the validation faces, an epoch."""
        return 2 if self.robust else 1

    @field_validator("storage")
    @classmethod
    def _absolute_sqlite(cls, url: SecretStr) -> SecretStr:
        return SecretStr(_absolute_sqlite(url.get_secret_value()))

    @model_validator(mode="after")
    def _lease_outlives_a_missed_beat(self) -> "SearchConfig":
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"lease_s: {self.lease_s} must be at least twice heartbeat_s, {self.heartbeat_s}"
            )
        return self


class TrackingConfig(Frozen):
    """Where MLflow keeps runs and artifacts."""

    uri: str = "sqlite:///mlruns/mlflow.db"  # or http://...
    artifacts_dir: AbsolutePath = Path("mlruns/artifacts")  # not used with http
    # between samples of cores, memory, disk and GPUs, at least 1; 0: none
    system_metrics_s: Annotated[float, Field(ge=0, le=3600)] = 10.0

    @field_validator("system_metrics_s")
    @classmethod
    def _no_busy_loop(cls, seconds: float) -> float:
        if 0 < seconds < 1:
            raise ValueError(f"{seconds:g} is neither 0 (none) nor at least 1")
        return seconds

    @field_validator("uri")
    @classmethod
    def _a_store_mlflow_opens(cls, uri: str) -> str:
        if not uri.startswith(("sqlite:///", "http://", "https://")):
            raise ValueError(f"'{redact(uri)}' is neither sqlite:///path nor http(s)://host:port")
        if uri.startswith("http"):
            try:
                complete = urlsplit(uri).hostname and urlsplit(uri).port != 0
            except ValueError:
                complete = False
            if not complete:
                raise ValueError(f"'{redact(uri)}' is not http(s)://host:port")
        if uri in ("sqlite:///", "sqlite:///:memory:"):
            raise ValueError("a store in memory can't be shared by workers; name a file")
        if uri.startswith("http") and "@" in uri:
            raise ValueError(
                "credentials don't belong here: MLflow reads MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return _absolute_sqlite(uri)


# The slots of all but a search are given: trainings of a search's slots again, with fresh seeds.
# final: of its finalists; leak-*: of one baseline, on the data split anew, to price a leak.
Kind = Literal["search", "final", "leak-photo", "leak-face"]


class StudyConfig(Frozen):
    """One study, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,79}$")]
    data: DataConfig
    train: TrainSettings = TrainSettings()
    augment: Augment | None = Unset  # of drawn trials' training pictures
    space: Space
    study: SearchConfig
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    baselines: Baselines
    _kind: Kind = PrivateAttr("search")  # no setting: a study that stands beside has another

    @property
    def kind(self) -> Kind:
        return self._kind

    @property
    def search_name(self) -> str:
        """The name of the search that it is, or stands beside."""
        return self.name if self.kind == "search" else self.name.removesuffix(f"-{self.kind}")

    def beside(self, kind: Kind, data: DataConfig | None = None) -> "StudyConfig":
        """The study of a kind that stands beside this search, its data the search's or these."""
        name = f"{self.name}-{kind}"
        made = self.model_copy(update={"name": name, "data": data or self.data})
        made._kind = kind
        return made

    def train_config(self, params: Hyperparameters, *, fixed: bool) -> TrainConfig:
        """A trial's training. A fixed one is a baseline: in fp32 and unaugmented, as the report's.

        A frozen backbone's is not augmented either: its features are computed once.
        """
        settings = self.train.model_copy(update={"precision": "fp32"}) if fixed else self.train
        whole = TrainConfig(**settings.model_dump(), **params.model_dump())
        if self.augment is None or fixed or VARIANTS[params.variant].frozen:
            return whole
        p = params.augment_p
        if p is None:
            p = self.space.augment_p if isinstance(self.space.augment_p, float) else 1.0
        return whole.model_copy(update={"augment": self.augment.scaled(p)})

    def baseline_params(self, baseline: Baseline) -> Hyperparameters:
        """What its slot is given: where augment_p is drawn, 0."""
        # a trial without it would make TPE model augment_p apart from the others
        if "augment_p" not in self.space.drawn():
            return baseline.params
        return baseline.params.model_copy(update={"augment_p": 0.0})

    @property
    def sides_px(self) -> tuple[int, ...]:
        """The resolutions that trials of this study read."""
        return tuple(sorted({self.train.image_size.of(v) for v in self.space.variant}))

    @property
    def checkpoints_dir(self) -> Path:
        return self.study.checkpoints_dir / self.name

    @field_validator("name")
    @classmethod
    def _no_name_of_another_kind(cls, name: str) -> str:
        if name.endswith("-final"):
            raise ValueError(f"'{name}' is what evaluate calls the finalists of another study")
        if name.endswith(tuple(f"-{kind}" for kind in get_args(Kind)[1:])):
            raise ValueError(f"'{name}' is what audit --leak calls its trainings")
        return name

    @model_validator(mode="after")
    def _whole(self) -> "StudyConfig":
        baselines = self.baselines.baselines
        if self.study.n_trials < len(baselines):
            raise ValueError(
                f"study.n_trials: {self.study.n_trials} is below the {len(baselines)} baselines, "
                "which are its first slots"
            )
        for baseline in baselines:
            if problem := self.space.problem_with(self.baseline_params(baseline)):
                raise ValueError(
                    f"space: baseline '{baseline.name}' is outside: {problem}; widen the space or "
                    "name another baselines file"
                )
        return self

    @model_validator(mode="after")
    def _every_side_is_said(self) -> "StudyConfig":
        try:
            self.sides_px  # noqa: B018
        except ConfigError as error:
            raise ValueError(f"train.{error}") from None
        return self

    @model_validator(mode="after")
    def _augment_has_its_place(self) -> "StudyConfig":
        if self.augment is None and self.space.augment_p != 1.0:
            raise ValueError(
                "space.augment_p: there is no section 'augment' whose p it could scale"
            )
        if self.augment is not None and all(VARIANTS[v].frozen for v in self.space.variant):
            raise ValueError(
                f"augment: the only variant, {', '.join(self.space.variant)}, sees each face once "
                "and can't be augmented; leave the section out"
            )
        for baseline in self.baselines.baselines:
            if baseline.params.augment_p is not None:
                raise ValueError(
                    f"baselines: '{baseline.name}' names augment_p; baselines are not augmented"
                )
        return self


def public_yaml(config: StudyConfig) -> str:
    """The whole configuration as YAML, without the storage URL, which may hold a password."""
    document = config.model_dump(mode="json", exclude={"study": {"storage"}})
    return yaml.safe_dump(document, sort_keys=False)


def _absolute_sqlite(url: str) -> str:
    scheme, found, path = url.partition(":///")
    if not found or not scheme.startswith("sqlite") or path in ("", ":memory:"):
        return url
    return f"{scheme}:///{absolute(Path(path))}"


def redact(url: str) -> str:
    """The URL without user, password and options, even where they are badly quoted."""
    return re.sub(r"\?.*$", "", re.sub(r"^([\w+.-]+:/*).*@", r"\1***@", url))
