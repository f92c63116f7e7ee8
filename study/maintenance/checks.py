"""What is wrong with a machine, its packages and the data on it: findings, each in a line."""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import psutil
from packaging.requirements import Requirement

from deepfake.data import (
    CROPS,
    MANIFEST,
    SPLITS_CSV,
    WAY_OUT,
    Prepared,
    hash_crops,
    load_prepared,
    meta_path,
    ordered,
    pixels_of,
    read_splits_csv,
    recheck_crops,
    store_path,
)
from deepfake.errors import DataError, one_line
from deepfake.files import free_bytes, sha256_of, size_text
from deepfake.parallel import Progress, available_cores
from study.config import StudyConfig
from study.tracking import sqlite_path

log = logging.getLogger(__name__)

LEAST_FREE = 1_000_000_000  # bytes: some checkpoints and their spool
LISTED = 5  # photos that are named one by one
COMPARED = 64  # rows of a store, spread over it, that are cut anew
PREPARE = "deepfake-study prepare CONFIG"


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    area: str  # machine | config | data | study | mlflow
    level: Literal["ok", "note", "wrong"]
    what: str
    remedy: str | None = None
    fixable: bool = False  # by doctor --fix


def checked(area: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """All that a check yields; one that can't go on is a finding, not an error."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        log.debug("the check of %s ended early", area, exc_info=True)
        found.append(Finding(area, "wrong", one_line(error, 500)))
    return found


def machine(config: StudyConfig) -> Iterator[Finding]:
    """Cores, memory, GPUs, disks."""
    cores, threads = available_cores(), config.train.threads
    yield Finding("machine", "ok", f"{cores} cores; a worker computes with {threads} threads")
    memory = psutil.virtual_memory().available
    level: Literal["ok", "note"] = "note" if memory < 2e9 else "ok"
    yield Finding("machine", level, f"{size_text(memory)} of memory available")
    yield from _gpus(config)
    for key, folder in places(config).items():
        free = free_bytes(folder)
        there = next(above for above in (folder, *folder.parents) if above.exists())
        if not os.access(there, os.W_OK):
            remedy = f"give write permission, or name another {key}"
            yield Finding("machine", "wrong", f"{key}: {there} can't be written", remedy)
        elif free < LEAST_FREE:
            what = f"{key}: {size_text(free)} free at {there}"
            yield Finding("machine", "wrong", what, "make room, or see deepfake-study gc CONFIG")
        else:
            yield Finding("machine", "ok", f"{key}: {size_text(free)} free at {there}")


def places(config: StudyConfig) -> dict[str, Path]:
    """Where the study writes, by the key of the YAML."""
    named = {
        "data.work_dir": config.data.work_dir,
        "study.checkpoints_dir": config.study.checkpoints_dir,
    }
    if (sqlite := sqlite_path(config.tracking.uri)) is not None:
        named |= {
            "tracking.uri": sqlite.parent,
            "tracking.artifacts_dir": config.tracking.artifacts_dir,
        }
    return named


def _gpus(config: StudyConfig) -> Iterator[Finding]:
    if (driver := driver_version()) is None:
        if config.train.precision == "bf16":
            what = "no NVIDIA GPU seen, and train.precision bf16 needs one"
            remedy = "set train.precision to fp32, or run it on a GPU"
            yield Finding("machine", "note", what, remedy)
        else:
            yield Finding("machine", "ok", "no NVIDIA GPU seen: trainings run on the CPU")
        return
    import torch  # where there is a GPU, only torch can tell whether it can use it

    count = torch.cuda.device_count()
    for number in range(count):
        name = torch.cuda.get_device_name(number)
        yield Finding("machine", "ok", f"GPU {number}: {name}, driver {driver}")
    if not count:
        what = f"driver {driver} has a GPU, torch {torch.__version__} can't use it"
        remedy = "install a torch for this driver, or a newer driver"
        yield Finding("machine", "wrong", what, remedy)


def driver_version() -> str | None:
    """The version that NVIDIA's driver says, if there is one with a GPU."""
    try:
        import pynvml
    except ImportError:  # said of the packages
        return None
    try:
        pynvml.nvmlInit()
        try:
            has_gpu = pynvml.nvmlDeviceGetCount() > 0
            driver = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver here, or one that does not work
        return None
    return str(driver) if has_gpu else None


def packages() -> Iterator[Finding]:
    """Versions that are below what this package asks for, or the main ones."""
    try:
        asked = [Requirement(line) for line in requires("deepfake-study") or []]
    except PackageNotFoundError:
        remedy = "install it: pip install -e ."
        yield Finding("machine", "note", "deepfake-study is not installed as a package", remedy)
        asked = []
    wrong = False
    for need in asked:
        if need.marker is not None:  # an extra's
            continue
        try:
            has = version(need.name)
        except PackageNotFoundError:
            has = "not there"
        if has == "not there" or not need.specifier.contains(has, prereleases=True):
            wrong = True
            what = f"{need.name} is {has}, needed: {need.specifier}"
            yield Finding("machine", "wrong", what, f"pip install '{need.name}{need.specifier}'")
    if not wrong:
        main = ("torch", "torchvision", "optuna", "mlflow")
        said = ", ".join(f"{name} {version(name)}" for name in main)
        yield Finding("machine", "ok", f"python {platform.python_version()}, {said}")


def data(config: StudyConfig, progress: Progress | None = None) -> Iterator[Finding]:
    """Whether the data are prepared, and the bytes of tables, crops and stores as they were."""
    work_dir = config.data.work_dir
    if not (work_dir / MANIFEST).is_file():
        yield Finding("data", "note", f"{work_dir}: not prepared yet", PREPARE)
        return
    prepared = load_prepared(config.data)
    yield Finding("data", "ok", f"{work_dir}: tables and settings as prepared")
    splits = read_splits_csv(work_dir)
    names = splits["cutted_name"].tolist()
    crops_dir = work_dir / CROPS
    there = {entry.name for entry in os.scandir(crops_dir)} if crops_dir.is_dir() else set()
    if missing := sorted(set(names) - there):
        what = f"{work_dir / CROPS}: {len(missing)} of {len(names)} crops are missing, the first "
        yield Finding("data", "wrong", what + missing[0], PREPARE)
    elif hash_crops(work_dir / CROPS, names, progress) != prepared.crops_sha256:
        what = f"{work_dir / CROPS}: crops changed since they were prepared"
        yield Finding("data", "wrong", what, f"put them back, or {WAY_OUT}")
    else:
        yield Finding("data", "ok", f"{len(names)} crops, each as prepared (sha256)")
    yield from _photos(config, prepared)
    for side in config.sides_px:
        yield _store(prepared, splits, side)


def _photos(config: StudyConfig, prepared: Prepared) -> Iterator[Finding]:
    """Crops against the photos they were cut from, and photos that were missing then."""
    photos_dir = config.data.photos_dir
    try:
        found = recheck_crops(config.data, prepared)
    except DataError as error:
        level: Literal["note", "wrong"] = "wrong" if photos_dir.is_dir() else "note"
        yield Finding("data", level, f"no crop is compared with its photo: {error}")
        return
    if found.otherwise:
        what = f"{prepared.work_dir}: the JSONs are read to other faces or boxes than when it was"
        yield Finding("data", "wrong", f"{what} prepared, by another version", WAY_OUT)
    if found.wrong:
        what = f"{len(found.wrong)} of {found.recut} crops are not what is cut from their photos "
        yield Finding("data", "wrong", f"{what}now, the first {found.wrong[0]}", WAY_OUT)
    elif found.recut:
        said = f"{found.recut} crops, spread over all, are what is cut from their photos now"
        yield Finding("data", "ok", said)
    if found.gone:
        what = f"{len(found.gone)} photos of crops are gone from {photos_dir}, the first "
        yield Finding("data", "note", what + found.gone[0])
    if found.came:
        what = f"{len(found.came)} photos that were absent or unreadable are there now: "
        more = "" if len(found.came) <= LISTED else " and others"
        yield Finding("data", "note", what + ", ".join(found.came[:LISTED]) + more, PREPARE)


def _store(prepared: Prepared, splits: pd.DataFrame, side: int) -> Finding:
    path = store_path(prepared.work_dir, side)
    rebuild = f"delete {meta_path(path)} and run {PREPARE}"
    if not meta_path(path).is_file():
        return Finding("data", "note", f"{path}: not built yet", PREPARE)
    try:
        made_of = json.loads(meta_path(path).read_bytes())
        hashes = (made_of["crops_sha256"], made_of["splits_sha256"])
    except (ValueError, KeyError, TypeError):
        return Finding("data", "wrong", f"{meta_path(path)}: not readable", rebuild)
    if hashes != (prepared.crops_sha256, sha256_of(prepared.work_dir / SPLITS_CSV)):
        return Finding("data", "wrong", f"{path}: built for other crops or splits", PREPARE)
    damage = _damage(path, side, prepared.work_dir / CROPS, splits)
    if damage is not None:
        return Finding("data", "wrong", f"{path}: damaged: {damage}", rebuild)
    return Finding("data", "ok", f"{path.name}: whole; up to {COMPARED} rows compared with crops")


def _damage(path: Path, side: int, crops_dir: Path, splits: pd.DataFrame) -> str | None:
    """What a store's array is not, by its shape and by rows spread over it."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        return str(error)
    shape = (len(splits), side, side, 3)
    if images.shape != shape:
        return f"its shape is {images.shape}, not {shape}"
    by_split = [splits[splits["split"] == split] for split in ordered(splits["split"])]
    names = pd.concat(by_split)["cutted_name"].tolist()
    for row in np.unique(np.linspace(0, len(names) - 1, COMPARED).astype(int)).tolist():
        try:
            if images[row].tobytes() != pixels_of(crops_dir / names[row], side):
                return f"row {row} is not {names[row]}"
        except DataError:  # said of the crops
            continue
    return None
