"""Photos to crops, beside opening the photo again for each face, and beside the bare decode."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from benches.photos import draw_photos
from benches.table import Row
from deepfake.config import DataConfig
from deepfake.data import prepare_data

PHOTOS, ROUNDS, PROCESSES = 3200, 2, 2
REPORTS_SHARE = 16  # of the photos, one in so many is cut the report's way: it takes long


def bench() -> list[Row]:
    """Seconds on a warm page cache, in turn, medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = draw_photos(folder, PHOTOS)
        photos = [folder / image["file_name"] for image in document["images"]]
        faces = len(document["annotations"])
        of_report = [a for a in document["annotations"] if a["image_id"] % REPORTS_SHARE == 0]
        data = DataConfig(
            annotations=(folder / "Train_poly.json",), photos_dir=folder, work_dir=folder / "work"
        )
        bare, ours, reports = [], [], []
        for _ in range(ROUNDS):
            bare.append(_seconds(lambda: _decode_all(photos)))
            shutil.rmtree(folder / "work", ignore_errors=True)
            ours.append(_seconds(lambda: prepare_data(data, processes=PROCESSES)))
            seconds = _seconds(lambda: _as_the_report(folder, of_report))
            reports.append(seconds / len(of_report) * faces)
    usual, own = faces / statistics.median(reports), faces / statistics.median(ours)
    decode = statistics.median(bare)
    size = f"{PHOTOS} photos of 1,024 px, {faces} faces"
    return [
        Row("prepared faces/s", own, usual, own / usual, low=4, note=f"{size}; the report's way"),
        Row(
            f"s to prepare, {PROCESSES} processes; ratio: to the bare decode",
            statistics.median(ours),
            decode,
            statistics.median(ours) / decode,
            high=1.5,
            note="usual: Image.open().load() of all photos in as many threads",
        ),
    ]


def _as_the_report(folder: Path, annotations: list[dict[str, object]]) -> None:
    """For each face: open its photo, crop, save."""
    out = folder / "report"
    out.mkdir(exist_ok=True)
    for face in annotations:
        x, y, w, h = face["bbox"]  # type: ignore[misc]
        photo = Image.open(folder / f"Images/Train/{face['image_id']:05d}.jpg").convert("RGB")
        photo.crop((x, y, x + w, y + h)).save(out / f"{face['id']}.jpg")


def _decode_all(photos: list[Path]) -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:  # Pillow decodes outside Python's lock
        list(pool.map(_decode, photos))


def _decode(photo: Path) -> None:
    with Image.open(photo) as picture:
        picture.load()


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
