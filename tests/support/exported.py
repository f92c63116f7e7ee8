"""A model folder without a study behind it: the network is drawn, not trained."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepfake.config import Hyperparameters, VariantName
from deepfake.data.feed import Faces
from deepfake.export import ExportedModel, ModelInfo, Preparation, Trained, write_model
from deepfake.metrics.classification import fake_probability
from deepfake.models.build import build_model
from deepfake.models.pretrained import state_dict_sha256
from deepfake.predict import Prediction, predict
from deepfake.training.loop import evaluate

SIDES: dict[VariantName, int] = {
    "cnn": 32,
    "mobilenet_v2_frozen": 33,
    "mobilenet_v2_finetuned": 33,
}
TRAINED = Trained(
    study="drawn",
    slot=3,
    run_id="r" * 32,
    sources=("Train_poly",),
    photos=12,
    faces={split: {"real": 4, "fake": 4} for split in ("train", "val", "test")},
    group_by="photo",
    faces_sha256="a" * 64,
    splits_sha256="b" * 64,
    crops_sha256="c" * 64,
    pretrained="none",
    pretrained_sha256="none",
    settings={"batch_size": 32},
    epoch=1,
    val_loss=0.6,
    torch="2.14.1",
    commit=None,
)


def draw_model(
    folder: Path, variant: VariantName = "cnn", margin: float = 0.0, **changes: Any
) -> tuple[ModelInfo, nn.Module]:
    """Write it, and give what it holds. changes: of model.json's first level."""
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "variant": variant,
        "side_px": SIDES[variant],
        "hyperparameters": Hyperparameters(
            variant=variant, lr=1e-3, weight_decay=1e-5, dropout=0.5
        ),
        "temperature": 2.0,
        "threshold": 0.5,
        "preparation": Preparation(margin=margin, min_face_px=16),
        "weights_sha256": "",
        "trained": TRAINED,
        **changes,
    }
    network = build_model(ModelInfo(**values).train_config, None).eval()
    values["weights_sha256"] = state_dict_sha256(network.state_dict())
    info = ModelInfo(**values)
    folder.mkdir()
    write_model(folder, info, network.state_dict(), "# card\n")
    return info, network


def both_ways(
    model: ExportedModel, work_dir: Path, photos_dir: Path, boxes: Path
) -> tuple[list[float], list[float]]:
    """P(fake) of the validation faces, from rows of the store and by predict from their photos."""
    faces = Faces.load(work_dir, "val", model.info.side_px)
    logits = evaluate(model.network, faces, model.info.train_config, model.device)
    evaluated = fake_probability(logits.double() / model.info.temperature).tolist()
    photos = [photos_dir / name for name in faces.table["file_name"].unique()]
    predicted = {
        (one.picture, one.box): one.probability
        for one in predict(model, photos, boxes)
        if isinstance(one, Prediction)
    }
    rows = zip(faces.table["file_name"], faces.table["bbox"], strict=True)
    keys = [(str(photos_dir / name), tuple(json.loads(bbox))) for name, bbox in rows]
    assert len(keys) == len(predicted) == len(evaluated)
    return evaluated, [predicted[key] for key in keys]
