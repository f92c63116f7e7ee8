"""A variant is its network and its entry in VARIANTS: nothing else has to know it."""

from functools import partial

import optuna
import pytest
import torch
from rich.console import Console
from torch import nn

from deepfake.config import Hyperparameters, ImageSize, TrainConfig
from deepfake.data.prepare import prepare_data
from deepfake.errors import ConfigError
from deepfake.models.build import build_head, build_model, frozen_backbone
from deepfake.models.features import Features, ensure_features
from deepfake.models.layers import Backbone
from deepfake.models.pretrained import DRAWN
from deepfake.timing import Drawn
from deepfake.training.loop import fit
from deepfake.variants import VARIANTS, Variant
from study.cli.live import trial_line
from study.cli.tables import estimate_table
from study.estimate import estimate
from study.report.search_plots import history_figure, parallel_figure, slice_figures
from study.search.space import suggest
from study.slots.records import SlotRecord
from study.worker.inputs import Inputs
from tests.support.photos import draw_set

CPU = torch.device("cpu")
SIDE = 32
TOY = Variant(network=__name__, side="toy", title="Toy", short="toy", colour="#aa3377")
FROZEN = Variant(
    network=__name__, side="toy", title="Frozen toy", short="ice", colour="#332288", frozen=True
)
EVERY = "[cnn, mobilenet_v2_frozen, mobilenet_v2_finetuned, toy, toy_frozen]"

# this module is the network of both


def build(config, weights):
    return nn.Sequential(backbone(weights), head(config))


def backbone(weights):
    return Backbone("toy", 12, nn.AvgPool2d(SIDE // 2), nn.Flatten())


def head(config):
    return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(12, 2))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(VARIANTS, "toy", TOY)
    monkeypatch.setitem(VARIANTS, "toy_frozen", FROZEN)


@pytest.fixture
def config(make_config, tmp_path):
    config = make_config(
        f"data.annotations=[{draw_set(tmp_path / 'photos', n_photos=24)}]",
        f"data.photos_dir={tmp_path}/photos",
        f"data.work_dir={tmp_path}/faces",
        f"train.image_size={{cnn: 32, mobilenet_v2: 33, toy: {SIDE}}}",
        "train.weights=none",
        "train.max_epochs=2",
        f"space.variant={EVERY}",
    )
    prepare_data(config.data, config.sides_px, processes=1)
    return config


def settings(variant):
    return TrainConfig(
        variant=variant,
        lr=1e-2,
        weight_decay=0,
        dropout=0.1,
        max_epochs=2,
        image_size=ImageSize.model_validate({"toy": SIDE}),
    )


def record(number, variant, loss):
    return SlotRecord(
        number=number,
        state="complete",
        baseline=None,
        attempt=0,
        params=Hyperparameters(variant=variant, lr=1e-3, weight_decay=1e-5, dropout=0.2),
        losses={0: loss},
        reason=None,
        run_id=None,
        worker=None,
        seconds=None,
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("variant", ["toy", "toy_frozen"])
def test_it_trains(variant):
    train = settings(variant)
    faces = Drawn(16, (SIDE, SIDE, 3))
    result = fit(
        partial(build_model, train, None),
        faces,
        faces,
        train,
        seed=0,
        device=CPU,
        on_epoch=lambda stats: True,
    )
    assert len(result.history) == 2


@pytest.mark.usefixtures("one_thread")
def test_its_frozen_backbone_is_asked_once_a_face(config):
    ice = frozen_backbone("toy_frozen", None)
    path = ensure_features(config.data.work_dir, SIDE, ice, CPU)
    assert path.name.startswith(f"toy_{SIDE}_")
    labels = torch.zeros(1, dtype=torch.int64)
    assert Features.load(path, config.data.work_dir, "val", SIDE, labels).rows.shape[1] == 12
    assert build_head(settings("toy_frozen"))[1].in_features == 12
    inputs = Inputs.load(config, prepare_data(config.data, config.sides_px, processes=1))
    assert inputs.begins_from("toy") == DRAWN


def test_the_space_draws_it(config):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {suggest(study.ask(), config.space).variant for _ in range(30)}
    assert drawn == set(VARIANTS)


@pytest.mark.usefixtures("one_thread")
def test_it_is_reckoned_and_has_its_row(config, monkeypatch):
    monkeypatch.setattr("deepfake.timing.TIMED_S", 0.01)
    found = estimate(config, [None], workers=1)
    assert [cost.variant for cost in found.variants] == list(VARIANTS)
    rows = found.train_faces + found.val_faces
    assert found.disk["features"] == rows * (1280 + 12) * 4
    console = Console(width=120)
    with console.capture() as printed:
        console.print(estimate_table(found))
    assert "toy_frozen" in printed.get()


def test_charts_and_tables_show_it(config):
    records = [record(0, "cnn", 0.5), record(1, "toy", 0.4), record(2, "toy_frozen", 0.6)]
    history = history_figure(records)
    colours = {trace.name: trace.marker.color for trace in history.data}
    assert (colours["toy"], colours["toy_frozen"]) == ("#aa3377", "#332288")
    axis = slice_figures(records, config.space)["variant"].layout.xaxis
    assert axis.ticktext == ("cnn", "mnv2-frozen", "mnv2-tuned", "toy", "ice")
    lines = parallel_figure(records, config.space).data
    assert {line.line.color for line in lines} == {"#0072B2", "#aa3377", "#332288"}
    assert "toy_frozen" in trial_line(records[2], 2).plain


def test_its_side_must_be_said(make_config):
    with pytest.raises(
        ConfigError, match=r"'train\.image_size': has no 'toy', the side of variant"
    ):
        make_config(f"space.variant={EVERY}")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("space.variant=[cnn, tyo]", "'toy' or 'toy_frozen', not \"tyo\""),
        ("train.image_size={tyo: 32}", "unknown key 'train.image_size.tyo'"),
        ("train.image_size={toy: 8}", "'train.image_size.toy': Input should be greater than"),
    ],
)
def test_what_no_entry_names_is_refused_by_name(make_config, setting, said):
    with pytest.raises(ConfigError, match=said):
        make_config(setting)
