"""The folder of an exported model: what was written comes back, and nothing else passes."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepfake import export
from deepfake.config import VariantName
from deepfake.data.feed import normalise
from deepfake.errors import DataError, UserError
from deepfake.export import FORMAT, check_onnx, load_exported, whole_folder, write_onnx
from deepfake.metrics.classification import fake_probability
from deepfake.variants import VARIANTS
from tests.support.exported import SIDES, draw_model
from tests.support.runs import REPOSITORY

CPU = torch.device("cpu")


def pixels(n: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_comes_back_with_the_same_logits_bit_for_bit(
    variant: VariantName, tmp_path: Path
) -> None:
    _, network = draw_model(tmp_path / "model", variant)
    faces = pixels(5, SIDES[variant])
    with torch.inference_mode():
        expected = network(normalise(faces))
    loaded = load_exported(tmp_path / "model", CPU)
    assert torch.equal(loaded.logits(faces), expected)
    # temperature 2 halves the difference of the logits
    halved = fake_probability(expected.double() / 2)
    assert torch.equal(loaded.probabilities(faces), halved)
    assert halved[0] == pytest.approx(
        1 / (1 + math.exp((expected[0, 0] - expected[0, 1]).item() / 2)), abs=1e-6
    )


def test_model_json_says_what_another_program_needs(tmp_path: Path) -> None:
    draw_model(tmp_path / "model", margin=0.2)
    said = json.loads((tmp_path / "model/model.json").read_text())
    assert (said["format"], said["variant"], said["side_px"]) == (1, "cnn", 32)
    assert (said["temperature"], said["threshold"]) == (2.0, 0.5)
    assert said["labels"] == ["real", "fake"]
    assert said["preparation"] == {
        "margin": 0.2,
        "jpeg_quality": 95,
        "resize": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "min_face_px": 16,
    }


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_exported(folder, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_changed_byte_of_the_weights_is_refused_by_their_hash(tmp_path: Path) -> None:
    draw_model(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert re.search(
        r"changed since it was exported \(sha256 \w{12}, model.json", refusal(tmp_path / "model")
    )


def test_weights_that_end_too_early_are_damaged(tmp_path: Path) -> None:
    draw_model(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "model.safetensors: damaged" in refusal(tmp_path / "model")


def test_weights_of_another_network_do_not_fit_though_their_hash_is_right(
    tmp_path: Path,
) -> None:
    draw_model(tmp_path / "model")
    other, _ = draw_model(tmp_path / "other", "mobilenet_v2_finetuned")
    (tmp_path / "other/model.safetensors").replace(tmp_path / "model/model.safetensors")
    edit(tmp_path / "model", lambda said: said.update(weights_sha256=other.weights_sha256))
    assert "model.safetensors does not fit model.json (Missing key" in refusal(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_whole_export(name: str, tmp_path: Path) -> None:
    draw_model(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    said = refusal(tmp_path / "model")
    assert name in said
    assert "the folder is no whole export" in said


def test_no_folder_says_what_makes_one(tmp_path: Path) -> None:
    assert "no such folder; deepfake-study export" in refusal(tmp_path / "model")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda said: said.update(format=FORMAT + 1),
            f"format {FORMAT + 1} is of a newer release",
        ),
        (lambda said: said.update(format="1"), "'format'"),
        (lambda said: said.update(side_px=16), "side_px 16: Input should be greater than"),
        (lambda said: said.update(side=16), "'side': Extra inputs are not permitted"),
        (lambda said: said.update(temperature=0), "'temperature'"),
        (lambda said: said.update(threshold=1.1), "'threshold'"),
        (lambda said: said.update(temperature=math.nan), "'temperature'"),
        (lambda said: said["preparation"].update(jpeg_quality=90), "'preparation.jpeg_quality'"),
        (lambda said: said["preparation"].update(mean=[0.5] * 3), "is not what this release"),
        (lambda said: said.pop("weights_sha256"), "'weights_sha256': Field required"),
    ],
)
def test_a_model_json_that_is_not_ours_is_refused_by_key(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    draw_model(tmp_path / "model")
    edit(tmp_path / "model", change)
    assert words in refusal(tmp_path / "model")


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "[" * 100_000])
def test_a_model_json_that_is_no_object_is_one_line(content: str, tmp_path: Path) -> None:
    draw_model(tmp_path / "model")
    (tmp_path / "model/model.json").write_text(content)
    assert "model.json" in refusal(tmp_path / "model")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "a/model") as folder:
            (folder / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [*(tmp_path / "a").iterdir()] == []
    with whole_folder(tmp_path / "a/model") as folder:
        (folder / "whole").touch()
        assert not (tmp_path / "a/model").exists()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["model", "whole"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with (
        pytest.raises(UserError, match="model: is there already; name another"),
        whole_folder(tmp_path / "model"),
    ):
        raise AssertionError


def test_a_folder_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is there already"),
        whole_folder(tmp_path / "model"),
    ):
        (tmp_path / "model").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_takes_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="file/model: cannot be written: Not a directory"),
        whole_folder(tmp_path / "file/model"),
    ):
        raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_gives_torchs_logits_for_any_number_of_faces(
    variant: VariantName, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'deepfake-study.onnx.'")
    pytest.importorskip("onnxscript", reason="pip install 'deepfake-study.onnx.'")
    info, network = draw_model(tmp_path / "model", variant)
    write_onnx(tmp_path / "model", info, network)
    path = tmp_path / "model/model.onnx"
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 7):
        images = normalise(pixels(n, SIDES[variant], seed=n))
        (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(logits), network(images), atol=1e-4, rtol=0)
    said = session.get_modelmeta().custom_metadata_map
    assert (float(said["temperature"]), float(said["threshold"])) == (2.0, 0.5)
    assert said["weights_sha256"] == info.weights_sha256
    content = path.read_bytes()
    assert str(REPOSITORY).encode() not in content  # stack traces would name this machine's paths
    assert b"site-packages" not in content


def test_without_the_extra_onnx_the_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(UserError, match=r"--onnx needs onnxscript: pip install '.*onnx\]'"):
        check_onnx()


def test_weights_are_stored_once_by_name(tmp_path: Path) -> None:
    _, network = draw_model(tmp_path / "model")
    state = load_file(tmp_path / "model/model.safetensors")
    assert state.keys() == network.state_dict().keys()
    save_file(state, tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "model/model.safetensors").read_bytes()
