"""A model to keep: a folder with weights and all that judging a face takes, and nothing else."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deepfake.config import LABELS, Frozen, Hyperparameters, ImageSize, TrainConfig, VariantName
from deepfake.data import IMAGENET_MEAN, IMAGENET_STD, JPEG_QUALITY, normalise
from deepfake.errors import DataError, UserError, one_line
from deepfake.files import whole, write_whole
from deepfake.metrics import fake_probability
from deepfake.models import build_model, state_dict_sha256
from deepfake.reproducibility import full_precision
from deepfake.variants import VARIANTS

FORMAT: Final = 1  # of model.json; a later release may read it, an earlier one refuses it
MODEL_JSON, WEIGHTS, CARD, ONNX = "model.json", "model.safetensors", "README.md", "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Share = Annotated[float, Field(ge=0, le=1)]
Rgb = tuple[float, float, float]


class Preparation(Frozen):
    """How a photo's face becomes the network's input. All is written out for other programs."""

    margin: Annotated[float, Field(ge=0)]  # of the box, added on each side
    jpeg_quality: Literal[95] = JPEG_QUALITY  # each face is compressed once before it is resized
    resize: Literal["bilinear"] = "bilinear"  # Pillow's, to side_px x side_px
    mean: Rgb = IMAGENET_MEAN  # of x / 255
    std: Rgb = IMAGENET_STD
    min_face_px: PositiveInt  # shorter side: training saw no smaller one


class Trained(Frozen):
    """What the model was made from."""

    study: str
    slot: NonNegativeInt
    run_id: str  # MLflow's
    sources: tuple[str, ...]  # stems of the JSONs
    photos: int  # of all splits
    faces: dict[str, dict[str, int]]  # {split: {"real": faces, "fake": faces}}
    # how faces came to their splits
    splits: Literal["drawn", "official"] = Field(
        default="drawn", exclude_if=lambda value: value == "drawn"
    )
    group_by: Literal["photo", "face"]  # what drawn splits keep together
    faces_sha256: str
    splits_sha256: str
    crops_sha256: str
    pretrained: str  # imagenet, none or a file's name
    pretrained_sha256: str  # or none
    settings: dict[str, Any]  # batch_size, max_epochs ...
    epoch: int  # the best, from 0: its weights are kept
    val_loss: float  # of that epoch, before the temperature; the study's objective
    objective: Literal["val_loss", "robust_val_loss"] = "val_loss"  # robust: under corruptions
    torch: str
    commit: str | None


class ModelInfo(Frozen):
    """model.json: all that judging a face takes besides the weights.

    P(fake) = softmax(logits / temperature)[1]; a face is fake where that reaches the threshold.
    """

    format: Literal[1] = FORMAT
    variant: VariantName
    side_px: PositiveInt
    hyperparameters: Hyperparameters
    labels: tuple[str, str] = LABELS
    temperature: PositiveFloat
    threshold: Share
    preparation: Preparation
    weights_sha256: str  # of names and values
    trained: Trained

    @model_validator(mode="after")
    def _buildable(self) -> "ModelInfo":
        try:
            self.train_config  # noqa: B018  # its side, for one, must fit its variant
        except ValidationError as error:
            raise ValueError(f"side_px {self.side_px}: {error.errors()[0]['msg']}") from None
        return self

    @property
    def train_config(self) -> TrainConfig:
        side = {VARIANTS[self.variant].side: self.side_px}
        params = self.hyperparameters.model_dump()
        return TrainConfig(**params, image_size=ImageSize(**side), weights="none")


@dataclass(frozen=True)
class ExportedModel:
    """A model that was loaded and verified, on its device."""

    info: ModelInfo
    network: nn.Module
    device: torch.device

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(N, 2), on the CPU. pixels: (N, side_px, side_px, 3) uint8, as rows of a store."""
        with full_precision():
            logits: Tensor = self.network(normalise(pixels.to(self.device)))
        return logits.cpu()

    def probabilities(self, pixels: Tensor) -> Tensor:
        """P(FAKE) (N,), float64, after the temperature."""
        return fake_probability(self.logits(pixels).double() / self.info.temperature)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill: it becomes out if the block ends well, and is gone if not.

    Raises UserError if out is there already or can't be written.
    """
    refuse_existing(out)
    try:
        # its files are durable each; shared: of two at once the second is refused
        with whole(out, durable=False, shared=True) as unfinished:
            unfinished.mkdir(parents=True)
            yield unfinished
            refuse_existing(out)  # rename would take the place of an empty one
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {one_line(error, path=False)}; name another folder"
        ) from None


def refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name another folder, or delete this one")


def write_model(folder: Path, info: ModelInfo, state: dict[str, Tensor], card: str) -> None:
    """The three files that every exported model has. state: of info's weights_sha256."""
    assert state_dict_sha256(state) == info.weights_sha256
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_whole(folder / WEIGHTS, save(weights))
    write_whole(folder / MODEL_JSON, info.model_dump_json(indent=1).encode() + b"\n")
    write_whole(folder / CARD, card.encode())


def check_onnx() -> None:
    """Raises UserError if the extra is not installed."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install 'deepfake-study[onnx]'")


def write_onnx(folder: Path, info: ModelInfo, network: nn.Module) -> None:
    """images (faces, 3, side_px, side_px) float32, normalised -> logits (faces, 2).

    network: on the CPU, in eval mode. Temperature and threshold are among the file's properties.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, info.side_px, info.side_px),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("faces")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces: paths of this machine
    proto = program.model_proto
    for key in ("temperature", "threshold", "weights_sha256"):
        proto.metadata_props.add(key=key, value=str(getattr(info, key)))
    content = proto.SerializeToString()
    _check_same(content, network, info.side_px)
    write_whole(folder / ONNX, content)


def _check_same(onnx: bytes, network: nn.Module, side_px: int) -> None:
    from onnxruntime import InferenceSession

    images = torch.randn(3, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    session = InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(theirs), network(images), atol=1e-4, rtol=1e-4)


def load_exported(folder: Path, device: torch.device) -> ExportedModel:
    """The model that an export left, its weights verified. Raises DataError, one line."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; deepfake-study export CONFIG --out makes one")
    info = _read_info(folder / MODEL_JSON)
    state = _read_weights(folder / WEIGHTS, info)
    network = build_model(info.train_config, None)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # a layer is missing, unknown or of another shape
        first = str(error).splitlines()[1].strip()
        raise DataError(
            f"{folder}: {WEIGHTS} does not fit {MODEL_JSON} ({first[:120]}); export it again"
        ) from None
    return ExportedModel(info, network.to(device).eval(), device)


def _read_info(path: Path) -> ModelInfo:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; the folder is no whole export") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}; export the model again") from None
    theirs = document.get("format") if isinstance(document, dict) else None
    if isinstance(theirs, int) and theirs > FORMAT:
        raise DataError(
            f"{path}: format {theirs} is of a newer release, this one reads up to {FORMAT};"
            " update deepfake-study"
        )
    try:
        info = ModelInfo.model_validate(document)
    except ValidationError as error:
        flaw = error.errors()[0]
        where = ".".join(str(part) for part in flaw["loc"])
        raise DataError(f"{path}: '{where}': {flaw['msg']}; export the model again") from None
    if (info.preparation.mean, info.preparation.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise DataError(
            f"{path}: 'preparation.mean', 'std': {info.preparation.mean}, {info.preparation.std}"
            f" is not what this release normalises by, {IMAGENET_MEAN}, {IMAGENET_STD}"
        )
    return info


def _read_weights(path: Path, info: ModelInfo) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; the folder is no whole export")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); export the model again") from None
    actual = state_dict_sha256(state)
    if actual != info.weights_sha256:
        raise DataError(
            f"{path}: changed since it was exported (sha256 {actual[:12]}, {MODEL_JSON} says"
            f" {info.weights_sha256[:12]}); export the model again"
        )
    return state
