"""A small drawn data set in OpenForensics' shape: photos of faces, about half of them swapped.

A fake's inner face is another identity's, drawn with less detail and scaled up, its colours
matched only in part, feathered into place. What tells nothing: the camera (one a photo), the box,
occluders; and real faces have local edits too. The SWAP_* ranges set how hard the task is.
"""

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from deepfake.config import FAKE, REAL

# The knobs, drawn for each face.
SWAP_DETAIL = (0.38, 0.65)  # resolution of a swapped face, of the photo's
SWAP_MATCH = (0.50, 0.95)  # of the colour difference that is taken away
SWAP_FEATHER = (0.08, 0.25)  # width of the seam, of half a face's height
SKIN_CONTRAST = (0.030, 0.065)  # what a swap loses with its detail
DECOY_SHARE = 0.4  # of real faces that carry a local edit
OCCLUDER_SHARE = 0.3  # of all faces, real or fake

FACES = (2, 4)  # a photo
PHOTO_PX = (256, 420)
FACE_PX = (60, 130)  # height of the head without hair
REACH = 1.3  # of a face's patch around its centre: hair included
SKIN_SCALE, SKIN_PX = 55, 80  # texture px in a face unit, in a tile

# An identity. Places are in face units: half the head's height, u to the right and v down.
TRAITS = {
    "head_width": (0.66, 0.80), "jaw": (0.10, 0.36), "tone": (0.0, 1.0), "redness": (0.0, 0.1),
    "hair_tone": (0.0, 1.0), "hair_long": (-0.4, 1.0), "hair_volume": (0.06, 0.22),
    "hairline": (-0.72, -0.48), "parting": (-0.4, 0.4), "brow_thick": (0.018, 0.05),
    "brow_tilt": (-0.25, 0.25), "brow_lift": (0.15, 0.22), "eye_v": (-0.18, -0.06),
    "eye_gap": (0.27, 0.36), "eye_wide": (0.11, 0.16), "eye_open": (0.05, 0.09),
    "gaze": (-0.03, 0.03), "iris": (0.0, 1.0), "nose_long": (0.28, 0.40),
    "nose_wide": (0.08, 0.14), "mouth_v": (0.50, 0.62), "mouth_wide": (0.20, 0.32),
    "lips": (0.055, 0.12), "smile": (-0.4, 1.0), "skin_contrast": SKIN_CONTRAST,
    "skin_grain": (0.8, 1.6),
}  # fmt: skip
SKIN = [[0.36, 0.23, 0.16], [0.62, 0.43, 0.32], [0.80, 0.60, 0.48], [0.93, 0.77, 0.68]]
HAIR = [[0.07, 0.05, 0.05], [0.24, 0.14, 0.08], [0.48, 0.30, 0.15], [0.80, 0.66, 0.40]]
IRIS = [[0.18, 0.10, 0.05], [0.35, 0.24, 0.10], [0.28, 0.42, 0.25], [0.30, 0.48, 0.65]]
LIPS = np.array([0.90, 0.58, 0.60], np.float32).reshape(3, 1, 1)  # of the skin's colour
CLOTH = [[0.55, 0.72, 0.85], [0.90, 0.90, 0.90], [0.15, 0.15, 0.18]]

Floats = NDArray[Any]  # float32; pictures are (3, height, width), 0 to 1
Drawn = tuple[dict[str, Any], list[dict[str, Any]]]  # an image and its annotations, without ids


@dataclass(frozen=True)
class Identity:
    traits: dict[str, float]
    skin: Floats  # (SKIN_PX, SKIN_PX), the fine texture: mean 0, deviation 1

    @classmethod
    def draw(cls, rng: Generator) -> "Identity":
        traits = {name: rng.uniform(*span) for name, span in TRAITS.items()}
        noise = Image.fromarray(rng.integers(0, 256, (SKIN_PX, SKIN_PX), dtype=np.uint8))
        blurs = (ImageFilter.GaussianBlur(n * traits["skin_grain"]) for n in (1, 2))
        fine, coarse = (np.asarray(noise.filter(blur), np.float32) for blur in blurs)
        skin = fine - coarse
        return cls(traits, skin / skin.std())

    def colour(self, palette: list[list[float]], trait: str) -> Floats:
        """The trait's place in a row of colours, (3, 1, 1)."""
        stops = np.linspace(0, 1, len(palette))
        channels = [np.interp(self.traits[trait], stops, each) for each in np.transpose(palette)]
        return np.array(channels, np.float32).reshape(3, 1, 1)


@dataclass(frozen=True)
class Pose:
    """Where a face is and how it is lit: px for x, y and half_px, radians for angle."""

    x: int
    y: int
    half_px: float  # half the head's height, one face unit
    angle: float
    turn: float  # of the features to the right, face units
    light: tuple[float, float]  # brightness gained to the right and downwards
    shift: tuple[float, float] = (0.0, 0.0)  # of the whole face, face units

    @property
    def side_px(self) -> int:
        return 2 * round(REACH * self.half_px) + 1

    def grid(self, side: int) -> tuple[Floats, Floats]:
        """Face units u and v of the face's patch, (side, side) each."""
        line = np.linspace(-REACH, REACH, side, dtype=np.float32)
        x, y = line[None, :] - self.shift[0], line[:, None] - self.shift[1]
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return x * cos + y * sin, y * cos - x * sin


def draw_sample(
    out_dir: Path,
    photos: int = 200,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """OUT_DIR/Train_poly.json, written when every photo is in OUT_DIR/Images/Train.

    The same photos and seed give the same bytes, whatever processes is. progress is told the
    photos done and their total.
    """
    if photos < 1:
        raise ValueError(f"photos is {photos}; draw at least 1")
    (out_dir / "Images" / "Train").mkdir(parents=True, exist_ok=True)
    annotations_json = out_dir / "Train_poly.json"
    annotations_json.unlink(missing_ok=True)  # a draw that stops half-way leaves none
    images: list[dict[str, Any]] = []
    faces: list[dict[str, Any]] = []
    for image, its_faces in _map(partial(_draw_photo, out_dir, seed), photos, processes):
        images.append(image)
        faces += its_faces
        if progress is not None:
            progress(len(images), photos)
    categories = [{"id": REAL, "name": "Real"}, {"id": FAKE, "name": "Fake"}]
    annotations = [{"id": number, **face} for number, face in enumerate(faces)]
    document = {"categories": categories, "images": images, "annotations": annotations}
    unfinished = annotations_json.with_suffix(".json.partial")
    unfinished.write_text(json.dumps(document))
    return unfinished.replace(annotations_json)


def _map(draw: Callable[[int], Drawn], photos: int, processes: int) -> Iterator[Drawn]:
    if processes == 1:
        yield from map(draw, range(photos))
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the caller's locks
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        yield from pool.map(draw, range(photos), chunksize=8)


def _draw_photo(out_dir: Path, seed: int, index: int) -> Drawn:
    rng = np.random.default_rng([seed, index])
    width, height = rng.integers(*PHOTO_PX, 2, endpoint=True).tolist()
    poses = _place(rng, width, height)
    people = [Identity.draw(rng) for _ in poses]
    photo = _background(rng, width, height)
    for person, pose in zip(people, poses, strict=True):
        _draw_body(photo, person, pose, rng)
    faces = []
    for person, pose in zip(people, poses, strict=True):
        label = FAKE if rng.random() < 0.5 else REAL
        _draw_face(photo, person, pose, label, rng)
        faces.append({"image_id": index, "category_id": label, **_outline(person, pose)})
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).hexdigest()
    file_name = f"Images/Train/{digest}.jpg"
    _shoot(photo, out_dir / file_name, rng)
    return {"id": index, "file_name": file_name, "width": width, "height": height}, faces


def _place(rng: Generator, width: int, height: int) -> list[Pose]:
    """Faces apart from each other and from the border, under one light."""
    wanted = rng.integers(*FACES, endpoint=True)
    light = rng.uniform(-0.28, 0.28), rng.uniform(-0.2, 0.1)
    poses: list[Pose] = []
    for _ in range(400):
        half = rng.uniform(*FACE_PX) / 2
        room = round(1.1 * half)  # however it tilts, the head stays inside
        x, y = int(rng.integers(room, width - room)), int(rng.integers(room, height - room))
        if all(np.hypot(x - p.x, y - p.y) > 1.2 * (half + p.half_px) for p in poses):
            angle = rng.normal(0, 0.14)
            poses.append(Pose(x, y, half, angle, rng.uniform(-0.12, 0.12), light))
        if len(poses) == wanted:
            break
    return poses


def _outline(person: Identity, pose: Pose) -> dict[str, Any]:
    """Box, polygon and area of a head in COCO's terms; nothing here has seen the label."""
    around = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    u, v = np.cos(around), np.sin(around)
    u *= _half_width(person, v)
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    x = np.round(pose.x + pose.half_px * (u * cos - v * sin), 1)
    y = np.round(pose.y + pose.half_px * (u * sin + v * cos), 1)
    left, top = int(x.min()), int(y.min())
    return {
        "iscrowd": 0,
        "area": round(float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2, 1),
        "bbox": [left, top, int(np.ceil(x.max())) - left, int(np.ceil(y.max())) - top],
        "segmentation": [np.stack([x, y], axis=1).ravel().tolist()],
    }


def _half_width(person: Identity, v: Floats) -> Floats:
    narrowing: Floats = person.traits["jaw"] * np.maximum(v, 0) ** 2
    return person.traits["head_width"] * (1 - narrowing)


def _draw_face(photo: Floats, person: Identity, pose: Pose, label: int, rng: Generator) -> None:
    side = pose.side_px
    head, opacity = _head(person, pose, side)
    if label == FAKE:
        _swap(head, person, pose, rng)
    elif rng.random() < DECOY_SHARE:
        (_brighten, _reencode)[rng.integers(2)](head, pose, rng)
    if rng.random() < OCCLUDER_SHARE:
        (_glasses, _mask)[rng.integers(2)](head, person, pose, rng)
    top, left = pose.y - side // 2, pose.x - side // 2
    skip_y, skip_x = max(-top, 0), max(-left, 0)  # hair may reach past the photo
    part = photo[:, top + skip_y : top + side, left + skip_x : left + side]
    seen = np.s_[..., skip_y : skip_y + part.shape[1], skip_x : skip_x + part.shape[2]]
    _over(part, head[seen], opacity[seen])


def _swap(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    """Another identity's inner face over this one's, with the traces of having been pasted."""
    side = pose.side_px
    shift = rng.normal(0, 0.02), rng.normal(0, 0.02)
    loose = replace(pose, angle=pose.angle + rng.normal(0, 0.03), shift=shift)
    other = Identity.draw(rng)
    hairless = replace(other, traits={**other.traits, "hairline": -1.0})
    small, _ = _head(hairless, loose, round(side * rng.uniform(*SWAP_DETAIL)))
    face = np.stack([np.asarray(Image.fromarray(c).resize((side, side))) for c in small])
    u, v = pose.grid(side)
    radii = (0.84 * person.traits["head_width"], 0.66)
    inner = _ellipse(u - pose.turn, v - 0.18, radii, rng.uniform(*SWAP_FEATHER))
    difference = (inner * (head - face)).sum((1, 2), keepdims=True) / inner.sum()
    _over(head, face + rng.uniform(*SWAP_MATCH) * difference, inner)


def _brighten(head: Floats, pose: Pose, rng: Generator) -> None:
    u, v = pose.grid(pose.side_px)
    u0, v0, radius_u, radius_v = rng.uniform([-0.4, -0.4, 0.3, 0.3], [0.4, 0.4, 0.7, 0.7]).tolist()
    patch = _ellipse(u - u0, v - v0, (radius_u, radius_v), rng.uniform(*SWAP_FEATHER))
    head *= 1 + rng.uniform(0.08, 0.25) * patch


def _reencode(head: Floats, pose: Pose, rng: Generator) -> None:
    """A square of the face, saved as a poor JPEG."""
    extent = round(pose.half_px * rng.uniform(0.5, 1.1))
    corner = (pose.side_px - extent) // 2
    top, left = (corner + rng.integers(-extent, extent, 2) // 3).tolist()
    square = head[:, top : top + extent, left : left + extent]
    file = io.BytesIO()
    _to_image(square).save(file, "JPEG", quality=int(rng.integers(15, 40)))
    square[:] = _from_image(Image.open(file))


def _glasses(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    u, v = pose.grid(pose.side_px)
    u, v, edge = abs(u - pose.turn), v - person.traits["eye_v"], 2 / pose.half_px
    radius, flatness, tint = rng.uniform([0.17, 1, -0.5], [0.24, 1.3, 0.8]).tolist()
    lens = radius - np.hypot(u - person.traits["eye_gap"], v * flatness)
    bridge = _stroke(v, 0.02, edge) * (u < person.traits["eye_gap"] - radius)
    frame = np.maximum(bridge, _stroke(lens, 0.02, edge))
    _over(head, _one_colour(rng, 0.02, 0.35), np.maximum(frame, max(tint, 0) * _ramp(lens, edge)))


def _mask(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    u, v = pose.grid(pose.side_px)
    edge, top = 2 / pose.half_px, person.traits["eye_v"] + rng.uniform(0.22, 0.45)
    strip = _stroke(v - top - 0.3 - 0.1 * u**2, 0.3, edge)
    folds = 1 + 0.08 * np.sin(v * 30) - 0.3 * u**2 + pose.light[0] * u
    cloth = np.array(CLOTH[rng.integers(len(CLOTH))], np.float32).reshape(3, 1, 1)
    _over(head, cloth * folds, strip * _ellipse(u / _half_width(person, v), v, (1, 1), edge))


def _head(person: Identity, pose: Pose, side: int) -> tuple[Floats, Floats]:
    """A head on nothing: colours (3, side, side) and opacity (side, side)."""
    traits, (u, v), edge = person.traits, pose.grid(side), 4 / side
    crown_radii = (traits["head_width"] + traits["hair_volume"], 0.92 + traits["hair_volume"])
    crown = _ellipse(u, v + 0.12, crown_radii, edge) * _ramp(traits["hair_long"] - v, 0.2)
    ears = _ellipse(abs(u) - traits["head_width"], v, (0.08, 0.17), edge)
    oval = _ellipse(u / _half_width(person, v), v, (1, 1), edge)
    hair, skin = _hair(person, u, v), _skin(person, pose, u, v)
    colours = hair.copy()
    _over(colours, skin * 0.88, ears)
    _over(colours, skin, oval)
    inner = np.s_[..., side // 6 : side - side // 6, side // 6 : side - side // 6]
    _draw_features(colours[inner], skin[inner], person, u[inner] - pose.turn, v[inner], edge)
    fringe = traits["hairline"] + 0.35 * (u - traits["parting"]) ** 2 - v
    _over(colours, hair, _ramp(fringe, 0.05))
    return colours, np.maximum.reduce([crown, ears, oval])


def _hair(person: Identity, u: Floats, v: Floats) -> Floats:
    angle = np.arctan2(v + 1.3, u - 0.6 * person.traits["parting"])
    strands = person.skin[0, (40 * angle).astype(int) % SKIN_PX]
    shade: Floats = 1 + 0.13 * strands - 0.15 * v
    return person.colour(HAIR, "hair_tone") * shade


def _skin(person: Identity, pose: Pose, u: Floats, v: Floats) -> Floats:
    rows, columns = ((SKIN_SCALE * along).astype(int) % SKIN_PX for along in (v, u))
    relief = person.traits["skin_contrast"] * person.skin[rows, columns]
    light: Floats = 1 + pose.light[0] * u + pose.light[1] * v - 0.16 * (u**2 + 0.5 * v**2)
    skin: Floats = person.colour(SKIN, "tone") * (light + relief)
    cheeks = np.exp(-((abs(u - pose.turn) - 0.36) ** 2 + (v - 0.24) ** 2) / 0.03)
    skin[1:] -= person.traits["redness"] * cheeks
    return skin


def _draw_features(
    colours: Floats, skin: Floats, person: Identity, u: Floats, v: Floats, edge: float
) -> None:
    """Eyes, brows, nose and mouth, around u = 0."""
    t, across = person.traits, abs(u) - person.traits["eye_gap"]  # from either eye's middle
    below = v - t["eye_v"]
    _over(colours, skin * 0.72, 0.7 * _ellipse(across, below, (0.22, 0.15), 0.25))
    eye = _ellipse(across, below, (t["eye_wide"], t["eye_open"]), edge)
    iris = np.hypot(across - t["gaze"] * np.sign(u), below)
    _over(colours, 0.9, eye)
    _over(colours, person.colour(IRIS, "iris"), eye * _ramp(0.075 - iris, edge))
    _over(colours, 0.04, eye * _ramp(0.032 - iris, edge))
    bow = np.maximum(1 - (across / t["eye_wide"]) ** 2, 0)
    _over(colours, skin * 0.3, _stroke(below + t["eye_open"] * bow**0.5, 0.018, edge) * (bow > 0))
    brow = below + t["brow_lift"] - t["brow_tilt"] * across - 2 * across**2
    hairs = _stroke(brow, t["brow_thick"], edge) * _ramp(0.17 - abs(across), 0.05)
    _over(colours, person.colour(HAIR, "hair_tone") * 0.8, hairs)
    tip = below - t["nose_long"]
    ridge = _ramp(below - 0.05, 0.1) * _ramp(-tip, 0.05)
    _over(colours, skin * 0.8, 0.6 * ridge * _stroke(u - 0.07 - 0.1 * below, 0.03, 0.05))
    _over(colours, skin * 1.12, 0.5 * _ellipse(u, tip, (t["nose_wide"], 0.07), 0.05))
    _over(colours, skin * 0.35, _ellipse(abs(u) - 0.055, tip - 0.05, (0.03, 0.02), edge))
    mouth = v - t["mouth_v"] + t["smile"] * (u**2 - 0.02)
    lips = _ellipse(u, mouth, (t["mouth_wide"], t["lips"]), edge)
    _over(colours, skin * LIPS, lips)
    _over(colours, skin * 0.3, lips * _stroke(mouth, 0.014, edge))


def _background(rng: Generator, width: int, height: int) -> Floats:
    """Blurred colours and a few upright rectangles."""
    coarse = rng.uniform(0.1, 0.9, (5, 6)) + rng.uniform(-0.12, 0.12, (3, 5, 6))
    photo = _from_image(_to_image(coarse).resize((width, height)))
    for _ in range(rng.integers(2, 7)):
        x, y, w, h = rng.integers([0, 0, 10, 20], [width, height, width // 3, height // 2])
        _over(photo[:, y : y + h, x : x + w], _one_colour(rng, 0, 1), 0.6)
    return photo


def _draw_body(photo: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    left = max(round(pose.x - 1.5 * pose.half_px), 0)
    part = photo[:, pose.y :, left : round(pose.x + 1.5 * pose.half_px)]
    u = (np.arange(part.shape[2], dtype=np.float32)[None] + left - pose.x) / pose.half_px
    v = np.arange(part.shape[1], dtype=np.float32)[:, None] / pose.half_px
    edge = 1.5 / pose.half_px
    _over(part, person.colour(SKIN, "tone") * 0.7, _stroke(u, 0.38, edge) * (v < 1.5))
    shoulders = _ramp(v - 1.2 - 0.25 * u**2, edge) * _stroke(u, 1.35, edge)
    _over(part, _one_colour(rng, 0.05, 0.85), shoulders)


def _shoot(photo: Floats, path: Path, rng: Generator) -> None:
    """The photo as its camera saves it: white balance, gamma, blur, noise, JPEG."""
    gains, gamma = rng.uniform(0.88, 1.12, (3, 1)), rng.uniform(0.75, 1.3)
    curves = 255 * np.minimum(np.arange(256) / 255 * gains, 1) ** gamma
    exposed = _to_image(photo).point(curves.round().astype(int).ravel().tolist())
    blurred = exposed.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.6)))
    grain = rng.uniform(0.004, 0.02) * rng.standard_normal(photo.shape[1:], np.float32)
    noisy = _to_image(_from_image(blurred) + grain)
    noisy.save(path, "JPEG", quality=int(rng.integers(75, 96)))


def _over(picture: Floats, colour: Floats | float, opacity: Floats | float) -> None:
    """Paint in place."""
    picture += (colour - picture) * opacity


def _one_colour(rng: Generator, low: float, high: float) -> Floats:
    return rng.uniform(low, high, (3, 1, 1)).astype(np.float32)


def _ramp(distance: Floats, edge: float) -> Floats:
    """Opacity: 1 where distance is positive, 0 where negative, a border edge wide."""
    return np.minimum(np.maximum(distance / edge + 0.5, 0), 1)


def _stroke(distance: Floats, half_width: float, edge: float) -> Floats:
    return _ramp(half_width - abs(distance), edge)


def _ellipse(u: Floats, v: Floats, radii: tuple[float, float], edge: float) -> Floats:
    distance = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)  # np.hypot is slower
    return _ramp((1 - distance) * min(radii), edge)


def _to_image(picture: Floats) -> Image.Image:
    channels = (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in channels])


def _from_image(image: Image.Image) -> Floats:
    return np.stack([np.asarray(channel, np.float32) / 255 for channel in image.split()])
