import copy
import email.message
import functools
import io
import math
import re
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torchvision.models import mobilenet_v2

from deepfake import variants
from deepfake.config import ImageSize, TrainConfig
from deepfake.errors import ConfigError
from deepfake.models.build import build_model
from deepfake.models.layers import count_parameters
from deepfake.models.pretrained import load_weights, state_dict_sha256
from deepfake.training.loop import train_one_epoch

VARIANTS = ("cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
MOBILENETS = VARIANTS[1:]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")

# torchvision's MobileNetV2 without its classifier, from the paper's table: convolutions without
# bias, two BatchNorm numbers a channel. An inverted residual of i -> o channels, expanded t times
# (h = t * i), has i*h + 2h (expand; not where t = 1), 9h + 2h (depthwise), h*o + 2o (project).
STEM = 3 * 32 * 9 + 2 * 32
BLOCKS = (  # t, channels, repeats
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)
LAST = 320 * 1280 + 2 * 1280


def config_of(variant, dropout=0.2, side=32, **settings):
    return TrainConfig(
        variant=variant,
        lr=1e-3,
        weight_decay=1e-5,
        dropout=dropout,
        image_size=ImageSize.model_construct(cnn=side, mobilenet_v2=side),
        **settings,
    )


def draw(variant, weights=None, seed=0, **settings):
    torch.manual_seed(seed)
    return build_model(config_of(variant, **settings), weights)


drawn_once = functools.cache(draw)


def build(variant, **settings):
    """A model of its own, as draw gives it; the drawing itself is shared."""
    return copy.deepcopy(drawn_once(variant, **settings))


def images_of(n, side=32, seed=0):
    """Normalised pictures that differ in colour, contrast and detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    fine = torch.randn(n, 3, side, side, generator=generator) * 0.3
    return nn.functional.interpolate(coarse, side, mode="bilinear") + fine


class Feed:
    """Faces in memory, in their order."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, device, generator=None):
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


@pytest.fixture(scope="module")
def pretrained():
    """A torchvision MobileNetV2 with numbers of its own in every layer, and its state dict."""
    torch.manual_seed(5)
    model = mobilenet_v2(weights=None)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
            layer.weight.data = torch.randn(layer.weight.shape) * math.sqrt(2 / fan_in)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.9, 1.1)
            layer.bias.data.normal_(0, 0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.9, 1.1)
    return model.eval()


@pytest.fixture
def weights_file(pretrained, tmp_path):
    path = tmp_path / "mobilenet.pth"
    torch.save(pretrained.state_dict(), path)
    return path


# the numbers of parameters


def test_the_cnn_at_128_px_has_the_parameters_counted_by_hand():
    # convolutions with bias: 896 + 18,496 + 73,856 + 295,168 + 1,180,160 = 1,568,576
    # BatchNorm, 2 a channel: 2 * (32 + 64 + 128 + 256 + 512)            =     1,984
    # 128 / 2^5 = 4 px: 512 * 4 * 4 = 8,192 -> 1,024: 8,192 * 1,024 + 1,024 = 8,389,632
    # 1,024 -> 2: 2,050
    model = build("cnn", side=128)
    assert model[21].in_features == 8192
    assert count_parameters(model) == 1_568_576 + 1_984 + 8_389_632 + 2_050 == 9_962_242
    assert count_parameters(model, trainable=True) == 9_962_242


def test_the_cnn_at_64_px_has_the_parameters_counted_by_hand():
    # 64 / 2^5 = 2 px: 512 * 2 * 2 = 2,048 -> 1,024: 2,098,176; the rest as at 128 px
    model = build("cnn", side=64)
    assert model[21].in_features == 2048
    assert count_parameters(model) == 1_568_576 + 1_984 + 2_098_176 + 2_050 == 3_670_786


def test_the_cnn_is_the_reports_layer_for_layer():
    layers = [type(layer).__name__ for layer in build("cnn", side=128)]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert layers == [*block * 5, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    convolutions = [layer for layer in build("cnn", side=128) if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 32),
        (32, 64),
        (64, 128),
        (128, 256),
        (256, 512),
    ]
    assert {(c.kernel_size, c.padding, c.stride) for c in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }


def test_mobilenet_v2_has_the_parameters_counted_by_hand():
    backbone, inputs = STEM + LAST, 32
    for t, channels, repeats in BLOCKS:
        for _ in range(repeats):
            hidden = t * inputs
            expand = inputs * hidden + 2 * hidden if t > 1 else 0
            backbone += expand + 11 * hidden + hidden * channels + 2 * channels
            inputs = channels
    assert backbone == 2_223_872
    head = 1280 * 2 + 2
    for variant in MOBILENETS:
        assert count_parameters(build(variant)) == backbone + head == 2_226_434
    assert count_parameters(build("mobilenet_v2_frozen"), trainable=True) == head == 2_562
    assert count_parameters(build("mobilenet_v2_finetuned"), trainable=True) == 2_226_434


# shapes, layout, dropout


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [32, 33, 100])
def test_logits_are_two_a_face_at_any_side(variant, side):
    model = build(variant, side=side).eval()
    with torch.inference_mode():
        assert model(images_of(3, side)).shape == (3, 2)


@pytest.mark.parametrize(("variant", "side"), [("cnn", 128), ("mobilenet_v2_finetuned", 224)])
def test_logits_are_two_a_face_at_the_reports_side(variant, side):
    with torch.inference_mode():
        assert build(variant, side=side).eval()(images_of(2, side)).shape == (2, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_lie_channels_last_and_say_the_same_as_in_torchs_own_layout(variant):
    model = build(variant).eval()
    kernels = [p for p in model.parameters() if p.dim() == 4]
    assert len(kernels) >= 5
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    images = images_of(4)
    with torch.inference_mode():
        fast = model(images.to(memory_format=torch.channels_last))
        plain = model.to(memory_format=torch.contiguous_format)(images)
    assert torch.allclose(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_is_one_layer_before_the_last_linear_one(variant):
    layers = list(build(variant, dropout=0.35).modules())
    found = [at for at, layer in enumerate(layers) if isinstance(layer, nn.Dropout)]
    assert len(found) == 1
    assert layers[found[0]].p == 0.35
    assert found[0] == len(layers) - 2
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].out_features == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_acts_in_training_and_not_in_eval_mode(variant):
    model = build(variant, dropout=0.5)
    images = images_of(4)
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = model.train()(images), model(images)
        assert not torch.equal(first, second)
        model.eval()
        assert torch.equal(model(images), model(images))


# initial weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_drawn_layer_has_kaimings_variance_and_no_bias(variant):
    drawn = 0
    for layer in build(variant, side=64).modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
        elif isinstance(layer, nn.Linear):
            fan_in = layer.in_features
        else:
            continue
        drawn += 1
        weight, n = layer.weight.detach().double(), layer.weight.numel()
        variance = 2 / fan_in
        # of n normal draws the mean has variance v/n and the variance 2v^2/n: 5 deviations
        assert abs(weight.mean()) < 5 * math.sqrt(variance / n)
        assert abs(weight.pow(2).mean() / variance - 1) < 5 * math.sqrt(2 / n)
        assert layer.bias is None or not layer.bias.any()
    assert drawn == (7 if variant == "cnn" else 53)  # 52 convolutions and the head


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_batchnorm_begins_at_scale_1_and_shift_0(variant):
    norms = [layer for layer in build(variant).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == (5 if variant == "cnn" else 52)
    for norm in norms:
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
        assert norm.running_mean.eq(0).all()
        assert norm.running_var.eq(1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_draws_the_same_weights_and_another_others(variant):
    first, same, other = (draw(variant, seed=seed).state_dict() for seed in (1, 1, 2))
    assert state_dict_sha256(first) == state_dict_sha256(same) != state_dict_sha256(other)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(2))
def test_no_variants_logits_are_constant_over_faces_before_training(variant, seed):
    with torch.inference_mode():
        logits = draw(variant, seed=seed).eval()(images_of(16))
    scores = logits[:, 1] - logits[:, 0]
    assert scores.std() > 0.05


def test_torchvisions_own_random_weights_would_make_the_frozen_variant_constant():
    # why build_model draws the backbone with fan_in: torchvision's fan_out shrinks each depthwise
    # layer's output, and a frozen BatchNorm does not bring it back
    torch.manual_seed(0)
    model = mobilenet_v2(weights=None).eval()
    with torch.inference_mode():
        theirs = model.features(images_of(16)).mean((2, 3))
        ours = build("mobilenet_v2_frozen").eval()[0](images_of(16))
    assert theirs.abs().max() < 1e-7
    assert theirs.std(0).mean() < 1e-8
    assert ours.std(0).mean() > 0.05


# the frozen backbone


def test_a_frozen_backbone_stays_in_eval_mode_and_the_head_follows():
    model = build("mobilenet_v2_frozen")
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert not any(layer.training for layer in model[0].modules())
        assert all(layer.training is mode for layer in model[1].modules())
    finetuned = build("mobilenet_v2_finetuned").train()
    assert all(layer.training for layer in finetuned.modules())


@pytest.mark.parametrize("weights", ["none", "pretrained"])
def test_training_moves_the_head_and_nothing_in_a_frozen_backbone(weights, pretrained):
    model = draw(
        "mobilenet_v2_frozen", pretrained.state_dict() if weights == "pretrained" else None
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # all parameters to the optimiser, with L2: what has no gradient must not decay either
    optimizer = Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    feed = Feed(images_of(8), torch.tensor([0, 1] * 4))
    train_one_epoch(model, feed, optimizer, config_of(VARIANTS[1], batch_size=4), 0, CPU)
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"1.1.weight", "1.1.bias"}


def test_training_moves_every_weight_and_statistic_of_the_finetuned_variant():
    model = build("mobilenet_v2_finetuned")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Adam(model.parameters(), lr=1e-2)
    feed = Feed(images_of(8), torch.tensor([0, 1] * 4))
    train_one_epoch(model, feed, optimizer, config_of(VARIANTS[2], batch_size=4), 0, CPU)
    still = {name for name, value in model.state_dict().items() if value.equal(before[name])}
    assert still == set()


# pretrained weights


@pytest.mark.parametrize("variant", MOBILENETS)
def test_pretrained_features_equal_torchvisions_own_model(variant, pretrained, weights_file):
    state, _ = load_weights(str(weights_file), "mobilenet_v2_frozen")
    model = draw(variant, state, seed=9, side=96).eval()
    images = images_of(6, side=96)
    with torch.inference_mode():
        ours = model[0](images.to(memory_format=torch.channels_last))
        theirs = pretrained.features(images).mean((2, 3))
    assert ours.shape == (6, 1280)
    assert theirs.std(0).mean() > 0.05  # they say something
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pretrained_weights_leave_the_head_to_kaiming(weights_file):
    state, _ = load_weights(str(weights_file), "mobilenet_v2_frozen")
    head = draw("mobilenet_v2_frozen", state)[1][1]
    assert head.weight.var().item() == pytest.approx(2 / 1280, rel=0.15)
    assert not head.bias.any()


def test_the_cnn_takes_no_pretrained_weights(pretrained):
    with_weights = draw("cnn", pretrained.state_dict()).state_dict()
    assert state_dict_sha256(with_weights) == state_dict_sha256(build("cnn").state_dict())


def test_none_are_no_weights():
    assert load_weights("none", "mobilenet_v2_frozen") == (None, "none")


def test_a_variant_that_is_not_pretrained_begins_from_none(weights_file):
    for weights in ("imagenet", str(weights_file), "nowhere.pth"):
        assert load_weights(weights, "cnn") == (None, "none")


def test_a_flaw_in_a_networks_module_is_what_is_said(tmp_path, monkeypatch):
    # not that there is no such module, nor that its package has no such name
    package = tmp_path / "networks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "flawed.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    flawed = replace(variants.VARIANTS["cnn"], network="networks.flawed")
    monkeypatch.setitem(variants.VARIANTS, "cnn", flawed)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        draw("cnn")


def test_the_hash_is_of_the_values_not_of_the_file(pretrained, weights_file, tmp_path):
    state = pretrained.state_dict()
    again = {name: state[name].clone() for name in reversed(state)}
    for name, value in again.items():
        if value.dim() == 4:
            again[name] = value.to(memory_format=torch.channels_last)
    path = tmp_path / "again.pth"
    torch.save(again, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes() != weights_file.read_bytes()
    sha256 = load_weights(str(weights_file), "mobilenet_v2_frozen")[1]
    assert load_weights(str(path), "mobilenet_v2_frozen")[1] == sha256
    assert len(sha256) == 64
    name = "features.18.0.weight"
    again[name] = again[name].clone()
    again[name].view(-1)[0] = torch.nextafter(again[name].view(-1)[0], torch.tensor(9.0))
    torch.save(again, path)
    assert load_weights(str(path), "mobilenet_v2_frozen")[1] != sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_saved_in_half_precision_load_too(pretrained, tmp_path, dtype):
    path = tmp_path / "half.pth"
    half = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in pretrained.state_dict().items()
    }
    torch.save(half, path)
    state, sha256 = load_weights(str(path), "mobilenet_v2_frozen")
    assert len(sha256) == 64
    model = draw("mobilenet_v2_frozen", state)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model[0][0][0][0].weight, half["features.0.0.weight"].float())


# weights that can't be used: one line that names train.weights and the file


def refusal(weights):
    with pytest.raises(ConfigError) as caught:
        load_weights(str(weights), "mobilenet_v2_frozen")
    message = str(caught.value)
    assert message.startswith("train.weights: ")
    assert str(weights) in message
    assert "\n" not in message
    assert "\x1b" not in message  # torch prints in bold
    return message


@pytest.mark.parametrize("name", ["nowhere.pth", "", "imagnet"])
def test_an_absent_weights_file_is_refused(tmp_path, name):
    message = refusal(tmp_path / name if name else tmp_path)
    assert "is not a file; give imagenet, none or a path" in message


@pytest.mark.parametrize("content", [b"", b"hello\nworld", b"PK\x03\x04", b"<html>\n" * 500])
def test_a_file_that_torch_did_not_write_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert "can't be read as weights (" in refusal(path)


def test_a_cut_weights_file_is_refused(weights_file):
    weights_file.write_bytes(weights_file.read_bytes()[:100_000])
    assert "can't be read as weights (" in refusal(weights_file)


class Touches:
    """Unpickling it would create a file: code run by a weights file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_weights_file_that_would_run_code_is_refused_and_runs_none(pretrained, tmp_path):
    trap, path = tmp_path / "code_ran", tmp_path / "weights.pth"
    torch.save({**pretrained.state_dict(), "extra": Touches(trap)}, path)
    message = refusal(path)
    assert "can't be read as weights (UnpicklingError: Weights only load failed); give" in message
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap does work where weights_only is off


def test_a_whole_pickled_model_is_refused(pretrained, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(pretrained, path)
    assert "can't be read as weights (" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {"state_dict": {"features.0.0.weight": torch.zeros(2)}},
        {"epoch": 3},
        {0: torch.zeros(2)},
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert "holds no state dict (name -> tensor)" in refusal(path)


def test_a_state_dict_of_another_model_is_refused_with_a_layer_it_lacks(tmp_path):
    path = tmp_path / "cnn.pth"
    torch.save(build("cnn").state_dict(), path)
    message = refusal(path)
    assert "is no mobilenet_v2 state dict of torchvision's layout" in message
    assert '(Missing key(s) in state_dict: "features.0.0.weight"' in message


def test_a_state_dict_with_a_layer_too_many_is_refused_with_its_name(pretrained, tmp_path):
    path = tmp_path / "more.pth"
    torch.save({**pretrained.state_dict(), "features.19.weight": torch.zeros(2)}, path)
    assert 'Unexpected key(s) in state_dict: "features.19.weight"' in refusal(path)


def test_a_narrower_mobilenet_is_refused_with_the_layer_of_another_shape(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(mobilenet_v2(weights=None, width_mult=0.5).state_dict(), path)
    message = refusal(path)
    assert "is no mobilenet_v2 state dict of torchvision's layout" in message
    assert "(size mismatch for features.0.0.weight: copying a param with shape" in message


# torchvision's download


@pytest.fixture
def answer(monkeypatch, tmp_path):
    """Let torchvision's download get this answer, an error or bytes; and what it asked for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def answer_with(outcome):
        def urlopen(request, *args, **kwargs):
            asked.append(request.full_url)
            if isinstance(outcome, Exception):
                raise outcome
            response = io.BytesIO(outcome)
            response.info = email.message.Message  # headers, none set
            return response

        monkeypatch.setattr("torch.hub.urlopen", urlopen)
        return asked

    return answer_with


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError(OSError("[Errno -3] Temporary failure in name resolution")),
        urllib.error.HTTPError("https://x", 403, "Forbidden", None, None),
        ConnectionResetError("Connection reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_imagenet_weights_offline_are_explained_with_the_way_out(answer, error):
    asked = answer(error)
    message = refusal("imagenet")
    assert "imagenet can't be downloaded" in message
    assert f"({type(error).__name__}: {error})" in message
    assert message.endswith("give the path of a torchvision mobilenet_v2 state dict, or none")
    assert len(asked) == 1
    assert asked[0].startswith("https://download.pytorch.org/models/mobilenet_v2-")


def test_a_proxys_page_in_place_of_the_imagenet_weights_is_explained(answer, tmp_path, capfd):
    answer(b"<html>please log in</html>")
    message = refusal("imagenet")
    assert "imagenet can't be downloaded" in message
    assert "invalid hash value" in message
    assert capfd.readouterr().out == ""  # stdout is for results
    assert not list(tmp_path.rglob("mobilenet*"))  # or the next start would load the page


def test_downloaded_imagenet_weights_run_no_code(answer, tmp_path, monkeypatch):
    # a file of the right hash, as far as torch can see, that is none of torchvision's
    trap, path = tmp_path / "code_ran", tmp_path / "trap.pth"
    torch.save({"features.0.0.weight": Touches(trap)}, path)
    monkeypatch.setattr("torch.hub.HASH_REGEX", re.compile("-(nothing)$"))
    answer(path.read_bytes())
    assert "UnpicklingError" in refusal("imagenet")
    assert not trap.exists()
