"""A small drawn data set in OpenForensics' shape: photos of faces, about half of them swapped.

A fake's inner face is another identity's, drawn with less detail and scaled up, its colours
matched only in part, feathered into place. What tells nothing: the camera (one a photo), the box,
occluders; and real faces have local edits too. The SWAP_* ranges set how hard the task is, with
the skin_contrast of portrait.TRAITS.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from deepfake.config import FAKE, REAL
from deepfake.parallel import in_parallel
from deepfake.sample.portrait import (
    Floats,
    Identity,
    Pose,
    draw_body,
    draw_glasses,
    draw_head,
    draw_mask,
    ellipse,
    one_colour,
    outline,
    over,
)

# The knobs, drawn for each face.
SWAP_DETAIL = (0.38, 0.65)  # resolution of a swapped face, of the photo's
SWAP_MATCH = (0.50, 0.95)  # of the colour difference that is taken away
SWAP_FEATHER = (0.08, 0.25)  # width of the seam, of half a face's height
DECOY_SHARE = 0.4  # of real faces that carry a local edit
OCCLUDER_SHARE = 0.3  # of all faces, real or fake

FACES = (2, 4)  # a photo
PHOTO_PX = (256, 420)
FACE_PX = (60, 130)  # height of the head without hair

_Drawn = tuple[dict[str, Any], list[dict[str, Any]]]  # an image and its annotations, without ids


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
    draw = partial(_draw_photo, out_dir, seed)
    with contextlib.closing(in_parallel(draw, range(photos), processes)) as drawn:
        for image, its_faces in drawn:
            images.append(image)
            faces += its_faces
            if progress is not None:
                progress(len(images), photos)
    annotations = [{"id": number, **face} for number, face in enumerate(faces)]
    from deepfake.data import write_json  # and pandas, which no process that draws needs

    write_json(annotations_json, images, annotations)
    return annotations_json


def seed_of(file_names: Mapping[int, str]) -> int | None:
    """The seed whose draw gave every photo its name; None if none of the first 1000 did.

    file_names: by image_id.
    """
    if not file_names:
        return None
    first = min(file_names)
    seed = next((n for n in range(1000) if _file_name(n, first) == file_names[first]), None)
    if seed is None or any(_file_name(seed, at) != name for at, name in file_names.items()):
        return None
    return seed


def _file_name(seed: int, index: int) -> str:
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).hexdigest()
    return f"Images/Train/{digest}.jpg"


def _draw_photo(out_dir: Path, seed: int, index: int) -> _Drawn:
    rng = np.random.default_rng([seed, index])
    width, height = rng.integers(*PHOTO_PX, 2, endpoint=True).tolist()
    poses = _place(rng, width, height)
    people = [Identity.draw(rng) for _ in poses]
    photo = _background(rng, width, height)
    for person, pose in zip(people, poses, strict=True):
        draw_body(photo, person, pose, rng)
    faces = []
    for person, pose in zip(people, poses, strict=True):
        label = FAKE if rng.random() < 0.5 else REAL
        _draw_face(photo, person, pose, label, rng)
        faces.append({"image_id": index, "category_id": label, **outline(person, pose)})
    file_name = _file_name(seed, index)
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


def _background(rng: Generator, width: int, height: int) -> Floats:
    """Blurred colours and a few upright rectangles."""
    coarse = rng.uniform(0.1, 0.9, (5, 6)) + rng.uniform(-0.12, 0.12, (3, 5, 6))
    photo = _from_image(_to_image(coarse).resize((width, height)))
    for _ in range(rng.integers(2, 7)):
        x, y, w, h = rng.integers([0, 0, 10, 20], [width, height, width // 3, height // 2])
        over(photo[:, y : y + h, x : x + w], one_colour(rng, 0, 1), 0.6)
    return photo


def _draw_face(photo: Floats, person: Identity, pose: Pose, label: int, rng: Generator) -> None:
    side = pose.side_px
    head, opacity = draw_head(person, pose, side)
    if label == FAKE:
        _swap(head, person, pose, rng)
    elif rng.random() < DECOY_SHARE:
        (_brighten, _reencode)[rng.integers(2)](head, pose, rng)
    if rng.random() < OCCLUDER_SHARE:
        (draw_glasses, draw_mask)[rng.integers(2)](head, person, pose, rng)
    top, left = pose.y - side // 2, pose.x - side // 2
    skip_y, skip_x = max(-top, 0), max(-left, 0)  # hair may reach past the photo
    part = photo[:, top + skip_y : top + side, left + skip_x : left + side]
    seen = np.s_[..., skip_y : skip_y + part.shape[1], skip_x : skip_x + part.shape[2]]
    over(part, head[seen], opacity[seen])


def _swap(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    """Another identity's inner face over this one's, with the traces of having been pasted."""
    side = pose.side_px
    shift = rng.normal(0, 0.02), rng.normal(0, 0.02)
    loose = replace(pose, angle=pose.angle + rng.normal(0, 0.03), shift=shift)
    other = Identity.draw(rng)
    hairless = replace(other, traits={**other.traits, "hairline": -1.0})
    small, _ = draw_head(hairless, loose, round(side * rng.uniform(*SWAP_DETAIL)))
    face = np.stack([np.asarray(Image.fromarray(c).resize((side, side))) for c in small])
    u, v = pose.grid(side)
    radii = (0.84 * person.traits["head_width"], 0.66)
    inner = ellipse(u - pose.turn, v - 0.18, radii, rng.uniform(*SWAP_FEATHER))
    difference = (inner * (head - face)).sum((1, 2), keepdims=True) / inner.sum()
    over(head, face + rng.uniform(*SWAP_MATCH) * difference, inner)


def _brighten(head: Floats, pose: Pose, rng: Generator) -> None:
    u, v = pose.grid(pose.side_px)
    u0, v0, radius_u, radius_v = rng.uniform([-0.4, -0.4, 0.3, 0.3], [0.4, 0.4, 0.7, 0.7]).tolist()
    patch = ellipse(u - u0, v - v0, (radius_u, radius_v), rng.uniform(*SWAP_FEATHER))
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


def _shoot(photo: Floats, path: Path, rng: Generator) -> None:
    """The photo as its camera saves it: white balance, gamma, blur, noise, JPEG."""
    gains, gamma = rng.uniform(0.88, 1.12, (3, 1)), rng.uniform(0.75, 1.3)
    curves = 255 * np.minimum(np.arange(256) / 255 * gains, 1) ** gamma
    exposed = _to_image(photo).point(curves.round().astype(int).ravel().tolist())
    blurred = exposed.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.6)))
    grain = rng.uniform(0.004, 0.02) * rng.standard_normal(photo.shape[1:], np.float32)
    noisy = _to_image(_from_image(blurred) + grain)
    noisy.save(path, "JPEG", quality=int(rng.integers(75, 96)))


def _to_image(picture: Floats) -> Image.Image:
    channels = (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in channels])


def _from_image(image: Image.Image) -> Floats:
    return np.stack([np.asarray(channel, np.float32) / 255 for channel in image.split()])
