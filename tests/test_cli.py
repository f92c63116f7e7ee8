"""The command line: what a user gets wrong is one line and exit code 2, with nothing written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake.prepare import prepare
from study.joining import create_or_join
from study.load import load_config
from study.objective import Inputs
from study.worker import study_fingerprint
from tests.photos import face
from tests.postgres import PASSWORD
from tests.runs import ENV, REPOSITORY, Folder

Refused = Callable[..., str]
HEAVY = ("torch", "mlflow", "optuna", "pandas", "sklearn", "matplotlib", "plotly")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from study.cli import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stderr.strip() == "[]"
    commands = ("sample", "prepare", "run", "worker", "status", "evaluate", "compare", "export")
    for command in (*commands, "predict"):
        assert f" {command} " in done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, 12)


def written(folder: Folder) -> set[str]:
    return {path.name for path in folder.path.iterdir()} - {"photos"}


@pytest.fixture
def refused(folder: Folder) -> Refused:
    """The one line that a command says before it ends with exit code 2."""

    def call(name: str, *options: str) -> str:
        done = folder.call(name, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return call


SETTINGS = {
    "train.learning_rate=1": "unknown key 'train.learning_rate'; did you mean 'space.lr'?",
    "space.lr=-1": "'space.lr': Input should be greater than 0, not -1",
    "train.batch_size=0": "'train.batch_size': Input should be greater than 0, not 0",
    "data.fractions.train=0.8": "'data.fractions': train + val + test is 1.1",
    "study.n_trials=2": "'study.n_trials': 2 is below the 3 baselines",
    "train.weights=missing.pth": "'train.weights'",
    "data.annotations=[missing.json]": "missing.json: No such file",
}


@pytest.mark.parametrize("override", SETTINGS)
def test_a_wrong_setting_is_said_before_any_data_is_touched(
    override: str, folder: Folder, refused: Refused
) -> None:
    assert SETTINGS[override] in refused("prepare", "--set", override)
    assert written(folder) == set()


def test_weights_that_are_no_state_dict_are_said_before_any_data_is_touched(
    folder: Folder, refused: Refused
) -> None:
    (folder.path / "photos/weights.pth").write_bytes(b"not weights")
    line = refused("run", "--set", "train.weights=photos/weights.pth")
    assert "train.weights" in line
    assert written(folder) == set()


BAD_JSON = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[]", "object"),
    "a missing key": ('{"images": [], "annotations": []}', "'categories'"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_json_of_the_wrong_shape_is_named(case: str, folder: Folder, refused: Refused) -> None:
    content, message = BAD_JSON[case]
    (folder.path / "photos/Train_poly.json").write_text(content)
    line = refused("prepare")
    assert "Train_poly.json" in line
    assert message in line
    assert written(folder) == set()


BAD_FACES = {
    "an image_id without entry": (face(7, 99, 0, [1, 2, 3, 4]), "image_id 99"),
    "a bbox of three": (face(7, 0, 0, [1, 2, 3]), "bbox"),
    "a bbox that is not finite": (face(7, 0, 0, [1, 2, 3, float("nan")]), "bbox"),
    "an unknown category": (face(7, 0, 5, [1, 2, 3, 4]), "category_id 5"),
}


@pytest.mark.parametrize("case", BAD_FACES)
def test_a_wrong_annotation_is_named_by_its_id(
    case: str, folder: Folder, refused: Refused
) -> None:
    path = folder.path / "photos/Train_poly.json"
    document = json.loads(path.read_text())
    wrong, message = BAD_FACES[case]
    document["annotations"][7] = wrong
    path.write_text(json.dumps(document))
    line = refused("prepare")
    assert "Train_poly.json" in line
    assert "annotation 7" in line
    assert message in line
    assert written(folder) == set()


def test_a_photo_outside_its_folder_is_refused(folder: Folder, refused: Refused) -> None:
    path = folder.path / "photos/Train_poly.json"
    path.write_text(path.read_text().replace("Images/Train/Train_poly0.jpg", "../../passwd"))
    assert "../../passwd" in refused("prepare")
    assert written(folder) == set()


@pytest.mark.slow
def test_an_unreachable_database_is_said_without_its_password(
    folder: Folder, refused: Refused
) -> None:
    url = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/db"
    env = {**ENV, "DEEPFAKE_STUDY_STORAGE": url}
    done = subprocess.run(
        folder.command("status"), cwd=folder.path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "study.storage: postgresql+psycopg://***@127.0.0.1:1/db" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


def test_what_was_not_begun_is_said(folder: Folder, refused: Refused) -> None:
    assert "no study was started here yet" in refused("status")
    assert "no study was" in refused("evaluate")
    assert "no study was" in refused("ui")
    assert written(folder) == set()


def test_a_device_that_is_not_there_is_named(folder: Folder, refused: Refused) -> None:
    assert "--device gpu7" in refused("worker", "--device", "gpu7")
    assert "CUDA devices" in refused("worker", "--device", "cuda:63")


@pytest.mark.slow
def test_prepare_says_what_it_left_and_a_second_time_the_same(
    folder: Folder, refused: Refused
) -> None:
    first = folder.json("prepare")
    assert (first["photos"], first["faces"], first["real"], first["fake"]) == (12, 24, 12, 12)
    crops = {path: path.stat().st_mtime_ns for path in (folder.path / "faces/crops").iterdir()}
    assert folder.json("prepare") == first
    assert crops == {p: p.stat().st_mtime_ns for p in (folder.path / "faces/crops").iterdir()}


def test_a_study_whose_data_or_space_changed_says_what_differs(
    folder: Folder, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    config = load_config(REPOSITORY / "configs/sample.yaml", folder.overrides)
    inputs = Inputs.load(config, prepare(config.data, config.sides_px))
    create_or_join(config, study_fingerprint(config, inputs))

    line = refused("run", "--set", "space.lr.high=0.5")
    assert "space.lr.high was 0.01, is 0.5" in line
    assert "--new" in line
    other_cut = ("--set", "data.margin=0.2", "--set", f"data.work_dir={folder.path}/other")
    assert "data crops (sha256) was" in refused("run", *other_cut)
    same_place = refused("run", "--set", "data.margin=0.2")
    assert "data.margin was 0.0 and is now 0.2" in same_place
    (folder.path / "photos/Train_poly.json").write_text("{}")
    assert "sha256 was" in refused("run")
