"""Random small data sets whose faces are flat colours, and whether prepare was honest about them.

Photos of any mode, depth, container, orientation and name; boxes in any format; photos resized,
cropped, cut off, moved or absent since they were annotated. Of each face is known what its crop
must show, and which reasons for leaving it out would be true.
"""

import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from PIL import ExifTags, Image

from deepfake.config import DataConfig
from deepfake.data.prepare import prepare_data
from deepfake.errors import DataError
from tests.support.photos import CATEGORIES

GREY, WHITE = (90, 90, 90), (255, 255, 255)
COLOURS = [  # far from one another, from grey and from white
    (red, green, blue)
    for red in (0, 75, 150, 225)
    for green in (0, 75, 150, 225)
    for blue in (0, 75, 150, 225)
    if max(red, green, blue) - min(red, green, blue) > 60
]
TOLERANCE = 16  # levels, of the median: what the lossy containers take
MIN_FACE_PX = 8
BOXES = ("xywh", "xyxy", "cxcywh", "xywh_shares", "xyxy_shares", "cxcywh_shares")
UNCLEAR = "photos cut as stored; their orientation tag may say otherwise"
SCALED = "photos of another size than annotated, boxes scaled"

# what each mode can be saved in
CONTAINERS: dict[str, tuple[str, ...]] = {
    "RGB": (
        *("JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw", "TIFF jpeg", "BMP", "AVIF", "JPEG2000"),
        *("PPM", "TGA", "QOI", "SGI", "PCX", "DDS"),
    ),
    "L": ("JPEG", "PNG", "TIFF", "BMP", "PPM", "TGA", "SGI", "PCX", "JPEG2000"),
    "1": ("PNG", "TIFF", "BMP", "PPM", "PCX"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG", "TIFF"),
    "P": ("PNG", "GIF", "TIFF", "BMP", "TGA", "PCX"),
    "P hidden": ("PNG", "GIF"),
    "PA": ("TIFF",),
    "LA": ("PNG", "WEBP", "TIFF", "TGA", "JPEG2000"),
    "RGBA": ("PNG", "WEBP", "TIFF", "AVIF", "TGA", "QOI", "JPEG2000", "DDS"),
    "RGB value": ("PNG",),
    "L value": ("PNG",),
    "I;16": ("PNG", "TIFF", "TIFF lzw", "JPEG2000", "PPM"),
    "I;16B": ("TIFF",),
    "I;16 value": ("PNG",),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
ENDINGS = (".jpg", ".png", ".JPG", ".jpeg", ".tif", "")
FOLDERS = ("", "Images/Train", "Images/real", "real", "fake", "Zo\u00eb/Mu\u0308ller")
STEMS = ("0001", "0002", "\u00e9", "a b", "x.y", "r\u00e9sume\u0301")
WITH_TAG = ("JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw", "AVIF")
BACK: dict[int, Image.Transpose] = {  # from the upright picture to what a camera stores
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class RandomFace:
    number: int
    box: tuple[int, int, int, int]  # x, y, w, h, px of the annotated photo
    label: int
    crowd: bool
    hidden: bool  # where its mode can hide

    @property
    def colour(self) -> tuple[int, int, int]:
        return COLOURS[self.number * 17 % len(COLOURS)]


@dataclass(frozen=True)
class RandomPhoto:
    file_name: str  # as the JSON has it
    file: str | None  # where it is saved; None: absent
    size: tuple[int, int]  # px, as annotated
    faces: tuple[RandomFace, ...]
    mode: str
    container: str
    orientation: int  # the tag; 0: none
    seen: str  # "upright" or "stored": what the annotator saw
    says_size: bool
    since: str  # "whole", "resized", "cropped", "cut off": what happened to it
    share: float  # of the resizing, the crop or the bytes that are left


@dataclass(frozen=True)
class RandomSet:
    photos: tuple[RandomPhoto, ...]
    decoys: tuple[str, ...]  # further files, of no face
    box: str
    margin: float


@st.composite
def random_photos(draw: Callable[[Any], Any], first: int) -> RandomPhoto:
    width, height = draw(st.integers(40, 120)), draw(st.integers(40, 120))
    if draw(st.integers(0, 5)) == 0:
        height = width
    mode = draw(st.sampled_from(sorted(CONTAINERS)))
    container = draw(st.sampled_from(CONTAINERS[mode]))
    may_tag = container in WITH_TAG and mode not in ("P", "1", "PA")
    file_name, file = draw(_names())
    faces = []
    n_faces = draw(st.integers(1, 3))
    for k in range(n_faces):
        left, room = width * k // n_faces, width // n_faces
        w = draw(st.integers(6, room))
        h = draw(st.integers(6, height))
        box = (left + draw(st.integers(0, room - w)), draw(st.integers(0, height - h)), w, h)
        crowd, hidden = draw(st.integers(0, 14)) == 0, draw(st.integers(0, 2)) == 0
        faces.append(RandomFace(first + k, box, draw(st.integers(0, 1)), crowd, hidden))
    says_size = draw(st.integers(0, 3)) > 0
    kinds = ["whole"] * 4 + ["cut off"]
    if says_size:  # or nobody can see it
        kinds += ["resized", "resized", "cropped"]
    return RandomPhoto(
        file_name=file_name,
        file=file,
        size=(width, height),
        faces=tuple(faces),
        mode=mode,
        container=container,
        orientation=draw(st.integers(0, 8)) if may_tag else 0,
        seen=draw(st.sampled_from(("stored", "upright"))),
        says_size=says_size,
        since=draw(st.sampled_from(kinds)),
        share=draw(st.floats(0.3, 0.97)),
    )


@st.composite
def _names(draw: Callable[[Any], Any]) -> tuple[str, str | None]:
    """What a JSON calls a photo, and what its file is called."""
    folder, stem = draw(st.sampled_from(FOLDERS)), draw(st.sampled_from(STEMS))
    name = f"{folder}/{stem}{draw(st.sampled_from(ENDINGS))}".lstrip("/")
    other = draw(st.sampled_from(("same", "same", "same", *_MOVED)))
    file = None if other == "absent" else _MOVED.get(other, str)(name)
    spell = draw(st.sampled_from((str, str, str, _windows, _composed, _apart)))
    return spell(name), file


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _apart(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def _posix(name: str) -> str:
    return name.replace("\\", "/")


def _windows(name: str) -> str:
    return name.replace("/", "\\")


def _other_ending(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix(path.suffix.swapcase()).as_posix() if path.suffix else name


_MOVED: dict[str, Callable[[str], str]] = {
    "absent": str,
    "apart": _apart,
    "ending": _other_ending,
    "without Images": lambda name: name.removeprefix("Images/"),
    "moved": lambda name: f"moved/{PurePosixPath(name).name}",
}


@st.composite
def random_sets(draw: Callable[[Any], Any]) -> RandomSet:
    photos: list[RandomPhoto] = []
    for _ in range(draw(st.integers(1, 4))):
        photo = draw(random_photos(sum(len(photo.faces) for photo in photos)))
        if _name(photo) not in map(_name, photos):  # of one name is one photo
            photos.append(photo)
    photos = _placed(photos)
    # of an absent photo a file of its base name would be taken, and counted
    absent = {_base(photo) for photo in photos if photo.file is None}
    decoys = [f"decoys/{_base(photo)}" for photo in photos if _base(photo) not in absent]
    return RandomSet(
        photos=tuple(photos),
        decoys=tuple(draw(st.lists(st.sampled_from(decoys), max_size=2))) if decoys else (),
        box=draw(st.sampled_from(("xywh", "xywh", *BOXES))),
        margin=draw(st.sampled_from((0.0, 0.0, 0.3))),
    )


def _base(photo: RandomPhoto) -> str:
    return PurePosixPath(_name(photo)).name


def _placed(photos: list[RandomPhoto]) -> list[RandomPhoto]:
    """Without a file where it would lie where another's name says: nobody could see that."""
    taken: set[str | None] = {
        photo.file for photo in photos if photo.file and _composed(photo.file) == _name(photo)
    }
    names = {_name(photo) for photo in photos}
    placed = []
    for photo in photos:
        moved = photo.file is not None and _composed(photo.file) != _name(photo)
        if moved and (photo.file in taken or _composed(photo.file or "") in names):
            placed.append(replace(photo, file=None))
            continue
        taken.add(photo.file)
        placed.append(photo)
    return placed


# the files


def _drawn(photo: RandomPhoto) -> tuple[Image.Image, Image.Image]:
    """The picture that was annotated, and which of it is shown."""
    picture, shown = Image.new("RGB", photo.size, GREY), Image.new("L", photo.size, 255)
    for face in photo.faces:
        x, y, w, h = face.box
        picture.paste(face.colour, (x, y, x + w, y + h))
        if face.hidden:
            shown.paste(0, (x, y, x + w, y + h))
    return picture, shown


def _changed(photo: RandomPhoto, picture: Image.Image) -> Image.Image:
    """Stored as a camera does, and what happened to it since."""
    if photo.seen == "upright" and photo.orientation > 1:
        picture = picture.transpose(BACK[photo.orientation])
    width, height = picture.size
    match photo.since:
        case "resized":
            width, height = (round(side * photo.share * 2) for side in (width, height))
            return picture.resize((width, height), Image.Resampling.NEAREST)
        case "cropped":
            return picture.crop((0, 0, max(round(width * photo.share), 1), height))
        case _:
            return picture


HIDES = ("P hidden", "PA", "LA", "RGBA", "RGB value", "L value", "I;16 value")


def encoded(photo: RandomPhoto) -> bytes:  # noqa: PLR0912
    """The photo's file."""
    picture, shown = (_changed(photo, layer) for layer in _drawn(photo))
    how: dict[str, Any] = {}
    kind, _, compression = photo.container.partition(" ")
    if compression:
        how["compression"] = {"lzw": "tiff_lzw", "jpeg": "jpeg"}[compression]
    if kind in ("JPEG", "AVIF", "WEBP"):
        how["quality"] = 95
    if kind == "WEBP":
        how |= {"lossless": True, "exact": True}
    if photo.orientation:
        how["exif"] = Image.Exif()
        how["exif"][ExifTags.Base.Orientation] = photo.orientation
    mode, value = photo.mode.partition(" ")[::2]
    hidden_at = next(zip(*np.nonzero(np.asarray(shown) == 0), strict=True), None)
    if value == "value" or mode in ("P", "PA"):
        if value and hidden_at is not None:  # one colour hides, wherever it is
            colour = picture.getpixel((int(hidden_at[1]), int(hidden_at[0])))
            picture.paste(colour, mask=shown.point(lambda level: 255 - level))
        if mode in ("P", "PA"):
            picture = picture.quantize(16)
            if value and hidden_at is not None:
                how["transparency"] = picture.getpixel((int(hidden_at[1]), int(hidden_at[0])))
            if mode == "PA":
                picture = picture.convert("PA")
                picture.putalpha(shown)
    if mode in ("RGBA", "LA"):
        picture.putalpha(shown)
        picture = picture.convert(mode)
    elif mode in ("L", "CMYK", "YCbCr"):
        picture = picture.convert(mode)
    elif mode == "1":
        picture = picture.convert("1", dither=Image.Dither.NONE)
    elif mode in ("I;16", "I;16B", "I", "F"):
        grey = np.asarray(picture.convert("L"))
        dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "int32", "F": "float32"}[mode]
        deep = (grey.astype(np.uint32) * 257).astype(dtype)
        if kind == "PPM":
            head = f"P5 {picture.width} {picture.height} 65535\n".encode()
            return _cut_off(photo, head + deep.astype(">u2").tobytes())
        picture = Image.fromarray(deep)
    if value == "value" and hidden_at is not None:
        how["transparency"] = picture.getpixel((int(hidden_at[1]), int(hidden_at[0])))
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return _cut_off(photo, file.getvalue())


def _cut_off(photo: RandomPhoto, content: bytes) -> bytes:
    if photo.since != "cut off":
        return content
    return content[: int(len(content) * photo.share)]


def shown_colour(photo: RandomPhoto, face: RandomFace) -> tuple[int, int, int]:
    """What people see there."""
    mode = photo.mode.partition(" ")[0]
    if face.hidden and photo.mode in HIDES:
        return WHITE
    colour = face.colour
    if mode in ("L", "LA", "I;16", "I;16B", "1"):
        grey = Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
        assert isinstance(grey, int)
        level = (255 if grey > 127 else 0) if mode == "1" else grey
        return (level, level, level)
    return colour


def write_set(random: RandomSet, folder: Path) -> DataConfig:
    """Its files and JSONs; val and test, and the rest of train, are plain photos."""
    for photo in random.photos:
        if photo.file is not None:
            path = folder / photo.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo))
    for decoy in random.decoys:
        path = folder / decoy
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 60), (1, 2, 3)).save(path, "PNG")
    plain = Image.new("RGB", (64, 32), GREY)
    for split in ("train", "val", "test"):
        name = f"plain/{split}.png"
        (folder / "plain").mkdir(exist_ok=True)
        plain.save(folder / name)
        plain.putpixel((0, 0), (ord(split[1]), 0, 0))  # or all three would be one picture
        _write_json(random, folder, split, name)
    jsons = {split: [folder / f"{split}.json"] for split in ("train", "val", "test")}
    return DataConfig(
        splits="official",
        annotations=jsons,  # type: ignore[arg-type]
        photos_dir=folder,
        work_dir=folder / "work",
        margin=random.margin,
        min_face_px=MIN_FACE_PX,
        box=None if random.box == "xywh" else random.box,  # type: ignore[arg-type]
    )


def _write_json(random: RandomSet, folder: Path, split: str, plain: str) -> None:
    images: list[dict[str, Any]] = [{"id": 900, "file_name": plain, "width": 64, "height": 32}]
    annotations = [
        {"id": 900 + k, "image_id": 900, "category_id": k, "bbox": _box(box, (64, 32), random.box)}
        for k, box in enumerate(((2, 4, 20, 20), (34, 4, 20, 20)))
    ]
    for number, photo in enumerate(random.photos if split == "train" else ()):
        image: dict[str, Any] = {"id": number, "file_name": photo.file_name}
        if photo.says_size or random.box.endswith("shares"):
            image |= {"width": photo.size[0], "height": photo.size[1]}
        images.append(image)
        annotations += [
            {
                "id": face.number,
                "image_id": number,
                "category_id": face.label,
                "bbox": _box(face.box, photo.size, random.box),
                "iscrowd": int(face.crowd),
            }
            for face in photo.faces
        ]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / f"{split}.json").write_text(json.dumps(document, ensure_ascii=False))


def _box(box: tuple[int, int, int, int], size: tuple[int, int], kind: str) -> list[float]:
    x, y, w, h = box
    numbers: list[float] = {
        "xywh": [x, y, w, h],
        "xyxy": [x, y, x + w, y + h],
        "cxcywh": [x + w / 2, y + h / 2, w, h],
    }[kind.removesuffix("_shares")]
    if kind.endswith("_shares"):
        return [number / size[i % 2] for i, number in enumerate(numbers)]
    return numbers


# whether prepare was honest


@dataclass(frozen=True)
class Outcome:
    """What became of a data set."""

    refused: str | None = None  # the one line
    cut: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    said: int = 0  # crops that are another's, of photos that are counted as unclear
    faults: tuple[str, ...] = ()  # what was wrong in silence


def try_set(random: RandomSet, folder: Path) -> Outcome:
    """Prepare it, and hold what was made against what must be."""
    data = write_set(random, folder)
    try:
        prepared = prepare_data(data, processes=1)
    except DataError as error:
        line = str(error)
        return Outcome(refused=line, faults=("the error has lines",) if "\n" in line else ())
    dropped = pd.read_csv(data.work_dir / "dropped.csv", keep_default_na=False, dtype=str)
    reason_of = dict(zip(dropped["cutted_name"], dropped["reason"], strict=True))
    unclear = prepared.summary.mended.get(UNCLEAR, 0)
    scaled = prepared.summary.mended.get(SCALED, 0)
    faults, cut, said, reasons = [], 0, 0, []
    for number, photo in enumerate(random.photos):
        for face in photo.faces:
            name = f"train_{number}_{face.number}.jpg"
            crop, reason = data.work_dir / "crops" / name, reason_of.get(name)
            if reason is not None:
                reasons.append(reason.partition(":")[0])
                if not _is_true(reason, photo, face):
                    faults.append(f"{name}: left out for no true reason: {reason}; {photo}")
            elif not crop.is_file():
                faults.append(f"{name}: neither a crop nor named; {photo}")
            elif face.crowd:
                faults.append(f"{name}: a crowd was cut; {photo}")
            elif _shows(crop, shown_colour(photo, face), random.margin):
                cut += 1
            elif (unclear and _may_be_unclear(photo)) or (scaled and _has_the_turned_shape(photo)):
                said += 1
            else:
                faults.append(f"{name}: not {shown_colour(photo, face)}; {photo}")
    counts = {reason: reasons.count(reason) for reason in reasons}
    return Outcome(None, cut, counts, said, tuple(faults))


def _shows(crop: Path, colour: tuple[int, int, int], margin: float) -> bool:
    """In its middle: of the box alone, without the edge that a JPEG smears."""
    with Image.open(crop) as picture:
        pixels = np.asarray(picture, np.float64)
    height, width = pixels.shape[:2]
    keep = 0.5 if margin == 0 else 0.25
    top, left = int(height * (1 - keep) / 2), int(width * (1 - keep) / 2)
    middle = pixels[top : height - top, left : width - left]
    return bool(np.abs(np.median(middle, axis=(0, 1)) - colour).max() <= TOLERANCE)


def _may_be_unclear(photo: RandomPhoto) -> bool:
    """There is a tag, and neither picture is ruled out by the annotated size."""
    width, height = photo.size
    small = min(width, height) * (photo.share * 2 if photo.since == "resized" else 1)
    nearly_square = abs(width - height) * small / min(width, height) <= 3
    same_either_way = photo.orientation in (2, 3, 4) or nearly_square
    return photo.orientation > 1 and (same_either_way or not photo.says_size)


def _has_the_turned_shape(photo: RandomPhoto) -> bool:
    """By chance a cropped photo may be as if it were turned and resized: nothing tells."""
    if photo.since != "cropped" or photo.orientation < 5:
        return False
    annotated = photo.size
    width, height = annotated if photo.seen == "stored" else annotated[::-1]
    turned = height, max(round(width * photo.share), 1)
    shares = [turned[side] / annotated[side] for side in (0, 1)]
    return abs(shares[0] - shares[1]) < 1 / annotated[0] + 1 / annotated[1]  # a pixel a side


def _is_true(reason: str, photo: RandomPhoto, face: RandomFace) -> bool:
    """Whether what is said of a face that was left out is so."""
    cropped, resized = photo.since == "cropped", photo.since == "resized"
    small = min(face.box[2:]) * (photo.share * 2 if resized else 1) <= MIN_FACE_PX + 1
    unclear = _may_be_unclear(photo)  # then the reason is of the stored picture
    kind = reason.partition(":")[0]
    return {
        "iscrowd": face.crowd,
        "photo absent": not _is_there(photo),
        "photo ambiguous": not _is_there(photo, exactly=True),
        "photo unreadable": photo.since == "cut off" or photo.container == "PCX",
        "photo of numbers without a range": photo.mode in ("I", "F"),
        # cut off, a TIFF loses the tags that are at its end, its orientation among them
        "photo size differs": cropped or photo.since == "cut off",
        "box under min_face_px": small or cropped or unclear,
        "box outside the photo": cropped or unclear,
    }.get(kind, False)


def _is_there(photo: RandomPhoto, exactly: bool = False) -> bool:
    """Whether its file is found by its name. exactly: as it is written."""
    if photo.file is None or exactly:
        return photo.file == photo.file_name
    return _composed(photo.file) == _name(photo)


def _name(photo: RandomPhoto) -> str:
    return _composed(_posix(photo.file_name))
