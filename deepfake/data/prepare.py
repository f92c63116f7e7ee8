"""The flow from JSONs and photos to what training reads: faces.csv, crops/, splits.csv, store."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from deepfake.config import FAKE, LABELS, MAX_PHOTO_MEGAPIXELS, REAL, DataConfig
from deepfake.data.check import check_labels
from deepfake.data.contact_sheet import draw_contact_sheet
from deepfake.data.crops import CutResult, cut_faces
from deepfake.data.layouts import COLUMNS, PHOTO, Annotations
from deepfake.data.layouts.openforensics import check_sources, read_annotations
from deepfake.data.photos.names import FoundPhotos, find_photos
from deepfake.data.splits import (
    FACES_CSV,
    SPLITS_CSV,
    count_repeated,
    ordered,
    pictures_of,
    read_splits_csv,
    split_faces,
    torn_pictures,
    write_csv,
)
from deepfake.data.store import check_room, ensure_store
from deepfake.errors import DataError, writing_data
from deepfake.files import sha256_of, write_whole
from deepfake.parallel import Progress

MANIFEST, UNFINISHED = "prepared.json", "preparing.json"
DROPPED_CSV, CROPS = "dropped.csv", "crops"
WAY_OUT = "set data.work_dir to another folder, or delete this one"

Setting = float | int | str


class NotPrepared(DataError):
    """There is no complete work_dir yet."""


@dataclass(frozen=True)
class Summary:
    """Counts of a prepared work_dir. Photos and faces are those that gave a crop."""

    photos: int
    faces: int
    real: int
    fake: int
    splits: dict[str, dict[str, int]]  # {split: {"real": faces, "fake": faces}}
    dropped: dict[str, int]  # faces without a crop, by reason
    clamped: int  # crops whose box reached out of the photo
    photos_in_json: int
    real_in_json: int
    fake_in_json: int
    mended: dict[str, int] = field(default_factory=dict)  # what was read otherwise, and how often
    warnings: tuple[str, ...] = ()  # what may be wrong, a line each


@dataclass(frozen=True)
class Prepared:
    """A complete work_dir."""

    work_dir: Path
    faces_sha256: str  # of faces.csv
    splits_sha256: str  # of splits.csv
    crops_sha256: str  # of every crop's name and sha256
    summary: Summary
    filled: bool = field(default=False, compare=False)  # by this call


@dataclass(frozen=True)
class _Manifest:
    """prepared.json: written last, so that what it names is whole."""

    settings: dict[str, Setting]
    faces_sha256: str
    splits_sha256: str
    crops_sha256: str
    summary: Summary


_MANIFEST = TypeAdapter(_Manifest)
_SETTINGS = TypeAdapter(dict[str, Setting])


def prepare_data(
    data: DataConfig,
    sides: Sequence[int] = (),
    processes: int | None = None,
    progress: Progress | None = None,
    *,
    again: bool = False,
) -> Prepared:
    """Make work_dir complete, with a store for each side; what is there already is kept.

    again: even if it is complete, for photos that came since; the splits are drawn anew then.
    Of several processes one does the work and the others wait. Killed and run again it
    continues, and gives the same bytes. Raises DataError for a JSON, photo folder or work_dir
    that is wrong or has no room; nothing is written before all of that has been checked.
    """
    settings = _settings(data)
    filled = False
    with writing_data(data.work_dir):
        if not _is_complete(data.work_dir, settings) or again:
            annotations = read_annotations(data.jsons, data.box)
            faces, photos = annotations.faces, find_photos(annotations, data)
            pictures = pictures_of({name: photos.photos[name] for name in faces["file_name"]})
            check_labels(faces, faces["file_name"].map(pictures).tolist())
            n_found = sum(isinstance(photos.photos[name], Path) for name in faces["file_name"])
            check_room(data.work_dir, n_found, sides)  # before hours of cutting
            split_faces(faces, data, pictures)
            data.work_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(data.work_dir / ".lock"):
                # another process may have done it
                if not _is_complete(data.work_dir, settings) or again:
                    filled = True
                    _fill(data, settings, annotations, photos, pictures, processes, progress)
    prepared = replace(_load(data.work_dir, settings), filled=filled)
    for side in sides:
        ensure_store(data.work_dir, side, prepared.crops_sha256, processes, progress)
    return prepared


def load_prepared(data: DataConfig) -> Prepared:
    """What prepare left, its settings and tables verified; NotPrepared if it is not complete."""
    return _load(data.work_dir, _settings(data))


def _load(work_dir: Path, settings: dict[str, Setting]) -> Prepared:
    manifest = _read_manifest(work_dir)
    if manifest is None:
        raise NotPrepared(f"{work_dir}: not prepared yet: run deepfake-study prepare CONFIG")
    _check_settings(work_dir, manifest.settings, settings)
    for name, expected in (
        (FACES_CSV, manifest.faces_sha256),
        (SPLITS_CSV, manifest.splits_sha256),
    ):
        if not (work_dir / name).is_file():
            raise NotPrepared(f"{work_dir / name}: missing: run deepfake-study prepare CONFIG")
        actual = sha256_of(work_dir / name)
        if actual != expected:
            raise DataError(
                f"{work_dir / name}: changed since it was prepared (sha256 {actual[:8]}, not"
                f" {expected[:8]}); put it back, or {WAY_OUT}"
            )
    return Prepared(
        work_dir=work_dir,
        faces_sha256=manifest.faces_sha256,
        splits_sha256=manifest.splits_sha256,
        crops_sha256=manifest.crops_sha256,
        summary=manifest.summary,
    )


def _is_complete(work_dir: Path, settings: dict[str, Setting]) -> bool:
    """Whether nothing is left to do; DataError if work_dir was made from something else."""
    try:
        _load(work_dir, settings)
    except NotPrepared:
        _check_unfinished(work_dir, settings)
        return False
    crops = work_dir / CROPS
    if not (work_dir / DROPPED_CSV).is_file():
        return False
    names = {entry.name for entry in os.scandir(crops)} if crops.is_dir() else set()
    return names.issuperset(read_splits_csv(work_dir)["cutted_name"])


def _check_unfinished(work_dir: Path, settings: dict[str, Setting]) -> None:
    path = work_dir / UNFINISHED
    if path.is_file():
        try:
            _check_settings(work_dir, _SETTINGS.validate_json(path.read_bytes()), settings)
        except ValidationError:
            raise DataError(f"{path}: not readable; {WAY_OUT}") from None
    elif not (work_dir / MANIFEST).is_file():
        for name in (FACES_CSV, SPLITS_CSV, CROPS):
            if (work_dir / name).exists():
                raise DataError(
                    f"{work_dir / name}: made from unknown settings: there is no {MANIFEST};"
                    f" {WAY_OUT}"
                )


def _fill(
    data: DataConfig,
    settings: dict[str, Setting],
    annotations: Annotations,
    photos: FoundPhotos,
    pictures: dict[str, str],
    processes: int | None,
    progress: Progress | None,
) -> None:
    work_dir, faces = data.work_dir, annotations.faces
    write_whole(work_dir / UNFINISHED, _SETTINGS.dump_json(settings, indent=1))
    (work_dir / MANIFEST).unlink(missing_ok=True)  # what it says may no longer hold
    write_csv(faces[list(COLUMNS)], work_dir / FACES_CSV)
    cut = cut_faces(faces, photos.photos, data, work_dir / CROPS, processes, progress)
    if len(cut.dropped) == len(faces):
        _undo(work_dir)
        raise DataError(_nothing_cut(data, cut.dropped))
    dropped = pd.concat([cut.dropped, annotations.left_out], ignore_index=True)
    write_csv(dropped, work_dir / DROPPED_CSV)
    faces = faces[~faces["cutted_name"].isin(cut.dropped["cutted_name"])]
    splits = split_faces(faces, data, pictures)
    write_csv(splits, work_dir / SPLITS_CSV)
    with ThreadPoolExecutor(1) as pool:  # both leave Python's lock for most of their time
        sheet = pool.submit(
            draw_contact_sheet, faces, splits, photos.photos, data, work_dir / CROPS
        )
        crops_sha256 = hash_crops(work_dir / CROPS, splits["cutted_name"].tolist(), progress)
        sheet.result()
    manifest = _Manifest(
        settings=settings,
        faces_sha256=sha256_of(work_dir / FACES_CSV),
        splits_sha256=sha256_of(work_dir / SPLITS_CSV),
        crops_sha256=crops_sha256,
        summary=_summary(annotations, photos, pictures, faces, splits, dropped, cut),
    )
    write_whole(work_dir / MANIFEST, _MANIFEST.dump_json(manifest, indent=1))
    (work_dir / UNFINISHED).unlink()


def _undo(work_dir: Path) -> None:
    """Take back what _fill wrote before a first crop; a work_dir that was whole once is kept."""
    if not (work_dir / SPLITS_CSV).exists():
        (work_dir / CROPS).rmdir()
        (work_dir / FACES_CSV).unlink()
        (work_dir / UNFINISHED).unlink()


def _nothing_cut(data: DataConfig, dropped: pd.DataFrame) -> str:
    reasons = dropped["reason"].str.partition(":")
    kind, count = Counter(reasons[0]).most_common(1)[0]
    first = dropped[reasons[0] == kind].iloc[0]
    detail = reasons.loc[first.name, 2].strip()
    example = f"{first['file_name']}: {detail}" if detail else first["file_name"]
    small = kind == "box under min_face_px"
    way_out = (
        f"lower data.min_face_px, {data.min_face_px}"
        if small
        else "set data.photos_dir to the photos that were annotated"
    )
    return (
        f"{data.photos_dir}: none of {len(dropped)} faces can be cut, {count} of them for this:"
        f" {kind} ({example}); {way_out}"
    )


def hash_crops(crops_dir: Path, names: list[str], progress: Progress | None) -> str:
    """sha256 over the lines "cutted_name sha256", sorted by name."""
    total = hashlib.sha256()
    for done, name in enumerate(sorted(names), start=1):
        total.update(f"{name} {sha256_of(crops_dir / name)}\n".encode())
        if progress and (done % 1000 == 0 or done == len(names)):
            progress("hashes", done, len(names))
    return total.hexdigest()


def _summary(
    annotations: Annotations,
    photos: FoundPhotos,
    pictures: dict[str, str],
    faces: pd.DataFrame,
    splits: pd.DataFrame,
    dropped: pd.DataFrame,
    cut: CutResult,
) -> Summary:
    labels = faces.merge(splits, on="cutted_name").groupby(["split", "category_id"]).size()
    in_json = annotations.faces["category_id"]
    # without the detail of each photo: "photo ambiguous: a.jpg, b.jpg"
    reasons = Counter(reason.partition(":")[0] for reason in dropped["reason"])
    mended = Counter(annotations.mended) + Counter(cut.mended)
    if photos.by_base_name:
        mended["photos found by their base name alone"] = photos.by_base_name
    if repeated := count_repeated(faces, pictures):
        mended["photos that are the picture of another"] = repeated
    return Summary(
        photos=len(faces.drop_duplicates(list(PHOTO))),
        faces=len(faces),
        real=int((faces["category_id"] == REAL).sum()),
        fake=int((faces["category_id"] == FAKE).sum()),
        splits={
            split: {word: int(labels[split, label]) for label, word in enumerate(LABELS)}
            for split in ordered(splits["split"])
        },
        dropped=dict(sorted(reasons.items())),
        clamped=cut.clamped,
        photos_in_json=len(annotations.file_names),
        real_in_json=int((in_json == REAL).sum()),
        fake_in_json=int((in_json == FAKE).sum()),
        mended=dict(sorted(mended.items())),
        warnings=(*annotations.warnings, *torn_pictures(faces, splits, pictures)),
    )


def _settings(data: DataConfig) -> dict[str, Setting]:
    """All that decides the bytes of work_dir; paths don't."""
    settings: dict[str, Setting] = {"margin": data.margin, "min_face_px": data.min_face_px}
    if data.max_photo_megapixels != MAX_PHOTO_MEGAPIXELS:
        settings["max_photo_megapixels"] = data.max_photo_megapixels
    check_sources(data.jsons)
    if data.box not in (None, "xywh"):
        settings |= {"box": str(data.box)}
    if data.splits == "drawn":
        settings |= {"group_by": data.group_by, "seed": data.seed}
        settings |= {f"fractions.{split}": share for split, share in data.fractions}
    else:
        settings |= {"splits": data.splits}
        settings |= {f"split of {source}": name for source, name in data.split_of_source.items()}
    for path in data.jsons:
        try:
            settings[f"annotations {path.name} sha256"] = sha256_of(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; check data.annotations") from None
    return settings


def _check_settings(
    work_dir: Path, made_with: dict[str, Setting], settings: dict[str, Setting]
) -> None:
    differing = [
        f"data.{key} was {_short(made_with, key)} and is now {_short(settings, key)}"
        for key in sorted(made_with.keys() | settings.keys())
        if made_with.get(key) != settings.get(key)
    ]
    if differing:
        raise DataError(f"{work_dir}: made from other data: {'; '.join(differing)}; {WAY_OUT}")


def _short(settings: dict[str, Setting], key: str) -> str:
    value = str(settings.get(key, "absent"))
    return value[:12] if key.endswith("sha256") else value


def _read_manifest(work_dir: Path) -> _Manifest | None:
    path = work_dir / MANIFEST
    if not path.is_file():
        return None
    try:
        return _MANIFEST.validate_json(path.read_bytes())
    except ValidationError as error:
        flaw = error.errors()[0]
        where = ".".join(str(part) for part in flaw["loc"])
        raise DataError(f"{path}: not readable ({where}: {flaw['msg']}); {WAY_OUT}") from None
