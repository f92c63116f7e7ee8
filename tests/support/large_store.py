"""A work_dir as OpenForensics gives it, its pictures holes: no disk is taken."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from deepfake.data.arrays import writing
from deepfake.data.splits import write_csv
from deepfake.data.store import meta_path, store_path
from deepfake.files import sha256_of

FACES, SIDE_PX = 150_000, 224
STOPS = {"train": 105_000, "val": 127_500, "test": FACES}

FEED = """
import sys
from pathlib import Path

import pandas
import torch

from deepfake.data.feed import Faces


def private_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def feed(faces, batch_size, n_faces, order=None):
    most = read = 0
    for images, labels in faces.batches(batch_size, torch.device("cpu"), order):
        read += len(labels)
        if read >= n_faces:
            break
        most = max(most, private_mib()) if read % 1024 == 0 else most
    return max(most, private_mib())


torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)  # what torch takes for itself, once
work_dir, side, n_faces = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
before = private_mib()
train, val = (Faces.load(work_dir, split, side) for split in ("train", "val"))
trained = feed(train, 32, n_faces, torch.Generator().manual_seed(0))
print(max(trained, feed(val, 128, n_faces // 2)) - before)
"""


def draw_large_store(work_dir: Path) -> None:
    """faces.csv, splits.csv and a store that are FACES long."""
    numbers = range(FACES)
    names = [f"photo{i // 3:06d}_{i:06d}.jpg" for i in numbers]
    faces = pd.DataFrame(
        {
            "id_x": numbers,
            "image_id": [i // 3 for i in numbers],
            "category_id": [i % 2 for i in numbers],
            "bbox": [f"[{i % 977}.25, {i % 911}.5, {150 + i % 90}.0, 170.75]" for i in numbers],
            "file_name": [f"Images/Train/photo{i // 3:06d}.jpg" for i in numbers],
            "cutted_name": names,
            "source": "Train_poly",
        }
    )
    starts = [0, *STOPS.values()]
    splits = np.repeat(list(STOPS), np.diff(starts))
    write_csv(faces, work_dir / "faces.csv")
    write_csv(pd.DataFrame({"cutted_name": names, "split": splits}), work_dir / "splits.csv")
    path = store_path(work_dir, SIDE_PX)
    path.parent.mkdir()
    with writing(path, (FACES, SIDE_PX, SIDE_PX, 3), np.uint8):
        pass
    meta = {
        "crops_sha256": "0" * 64,
        "splits_sha256": sha256_of(work_dir / "splits.csv"),
        "rows": {split: rows for split, *rows in zip(STOPS, starts, STOPS.values(), strict=False)},
    }
    meta_path(path).write_text(json.dumps(meta))


def private_mib_of_feeding(work_dir: Path, n_faces: int) -> float:
    """What loading both splits and reading n_faces and half as many again adds to a worker."""
    done = subprocess.run(
        [sys.executable, "-c", FEED, str(work_dir), str(SIDE_PX), str(n_faces)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
