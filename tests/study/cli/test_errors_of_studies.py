"""Mistakes with a study, and what goes wrong while it runs: said, and nothing is lost."""

import re
import signal
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack, chdir
from pathlib import Path

import pytest
import torch

from deepfake.data.prepare import prepare_data
from study.evaluation import evaluator as final
from study.slots.study import create_or_join, join
from study.worker.inputs import Inputs
from study.worker.setup import study_fingerprint
from tests.support.exported import draw_model
from tests.support.forked import Forked, wait_until
from tests.support.mistakes import Mistake, check, disk, file, taken_port, without
from tests.support.photos import draw_photo, huge_png
from tests.support.runs import Folder

OTHER_CROPS = "--set data.margin=0.2 --set data.work_dir=other"


def prepared_otherwise(folder: Folder, _: ExitStack) -> None:
    done = folder.call("prepare", *OTHER_CROPS.split())
    assert done.returncode == 0, done.stderr


NEW = "begin a new study: deepfake-study run {study}"
BEGUN = {
    "other settings": Mistake(
        "run --set space.lr.high=0.5 --set study.seed=3 --set train.batch_size=8",
        (
            "study 'sample' was created with other data or settings",
            "(space.lr.high was 0.01, is 0.5; study.seed was 0, is 3; ",
            "train.batch_size was 32, is 8)",
            NEW,
            " --set train.batch_size=8 --new",
        ),
    ),
    "other crops": Mistake(
        f"run {OTHER_CROPS}",
        ("data crops (sha256) was", NEW),
        make=prepared_otherwise,
    ),
    "other data in the same place": Mistake(
        "run --set data.margin=0.2",
        ("/faces: made from other data: data.margin was 0.0 and is now 0.2", "set data.work_dir"),
    ),
    "a lower budget": Mistake(
        "run --set study.n_trials=4",
        ("study 'sample' has 14 slots already, study.n_trials says 4", "can grow but not shrink"),
    ),
    "a lower --trials": Mistake("run --trials 4", ("--trials 4: study.n_trials says 14", "+4")),
    "another name": Mistake("status --set name=x", ("no study 'x' in sqlite:///{path}", "run")),
    "no trial": Mistake("evaluate --trial 99", ("--trial 99: the slots are 0 to 13",)),
    "no trial to keep": Mistake("export --out m --trial 99", ("--trial 99: the slots are 0 to",)),
    "a trial to come": Mistake("evaluate --trial 3", ("--trial 3: it is waiting",)),
    "unfinished": Mistake(
        "evaluate", ("has 14 unfinished slots", "finish it first with: deepfake-study run {study}")
    ),
    "not evaluated": Mistake("compare", ("was not evaluated yet", "deepfake-study evaluate")),
    "nothing to keep": Mistake("export --out m", ("has no complete slot to export",)),
    "kept before": Mistake("export --out photos", ("photos: is there already; name another",)),
    "no onnx": Mistake(
        "export --out m --trial 3 --onnx",
        ("--onnx needs onnx", "pip install 'deepfake-study[onnx]'"),
        without("onnx"),
    ),
    "a port that is taken": Mistake(
        "ui --port {made}", ("--port {made}: Address already in use; choose another",), taken_port
    ),
    "a report on no disk": Mistake(
        "report --out disk/x.html",
        ("--out disk/x.html: Read-only file", "name a file"),
        disk("ro"),
    ),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study of fourteen slots that wait."""
    folder = Folder(tmp_path_factory.mktemp("begun"), 12)
    config = folder.study_config()
    with chdir(folder.path):
        inputs = Inputs.load(config, prepare_data(config.data, config.sides_px))
        create_or_join(config, study_fingerprint(config, inputs))
    (folder.path / "mlruns/mlflow.db").touch()
    return folder


@pytest.mark.parametrize("mistake", BEGUN.values(), ids=BEGUN)
def test_a_mistake_with_a_study_is_one_line_and_loses_nothing(
    mistake: Mistake, begun: Folder
) -> None:
    before = begun.json("status")
    check(mistake, begun)
    assert begun.json("status") == before


def weights_of(slot: int, change: Callable[[Path], object]) -> Callable[..., None]:
    """With the weights of a slot changed where MLflow has them."""

    def make(folder: Folder, stack: ExitStack) -> None:
        artifacts = folder.study_config().tracking.artifacts_dir / "small"
        run_id = join(folder.study_config()).records()[slot].run_id
        path = artifacts / str(run_id) / "artifacts/weights/best.safetensors"
        kept = path.read_bytes()
        stack.callback(path.write_bytes, kept)
        change(path)

    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def no_memory(_: Folder, stack: ExitStack) -> None:
    def evaluate(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")

    stack.enter_context(pytest.MonkeyPatch.context()).setattr(final, "evaluate", evaluate)


TRAINED = {
    "evaluate on a small GPU": Mistake(
        "evaluate --trial 1",
        ("out of memory (CUDA out of memory); ", "lower train.batch_size", "another --device"),
        no_memory,
    ),
    "evaluate weights that are gone": Mistake(
        "evaluate --trial 1", ("best.safetensors can't be read",), weights_of(1, Path.unlink)
    ),
    "evaluate weights that are cut": Mistake(
        "evaluate --trial 1", ("best.safetensors is damaged",), weights_of(1, cut)
    ),
    "keep weights that are gone": Mistake(
        "export --trial 1 --out m", ("best.safetensors can't be read",), weights_of(1, Path.unlink)
    ),
    "keep weights that are cut": Mistake(
        "export --trial 1 --out m", ("best.safetensors is damaged",), weights_of(1, cut)
    ),
    "keep on no disk": Mistake(
        "export --trial 1 --out disk/m", ("disk/m: cannot be written: Read-on",), disk("ro")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", TRAINED.values(), ids=TRAINED)
def test_a_mistake_with_a_trained_study_is_one_line(mistake: Mistake, small_study: Folder) -> None:
    check(mistake, small_study)


PREDICT = "predict! {path}/model"
MODELS = {
    "no model": Mistake(
        "predict! {path}/none {path}/a.jpg", ("{path}/none: no such folder", "ex")
    ),
    "no weights": Mistake(
        f"{PREDICT} {{path}}/a.jpg",
        ("model.safetensors: no such file", "the folder is no whole export"),
        lambda folder, _: (folder.path / "model/model.safetensors").unlink(),
    ),
    "weights that are cut": Mistake(
        f"{PREDICT} {{path}}/a.jpg",
        ("model.safetensors: damaged", "export the model again"),
        lambda folder, _: cut(folder.path / "model/model.safetensors"),
    ),
    "no JSON": Mistake(
        f"{PREDICT} {{path}}/a.jpg",
        ("model.json: not JSON", "export the model again"),
        file("model/model.json", "{"),
    ),
    "no picture": Mistake(f"{PREDICT} {{path}}/b.jpg", ("b.jpg: No such file or directory",)),
    "a JPEG that is cut": Mistake(
        f"{PREDICT} {{path}}/a.jpg",
        ("a.jpg: ", "truncated"),
        lambda folder, _: cut(folder.path / "a.jpg"),
    ),
    "an empty JPEG": Mistake(
        f"{PREDICT} {{path}}/a.jpg", ("a.jpg: not a picture",), file("a.jpg", "")
    ),
    "a text": Mistake(f"{PREDICT} {{path}}/a.jpg", ("a.jpg: not a picture",), file("a.jpg", "no")),
    "210 megapixels": Mistake(
        f"{PREDICT} {{path}}/a.png",
        ("a.png: over 200 megapixels",),
        lambda folder, _: str(huge_png(folder.path / "a.png")),
    ),
}


@pytest.mark.parametrize("mistake", MODELS.values(), ids=MODELS)
def test_a_mistake_with_a_model_or_a_picture_is_one_line(mistake: Mistake, tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0)
    draw_model(tmp_path / "model")
    draw_photo(tmp_path / "a.jpg", size=(300, 200))
    check(mistake, folder)


def test_photos_that_cannot_be_read_are_left_out_with_the_reason(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 16)
    photos = [tmp_path / f"photos/Images/Train/Train_poly{n}.jpg" for n in range(4)]
    cut(photos[0])
    photos[1].write_bytes(b"")
    photos[2].write_text("no picture")
    huge_png(photos[3])
    assert folder.json("prepare")["faces"] == 2 * 12
    dropped = (tmp_path / "faces/dropped.csv").read_text()
    for photo, reason in zip(
        photos, ("truncated", "not a picture", "not a picture", "over 200 megapixels"), strict=True
    ):
        assert len(re.findall(f"{photo.name}.*,photo .*{reason}", dropped)) == 2


def out_of_memory() -> None:
    """In the worker: the finetuned MobileNetV2 finds no room, and what is released is noted."""
    from torchvision.models.mobilenetv2 import InvertedResidual

    failed: list[weakref.ref[torch.nn.Module]] = []
    forward, empty = InvertedResidual.forward, torch.cuda.empty_cache

    def without_room(self: InvertedResidual, images: torch.Tensor) -> torch.Tensor:
        if not self.training:  # a frozen one
            return forward(self, images)
        failed.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")

    def noted() -> None:
        empty()
        if failed:
            print(f"released: {all(model() is None for model in failed)}", file=sys.stderr)

    InvertedResidual.forward = without_room  # type: ignore[method-assign]
    torch.cuda.empty_cache = noted


@pytest.mark.slow
def test_a_gpu_out_of_memory_fails_its_trial_and_the_study_goes_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=1")
    assert folder.call("prepare").returncode == 0
    worker = Forked(folder, tmp_path / "worker.log", "worker", before=out_of_memory)
    assert worker.wait() == 3, worker.said()
    records = join(folder.study_config()).records()
    assert [record.state for record in records] == ["complete", "complete", "failed"]
    assert records[2].attempt == 1  # another process may have had the memory: max_attempts is 2
    assert records[2].reason == (
        "out of memory on cpu (CUDA out of memory) with train.batch_size 32: give it fewer "
        "workers, or begin a study with smaller batches: --set train.batch_size=16 --new"
    )
    assert "Traceback" not in worker.said()
    assert worker.said().count("released: True") == 2
    assert "released: False" not in worker.said()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "slot 0: checkpoints of 1 epochs are gone"),
        (cut, r"e0000\.a0\.pt is damaged"),
    ],
    ids=["gone", "cut"],
)
def test_a_slot_whose_checkpoint_is_lost_says_so_and_is_trained_again(
    change: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folder = Folder(tmp_path, 100, "study.n_trials=3", "train.max_epochs=2")
    assert folder.call("prepare").returncode == 0
    first = Forked(folder, tmp_path / "first.log", "worker")
    wait_until(lambda: "slot 0 attempt 0 epoch 0" in first.said(), "slot 0 has an epoch")
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM, first.said()
    (checkpoint,) = folder.study_config().checkpoints_dir.rglob("e0000.a0.pt")
    change(checkpoint)
    second = Forked(folder, tmp_path / "second.log", "worker")
    assert second.wait() == 0, second.said()
    assert re.search(said, second.said())
    assert folder.json("status")["slots"]["complete"] == 3
