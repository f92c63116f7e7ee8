"""A drawn person: an identity's traits, the pose it is seen in, and what covers its face.

Places are in face units, half the head's height, from the head's middle: u to the right, v down.
Pictures are float32, (3, height, width), 0 to 1; functions that take one paint on it in place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[Any]  # float32

# Drawn in this order: another one gives other people.
TRAITS = {
    "head_width": (0.66, 0.80), "jaw": (0.10, 0.36), "tone": (0.0, 1.0), "redness": (0.0, 0.1),
    "hair_tone": (0.0, 1.0), "hair_long": (-0.4, 1.0), "hair_volume": (0.06, 0.22),
    "hairline": (-0.72, -0.48), "parting": (-0.4, 0.4), "brow_thick": (0.018, 0.05),
    "brow_tilt": (-0.25, 0.25), "brow_lift": (0.15, 0.22), "eye_v": (-0.18, -0.06),
    "eye_gap": (0.27, 0.36), "eye_wide": (0.11, 0.16), "eye_open": (0.05, 0.09),
    "gaze": (-0.03, 0.03), "iris": (0.0, 1.0), "nose_long": (0.28, 0.40),
    "nose_wide": (0.08, 0.14), "mouth_v": (0.50, 0.62), "mouth_wide": (0.20, 0.32),
    "lips": (0.055, 0.12), "smile": (-0.4, 1.0),
    "skin_contrast": (0.030, 0.065),  # what a swap loses with its detail
    "skin_grain": (0.8, 1.6),
}  # fmt: skip
SKIN = [[0.36, 0.23, 0.16], [0.62, 0.43, 0.32], [0.80, 0.60, 0.48], [0.93, 0.77, 0.68]]
HAIR = [[0.07, 0.05, 0.05], [0.24, 0.14, 0.08], [0.48, 0.30, 0.15], [0.80, 0.66, 0.40]]
IRIS = [[0.18, 0.10, 0.05], [0.35, 0.24, 0.10], [0.28, 0.42, 0.25], [0.30, 0.48, 0.65]]
LIPS = np.array([0.90, 0.58, 0.60], np.float32).reshape(3, 1, 1)  # of the skin's colour
CLOTH = [[0.55, 0.72, 0.85], [0.90, 0.90, 0.90], [0.15, 0.15, 0.18]]

REACH = 1.3  # of a face's patch around its centre: hair included
SKIN_SCALE, SKIN_PX = 55, 80  # texture px in a face unit, in a tile


@dataclass(frozen=True)
class Identity:
    """What stays the same in every pose."""

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


def outline(person: Identity, pose: Pose) -> dict[str, Any]:
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


def draw_head(person: Identity, pose: Pose, side: int) -> tuple[Floats, Floats]:
    """A head on nothing: colours (3, side, side) and opacity (side, side).

    side: px; under pose.side_px it is the same head with less detail.
    """
    traits, (u, v), edge = person.traits, pose.grid(side), 4 / side
    crown_radii = (traits["head_width"] + traits["hair_volume"], 0.92 + traits["hair_volume"])
    crown = ellipse(u, v + 0.12, crown_radii, edge) * _ramp(traits["hair_long"] - v, 0.2)
    ears = ellipse(abs(u) - traits["head_width"], v, (0.08, 0.17), edge)
    oval = ellipse(u / _half_width(person, v), v, (1, 1), edge)
    hair, skin = _hair(person, u, v), _skin(person, pose, u, v)
    colours = hair.copy()
    over(colours, skin * 0.88, ears)
    over(colours, skin, oval)
    inner = np.s_[..., side // 6 : side - side // 6, side // 6 : side - side // 6]
    _draw_features(colours[inner], skin[inner], person, u[inner] - pose.turn, v[inner], edge)
    fringe = traits["hairline"] + 0.35 * (u - traits["parting"]) ** 2 - v
    over(colours, hair, _ramp(fringe, 0.05))
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
    over(colours, skin * 0.72, 0.7 * ellipse(across, below, (0.22, 0.15), 0.25))
    eye = ellipse(across, below, (t["eye_wide"], t["eye_open"]), edge)
    iris = np.hypot(across - t["gaze"] * np.sign(u), below)
    over(colours, 0.9, eye)
    over(colours, person.colour(IRIS, "iris"), eye * _ramp(0.075 - iris, edge))
    over(colours, 0.04, eye * _ramp(0.032 - iris, edge))
    bow = np.maximum(1 - (across / t["eye_wide"]) ** 2, 0)
    over(colours, skin * 0.3, _stroke(below + t["eye_open"] * bow**0.5, 0.018, edge) * (bow > 0))
    brow = below + t["brow_lift"] - t["brow_tilt"] * across - 2 * across**2
    hairs = _stroke(brow, t["brow_thick"], edge) * _ramp(0.17 - abs(across), 0.05)
    over(colours, person.colour(HAIR, "hair_tone") * 0.8, hairs)
    tip = below - t["nose_long"]
    ridge = _ramp(below - 0.05, 0.1) * _ramp(-tip, 0.05)
    over(colours, skin * 0.8, 0.6 * ridge * _stroke(u - 0.07 - 0.1 * below, 0.03, 0.05))
    over(colours, skin * 1.12, 0.5 * ellipse(u, tip, (t["nose_wide"], 0.07), 0.05))
    over(colours, skin * 0.35, ellipse(abs(u) - 0.055, tip - 0.05, (0.03, 0.02), edge))
    mouth = v - t["mouth_v"] + t["smile"] * (u**2 - 0.02)
    lips = ellipse(u, mouth, (t["mouth_wide"], t["lips"]), edge)
    over(colours, skin * LIPS, lips)
    over(colours, skin * 0.3, lips * _stroke(mouth, 0.014, edge))


def draw_body(photo: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    """Neck and clothed shoulders, down to the photo's border; the head comes over them."""
    left = max(round(pose.x - 1.5 * pose.half_px), 0)
    part = photo[:, pose.y :, left : round(pose.x + 1.5 * pose.half_px)]
    u = (np.arange(part.shape[2], dtype=np.float32)[None] + left - pose.x) / pose.half_px
    v = np.arange(part.shape[1], dtype=np.float32)[:, None] / pose.half_px
    edge = 1.5 / pose.half_px
    over(part, person.colour(SKIN, "tone") * 0.7, _stroke(u, 0.38, edge) * (v < 1.5))
    shoulders = _ramp(v - 1.2 - 0.25 * u**2, edge) * _stroke(u, 1.35, edge)
    over(part, one_colour(rng, 0.05, 0.85), shoulders)


def draw_glasses(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    """Over a head of pose.side_px."""
    u, v = pose.grid(pose.side_px)
    u, v, edge = abs(u - pose.turn), v - person.traits["eye_v"], 2 / pose.half_px
    radius, flatness, tint = rng.uniform([0.17, 1, -0.5], [0.24, 1.3, 0.8]).tolist()
    lens = radius - np.hypot(u - person.traits["eye_gap"], v * flatness)
    bridge = _stroke(v, 0.02, edge) * (u < person.traits["eye_gap"] - radius)
    frame = np.maximum(bridge, _stroke(lens, 0.02, edge))
    over(head, one_colour(rng, 0.02, 0.35), np.maximum(frame, max(tint, 0) * _ramp(lens, edge)))


def draw_mask(head: Floats, person: Identity, pose: Pose, rng: Generator) -> None:
    """Over a head of pose.side_px, from below the eyes down."""
    u, v = pose.grid(pose.side_px)
    edge, top = 2 / pose.half_px, person.traits["eye_v"] + rng.uniform(0.22, 0.45)
    strip = _stroke(v - top - 0.3 - 0.1 * u**2, 0.3, edge)
    folds = 1 + 0.08 * np.sin(v * 30) - 0.3 * u**2 + pose.light[0] * u
    cloth = np.array(CLOTH[rng.integers(len(CLOTH))], np.float32).reshape(3, 1, 1)
    over(head, cloth * folds, strip * ellipse(u / _half_width(person, v), v, (1, 1), edge))


def over(picture: Floats, colour: Floats | float, opacity: Floats | float) -> None:
    """Paint colour on the picture; both broadcast to its shape."""
    picture += (colour - picture) * opacity


def one_colour(rng: Generator, low: float, high: float) -> Floats:
    """Channels between low and high, (3, 1, 1)."""
    return rng.uniform(low, high, (3, 1, 1)).astype(np.float32)


def ellipse(u: Floats, v: Floats, radii: tuple[float, float], edge: float) -> Floats:
    """Opacity: 1 inside the ellipse around u = v = 0, 0 outside, a border about edge wide."""
    distance = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)  # np.hypot is slower
    return _ramp((1 - distance) * min(radii), edge)


def _ramp(distance: Floats, edge: float) -> Floats:
    """Opacity: 1 where distance is positive, 0 where negative, a border edge wide."""
    return np.minimum(np.maximum(distance / edge + 0.5, 0), 1)


def _stroke(distance: Floats, half_width: float, edge: float) -> Floats:
    return _ramp(half_width - abs(distance), edge)
