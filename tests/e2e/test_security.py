"""No pickle is run, no file outside its folder is read, no stranger is served."""

import hashlib
import http.client
import io
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from deepfake.data.feed import Faces
from deepfake.errors import ConfigError, DataError
from study.config.load import load_config
from study.slots.study import join
from tests.support.forked import Forked, wait_until
from tests.support.runs import REPOSITORY, Folder

# no pickle is run


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.sprung,))


def trap_file(sprung: Path) -> bytes:
    """What torch would load, and would run, without weights_only."""
    content = io.BytesIO()
    torch.save({"model": Trap(sprung)}, content)
    torch.load(io.BytesIO(content.getvalue()), weights_only=False)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    return content.getvalue()


@pytest.mark.slow
def test_a_pickle_in_the_place_of_a_checkpoint_is_not_run_and_the_slot_goes_on(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path, 100, "study.n_trials=3", "train.max_epochs=3")
    assert folder.call("prepare").returncode == 0
    worker = Forked(folder, tmp_path / "first.log", "worker")
    checkpoints = folder.path / "mlruns/checkpoints"
    wait_until(lambda: any(checkpoints.rglob("slot_000/e0000.a0.pt")), "epoch 0 is trained")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM, worker.said()
    sprung = tmp_path / "sprung"
    content = trap_file(sprung)
    kept = list(checkpoints.rglob("slot_000/*.pt"))
    for path in kept:
        path.write_bytes(content + hashlib.sha256(content).digest())  # whole, by its hash
    last = Forked(folder, tmp_path / "last.log", "worker")
    assert last.wait() == 0, last.said()
    assert not sprung.exists()
    for path in kept:
        assert f"{path} is damaged" in last.said()
    assert folder.json("status")["slots"]["complete"] == 3


@pytest.mark.slow
def test_a_pickle_in_the_place_of_logged_weights_is_not_run(
    small_study: Folder, tmp_path: Path
) -> None:
    slots = join(small_study.study_config())
    run_id = slots.records()[0].run_id
    assert run_id is not None
    artifacts = small_study.path / "mlruns/artifacts"
    (weights,) = [p for p in artifacts.rglob("*.safetensors") if run_id in p.parts]
    genuine, content = weights.read_bytes(), trap_file(tmp_path / "sprung")
    client = MlflowClient(tracking_uri=slots.config.tracking.uri)
    tag = client.get_run(run_id).data.tags["weights_sha256"]
    weights.write_bytes(content)
    client.set_tag(run_id, "weights_sha256", hashlib.sha256(content).hexdigest())
    try:
        done = small_study.call("evaluate", "--trial", "0")
    finally:
        weights.write_bytes(genuine)
        client.set_tag(run_id, "weights_sha256", tag)
    assert not (tmp_path / "sprung").exists()
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_store_of_pickled_objects_is_not_loaded(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    assert folder.call("prepare").returncode == 0
    sprung = tmp_path / "sprung"
    (store,) = (folder.path / "faces").rglob("faces_32.npy")
    shape = np.load(store).shape
    objects = np.empty(shape, dtype=object)
    objects.flat[0] = Trap(sprung)
    np.save(store, objects, allow_pickle=True)
    with pytest.raises((ValueError, DataError)):
        Faces.load(folder.path / "faces", "train", 32)
    assert not sprung.exists()


def test_a_yaml_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    config = tmp_path / "config.yaml"
    config.write_text(f"name: !!python/object/apply:os.mkdir ['{sprung}']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(config, [])
    sample = REPOSITORY / "configs/sample.yaml"
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(sample, [f"name=!!python/object/apply:os.mkdir ['{sprung}']"])
    assert not sprung.exists()


# no file outside its folder is read


@pytest.mark.parametrize("link", ["Images/Train/Train_poly0.jpg", "Images/Train", "Images"])
def test_photos_behind_a_link_out_of_their_folder_are_refused(tmp_path: Path, link: str) -> None:
    folder = Folder(tmp_path / "study", 12)
    place, outside = folder.path / "photos" / link, tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    done = folder.call("prepare")
    assert done.returncode == 2
    assert re.search(r"'Images/Train/Train_poly\d+\.jpg' points outside", done.stderr)
    assert not (folder.path / "faces").exists()


# no stranger is served


@pytest.fixture(scope="module")
def ui_port(small_study: Folder) -> Iterator[int]:
    server = subprocess.Popen(
        small_study.command("ui", "--port", "0"),
        cwd=small_study.path,
        env={**small_study.env, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
        assert found
        yield int(found[1])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


SEARCH = "/api/2.0/mlflow/experiments/search"


def answer(port: int, host: str, origin: str | None = None) -> int:
    """The status of a search of the experiments by a page of that host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Host": host, "Content-Type": "application/json"}
    if origin:
        headers["Origin"] = origin
    connection.request("POST", SEARCH, body='{"max_results": 1}', headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.slow
def test_the_ui_answers_its_own_address_and_no_other_host(ui_port: int) -> None:
    assert answer(ui_port, f"127.0.0.1:{ui_port}") == 200
    assert answer(ui_port, f"localhost:{ui_port}") == 200
    for stranger in ("evil.example", f"evil.example:{ui_port}", "192.168.0.7", "10.0.0.1"):
        assert answer(ui_port, stranger) == 403, stranger
    assert answer(ui_port, f"127.0.0.1:{ui_port + 1}") == 403


@pytest.mark.slow
def test_the_ui_takes_no_write_from_another_pages_script(ui_port: int) -> None:
    own = f"127.0.0.1:{ui_port}"
    assert answer(ui_port, own, origin=f"http://{own}") == 200
    assert answer(ui_port, own, origin="http://evil.example") == 403


@pytest.mark.slow
def test_the_ui_listens_on_the_loopback_address_alone(ui_port: int) -> None:
    listening = [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == ui_port
    ]
    assert listening == [f"0100007F:{ui_port:04X}"]  # 127.0.0.1, in the kernel's notation
