"""What comes before a training: device, threads, checks, the study created or joined."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from deepfake.data import Prepared
from deepfake.reproducibility import check_precision
from deepfake.training import Checkpoints, check_writable
from study.config import StudyConfig, fingerprint_of
from study.slots import Slots, create_or_join
from study.storage import check_storage
from study.tracking import check_tracking

if TYPE_CHECKING:
    import torch

    from study.worker.inputs import Inputs

# torch and torchvision only within functions: a worker's name and the place of a checkpoint are
# asked for by commands that train nothing


def checkpoints_of(slots: Slots, number: int, attempt: int = 0) -> Checkpoints:
    folder = slots.config.checkpoints_dir / slots.study_id / f"slot_{number:03d}"
    return Checkpoints(folder, attempt)


def set_up(config: StudyConfig, device: "torch.device") -> None:
    """Before the first operation: threads are part of what makes a curve repeatable."""
    import torch

    check_precision(config.train, device)
    torch.set_num_threads(config.train.threads)


def study_fingerprint(config: StudyConfig, inputs: "Inputs") -> dict[str, object]:
    return fingerprint_of(config, inputs.prepared, inputs.weights_sha256)


def worker_name(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"


def begin(
    config: StudyConfig, prepare: Callable[[StudyConfig], Prepared], warn: Callable[[str], None]
) -> Slots:
    """The study of config, created or joined, with its data prepared.

    What can't work is said before data is touched: weights, checkpoints, both stores.
    """
    from deepfake.models import load_pretrained
    from study.worker.inputs import Inputs

    pretrained = load_pretrained(config.train.weights, config.space.variant)
    check_writable(config.checkpoints_dir)
    check_storage(config.study)
    if (warning := check_tracking(config)) is not None:
        warn(warning)
    inputs = Inputs.load(config, prepare(config), pretrained)
    return create_or_join(config, study_fingerprint(config, inputs))
