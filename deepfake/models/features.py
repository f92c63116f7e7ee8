"""A frozen backbone's output for every face, computed once for all trials that freeze it."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from deepfake.config import Split
from deepfake.data import (
    Change,
    Faces,
    Rows,
    epoch_order,
    normalise,
    store_path,
    stored_rows,
    writing,
)
from deepfake.errors import writing_data
from deepfake.models.layers import Backbone
from deepfake.models.pretrained import state_dict_sha256
from deepfake.parallel import Progress
from deepfake.reproducibility import full_precision
from deepfake.transforms import suite_sha256

CHUNK_ROWS = 512  # what one worker takes at a time, and loses if it is killed
BATCH_ROWS = 64  # fixed, whoever embeds: a row's bits may depend on its batch
ROWS = "rows.npy"
POLL_S = 0.2  # between two looks at chunks that other workers have taken


@dataclass(frozen=True, eq=False)
class Features:
    """One split's faces as the frozen backbone sees them."""

    rows: Rows  # (N, the backbone's width) float32
    labels: Tensor  # (N,) int64

    @classmethod
    def load(
        cls, path: Path, work_dir: Path, split: Split, side: int, labels: Tensor
    ) -> "Features":
        """path: what ensure_features gave. labels: of the split's faces, in the store's order."""
        of_split = stored_rows(work_dir, split, side)
        return cls(Rows(path, of_split.start, of_split.stop), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: (B, width) and (B,) labels, on the device; in Faces.batches' order."""
        for numbers in torch.split(epoch_order(len(self), generator), batch_size):
            rows = self.rows.gather(numbers, torch.empty(len(numbers), *self.rows.shape[1:]))
            yield rows.to(device), self.labels[numbers].to(device)


def ensure_features(
    work_dir: Path,
    side: int,
    backbone: Backbone,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Path:
    """The array (N, width) of backbone's output for the store's train and val rows, in its order.

    The file is named by the backbone's weights, the store and the side, so that later studies
    find it. Workers who want it at once share the work, each chunk embedded by one of them; what
    a killed one has done stays. tick is called after each batch and may raise. The test rows are
    left out: a worker can't read them. Raises DataError if it can't be written.
    """
    assert stored_rows(work_dir, "train", side).start == 0
    images = Rows(store_path(work_dir, side), 0, stored_rows(work_dir, "val", side).stop)
    path = features_path(work_dir, side, backbone)
    _ensure(
        _Embedding(path, images, None, f"features {side} px"), backbone, device, tick, progress
    )
    return path


def robust_features(
    faces: Faces,
    work_dir: Path,
    backbone: Backbone,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Features:
    """The backbone's output for what robust_faces gave: kept and shared as the features are."""
    assert faces.change is not None
    side = faces.rows.shape[1]
    path = _robust_path(features_path(work_dir, side, backbone))
    stage = f"features of corrupted faces {side} px"
    embedding = _Embedding(path, faces.rows, faces.change, stage)
    _ensure(embedding, backbone, device, tick, progress)
    return Features(Rows(path, 0, len(faces)), faces.labels)


def features_path(work_dir: Path, side: int, backbone: Backbone) -> Path:
    made_of = store_path(work_dir, side).with_suffix(".json").read_bytes()  # crops and splits
    weights = state_dict_sha256(backbone.state_dict())
    key = hashlib.sha256(f"{weights} {side} ".encode() + made_of).hexdigest()
    return work_dir / "features" / f"{backbone.name}_{side}_{key[:24]}.npy"


def _robust_path(plain: Path) -> Path:
    return plain.with_stem(f"{plain.stem}_robust_{suite_sha256()[:12]}")


def rows_to_embed(work_dir: Path, side: int, backbone: Backbone, *, robust: bool) -> int:
    """What ensure_features and, with robust, robust_features have still to compute.

    Raises DataError if the store is not there.
    """
    val = stored_rows(work_dir, "val", side)
    path = features_path(work_dir, side, backbone)
    left = _not_done(path, val.stop)
    return left + (_not_done(_robust_path(path), len(val)) if robust else 0)


def _not_done(path: Path, n: int) -> int:
    if path.is_file():
        return 0
    parts = path.with_suffix(".parts")
    starts = [s for s in range(0, n, CHUNK_ROWS) if not (parts / f"{s}.done").exists()]
    return sum(min(CHUNK_ROWS, n - start) for start in starts)


@dataclass(frozen=True)
class _Embedding:
    """What is embedded, and where to."""

    path: Path
    images: Rows
    change: Change | None
    stage: str  # as progress says it

    def pictures(self, numbers: Tensor, device: torch.device) -> Tensor:
        shape = (len(numbers), *self.images.shape[1:])
        pictures = self.images.gather(numbers, torch.empty(shape, dtype=torch.uint8)).to(device)
        return normalise(pictures if self.change is None else self.change(pictures, numbers, None))


def _ensure(
    embedding: _Embedding,
    backbone: Backbone,
    device: torch.device,
    tick: Callable[[], None],
    progress: Progress | None,
) -> None:
    with writing_data(embedding.path):
        if not embedding.path.is_file():
            _embed(embedding, backbone, device, tick, progress)


def _embed(
    embedding: _Embedding,
    backbone: Backbone,
    device: torch.device,
    tick: Callable[[], None],
    progress: Progress | None,
) -> None:
    path, n = embedding.path, len(embedding.images)
    parts = path.with_suffix(".parts")
    starts = range(0, n, CHUNK_ROWS)
    network = backbone.to(device).to(memory_format=torch.channels_last).eval()
    with full_precision(), ExitStack() as stack:
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                return
            parts.mkdir(exist_ok=True)
            array = writing(parts / ROWS, (n, backbone.width), np.float32)
            writer = stack.enter_context(array)
        while todo := [start for start in starts if not _is_done(parts, start)]:
            waiting = True
            for start in todo:
                with _taken(parts, start) as taken:
                    if not taken or _is_done(parts, start):
                        continue
                    waiting = False
                    numbers = torch.arange(start, min(start + CHUNK_ROWS, n))
                    writer.write(start, _embedded(network, embedding, numbers, device, tick))
                    writer.sync()  # before it is called done: a power cut leaves no hole
                    (parts / f"{start}.done").touch()
                    if progress:
                        progress(embedding.stage, start + len(numbers), n)
            if waiting:  # for what others have taken; one that dies leaves it to us
                tick()
                time.sleep(POLL_S)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            (parts / ROWS).replace(path)
            shutil.rmtree(parts, ignore_errors=True)


def _is_done(parts: Path, start: int) -> bool:
    return (parts / f"{start}.done").exists() or not (parts / ROWS).exists()


@contextmanager
def _taken(parts: Path, start: int) -> Iterator[bool]:
    """Whether this chunk is ours for the block: a lock that its holder's death frees."""
    try:
        lock = FileLock(parts / f"{start}.lock").acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # another's, or all is done and tidied away
        yield False
        return
    with lock:
        yield True


@torch.inference_mode()
def _embedded(
    network: nn.Module,
    embedding: _Embedding,
    numbers: Tensor,
    device: torch.device,
    tick: Callable[[], None],
) -> bytes:
    found = []
    for batch in torch.split(numbers, BATCH_ROWS):
        found.append(network(embedding.pictures(batch, device)).cpu())
        tick()
    return torch.cat(found).numpy().tobytes()
