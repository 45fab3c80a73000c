"""Draws hands as shaded capsules, far parts first. The geometry is computed for all frames at once."""
from typing import NamedTuple

import cv2
import numpy as np

from .hand import BONES, PALM_JOINTS, PALM_RADII, TIPS, joints

SHIFT = 3  # polygon corners have 3 fractional bits
_ARC = np.linspace(0, np.pi, 6)
_CIRCLE = np.linspace(0, 2 * np.pi, 10, endpoint=False)
_CIRCLE = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], -1)
NEAREST = 0.6  # hands; nothing is drawn nearer to the camera


class Look:
    """What a performer's hands look like: skin, sleeve, proportions, light. Colours are float RGB in 0..255."""

    TONES = np.array([[255, 224, 200], [241, 194, 164], [224, 172, 125], [198, 134, 90], [150, 95, 60], [92, 58, 42]])

    def __init__(self, rng):
        t = rng.uniform(0, len(self.TONES) - 1)
        i = min(int(t), len(self.TONES) - 2)
        skin = self.TONES[i] + (self.TONES[i + 1] - self.TONES[i]) * (t - i)
        self.skin = np.clip(skin * rng.uniform(0.88, 1.05) + rng.uniform(-8, 8, 3), 20, 255)
        self.palm = np.clip(self.skin * 0.75 + np.array([236, 182, 160]) * 0.25, 0, 255)
        self.nail = np.clip(self.skin * 0.7 + np.array([255, 205, 200]) * 0.3 + rng.uniform(-10, 25), 0, 255)
        self.sleeve = rng.uniform(15, 235, 3)
        self.hair = self.skin * rng.uniform(0.1, 0.6)
        self.thick = rng.uniform(0.88, 1.18)  # factor of all radii
        self.proportions = rng.uniform(0.93, 1.07) * rng.uniform(0.96, 1.04, 5)
        self.bare = rng.random() < 0.3  # no sleeve on the lower arm
        light = np.array([rng.uniform(-1, 1), -rng.uniform(0.2, 1.0), -rng.uniform(0.3, 1.0)])
        self.light = light / np.linalg.norm(light)
        self.ambient = rng.uniform(0.5, 0.8)
        self.edge = rng.uniform(0.5, 0.72)  # how dark the outline between fingers is


class Camera:
    """Pinhole camera: `focal` and picture centre in pixels, `distance` (hands) of the performer's z = 0."""

    def __init__(self, focal, centre, distance):
        self.focal, self.centre, self.distance = focal, np.asarray(centre, float), distance

    def project(self, points):
        """Pixel positions [..., 2] and pixels per hand [...] of points [..., 3]."""
        scale = self.focal / np.maximum(points[..., 2] + self.distance, NEAREST)
        return points[..., :2] * scale[..., None] + self.centre, scale


def capsules(p0, p1, r0, r1):
    """Outlines [..., 12, 2] of tapered capsules; p in pixels [..., 2], r in pixels [...]."""
    d = p1 - p0
    angle = np.arctan2(d[..., 1], d[..., 0])[..., None]
    back = angle + np.pi / 2 + _ARC
    front = angle - np.pi / 2 + _ARC
    return np.concatenate([
        p0[..., None, :] + r0[..., None, None] * np.stack([np.cos(back), np.sin(back)], -1),
        p1[..., None, :] + r1[..., None, None] * np.stack([np.cos(front), np.sin(front)], -1)], -2)


def _fixed(polygons):
    return np.round(np.clip(polygons, -8000, 8000) * (1 << SHIFT)).astype(np.int32)


def _colours(colour):
    return np.clip(colour, 0, 255).astype(int).tolist()


_FROM = np.array([b[0] for b in BONES])
_TO = np.array([b[1] for b in BONES])
_R0 = np.array([b[2] for b in BONES])
_R1 = np.array([b[3] for b in BONES])


class _Seen(NamedTuple):
    """Joints of a hand in n frames: points [n, joints, 3], axes [n, 3, 3], and where the camera sees them."""

    points: np.ndarray
    axes: np.ndarray
    pixel: np.ndarray
    scale: np.ndarray


def hand_parts(pose, handed, look, camera):
    """Everything to draw of one hand.

    Returns
    -------
    list of n lists of (depth, ((polygon int32 [k, 2], colour), ...)), and elbow pixels [n, 2].
    """
    points, axes = joints(pose, handed, look.proportions)
    hand = _Seen(points, axes, *camera.project(points))
    facing = -axes[:, 2, 2]  # 1: palm to the camera, -1: back to the camera
    mix = np.clip(facing * 2 + 0.5, 0, 1)[:, None]
    skin = look.skin * (1 - mix) + look.palm * mix  # [n, 3]
    fingers, nails, arms = _fingers(hand, look, skin), _nails(hand, look, camera), _arms(hand, look)
    palms = _palms(hand, look, skin, facing, _palm_lines(points, axes, camera, handed))
    frames = []
    for i in range(len(pose)):
        if (hand.pixel[i, :, 1] - hand.scale[i] * 0.3).min() > camera.centre[1] * 2.2:
            frames.append([])  # below the picture
            continue
        parts = [*arms(i), palms(i)]
        for k in range(len(BONES)):
            depth, polygons = fingers(i, k)
            # Knuckles sink into the palm: nudge the first joints so that they are drawn after it on their own side.
            parts.append((depth - (0.02 if k % 3 else 0.0), polygons + (nails(i, k // 3) if k in TIPS else []), None))
        frames.append(parts)
    return frames, hand.pixel[:, 21]


def _fingers(hand, look, skin):
    """A function (frame, bone) -> (depth, polygons) of fingers and thumb: dark outline, body, a lighter ridge on the side of the light."""
    points, scale = hand.points, hand.scale
    towards = look.light[:2] / (np.linalg.norm(look.light[:2]) + 1e-6) * 0.3
    a, b = hand.pixel[:, _FROM], hand.pixel[:, _TO]
    ra, rb = scale[:, _FROM] * _R0 * look.thick, scale[:, _TO] * _R1 * look.thick
    way = points[:, _TO] - points[:, _FROM]
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    across = np.sqrt(np.maximum(1 - (way @ look.light) ** 2, 0))
    shade = look.ambient + (1.05 - look.ambient) * across  # [n, bones]
    body = skin[:, None] * shade[..., None]
    offset = towards * ra[..., None]
    outlines = _fixed(np.stack([
        capsules(a, b, ra * 1.08, rb * 1.08), capsules(a, b, ra * 0.9, rb * 0.88),
        capsules(a + offset, b + offset, ra * 0.45, rb * 0.45)], 2))  # [n, bones, 3, 12, 2]
    colours = _colours(np.stack([body * look.edge, body, body * 1.1 + 6], 2))
    depth = points[:, _FROM, 2] * 0.5 + points[:, _TO, 2] * 0.5
    return lambda i, k: (depth[i, k], list(zip(outlines[i, k], colours[i][k])))


def _nails(hand, look, camera):
    """A function (frame, finger) -> polygons, of the nail on the back of a finger's last joint where it is seen."""
    points = hand.points
    tip, base = points[:, _TO[list(TIPS)]], points[:, _FROM[list(TIPS)]]
    out = hand.axes[:, None, :, 2] * np.ones((1, 5, 1))
    along = tip - base
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    dorsal = -(out - along * (out * along).sum(-1, keepdims=True))
    # Curled fingers turn their nails: the joint before says which way the finger bends.
    before = base - points[:, _FROM[np.array(TIPS) - 1]]
    bend = before - along * (before * along).sum(-1, keepdims=True)
    dorsal = dorsal + 8 * bend
    dorsal /= np.linalg.norm(dorsal, axis=-1, keepdims=True) + 1e-9
    r = (_R1[list(TIPS)] * look.thick)[:, None]
    seen = dorsal[..., 2] < -0.25
    n0, _ = camera.project(base + along * 0.055 + dorsal * r * 0.75)
    n1, s1 = camera.project(base + along * 0.115 + dorsal * r * 0.75)
    nails = _fixed(capsules(n0, n1, s1 * r[:, 0] * 0.55, s1 * r[:, 0] * 0.6))
    colour = _colours(look.nail * 0.5 + 0.5 * look.nail * look.ambient)
    return lambda i, finger: [(nails[i, finger], colour)] if seen[i, finger] else []


def _palms(hand, look, skin, facing, lines):
    """A function frame -> part, of the hull of discs at wrist and knuckles, lit by its normal, with the strokes of its side."""
    pixel, scale = hand.pixel, hand.scale
    ring = pixel[:, PALM_JOINTS, None] + (scale[:, PALM_JOINTS] * PALM_RADII * look.thick)[..., None, None] * _CIRCLE
    ring = _fixed(ring).reshape(len(pixel), -1, 2)
    inner = pixel[:, PALM_JOINTS, None] + (scale[:, PALM_JOINTS] * PALM_RADII * 0.72)[..., None, None] * _CIRCLE
    inner = _fixed(inner).reshape(len(pixel), -1, 2)
    lit = np.abs(hand.axes[:, :, 2] @ look.light)
    flat = skin * (look.ambient + (1 - look.ambient) * lit)[:, None]
    colours = _colours(np.stack([flat * (look.edge * 0.6 + 0.4), flat], 1))
    crease = _colours(flat * 0.78)
    depth = hand.points[:, PALM_JOINTS, 2].mean(1)
    width = np.maximum(1, (scale[:, 0] * 0.02)).astype(int).tolist()

    def part(i):
        hull = cv2.convexHull(ring[i])[:, 0], cv2.convexHull(inner[i])[:, 0]
        strokes = (lines[i][0 if facing[i] > 0 else 1], crease[i], width[i]) if abs(facing[i]) > 0.3 else None
        return depth[i], tuple(zip(hull, colours[i])), strokes

    return part


def _arms(hand, look):
    """A function frame -> parts, of sleeve and lower arm."""
    scale, thick = hand.scale, look.thick
    el, sl, wr = hand.pixel[:, 21], hand.pixel[:, 22], hand.pixel[:, 0]
    arm = np.stack([capsules(wr, sl, scale[:, 0] * 0.125 * thick, scale[:, 22] * 0.15 * thick),
                    capsules(wr, sl, scale[:, 0] * 0.105 * thick, scale[:, 22] * 0.13 * thick)], 1)
    cloth = np.stack([capsules(sl, el, scale[:, 22] * 0.21 * thick, scale[:, 21] * 0.27 * thick),
                      capsules(sl, el, scale[:, 22] * 0.17 * thick, scale[:, 21] * 0.22 * thick)], 1)
    arm, cloth = _fixed(arm), _fixed(cloth)
    skin = look.skin * (look.ambient * 0.5 + 0.45)
    sleeve = skin if look.bare else look.sleeve
    arm_colours = _colours(np.stack([skin * look.edge, skin]))
    sleeve_colours = _colours(np.stack([sleeve * 0.7, sleeve]))
    arm_depth = hand.points[:, [0, 22], 2].mean(1) + 0.12
    sleeve_depth = hand.points[:, [21, 22], 2].mean(1) + 0.12
    return lambda i: [(sleeve_depth[i], tuple(zip(cloth[i], sleeve_colours)), None), (arm_depth[i], tuple(zip(arm[i], arm_colours)), None)]


def _palm_lines(points, axes, camera, handed):
    """Crease lines of the palm and knuckle marks of the back: fixed-point polylines per frame (inside, back)."""
    side = axes[:, :, 0] * handed
    up = axes[:, :, 1]
    wrist = points[:, 0]

    def curve(coordinates):
        rows = [wrist + side * x + up * y for x, y in coordinates]
        pixel, _ = camera.project(np.stack(rows, 1))
        return _fixed(pixel)

    inside = curve([(-0.19, 0.36), (-0.05, 0.40), (0.06, 0.44), (0.12, 0.49)]), \
        curve([(0.19, 0.36), (0.05, 0.30), (0.02, 0.18), (0.05, 0.06)])
    back = [curve([(x - 0.03, y), (x, y + 0.025), (x + 0.03, y)]) for x, y in
            ((0.17, 0.48), (0.06, 0.51), (-0.055, 0.49), (-0.16, 0.44))]
    return [([c[i] for c in inside], [c[i] for c in back]) for i in range(len(points))]


def paint(picture, parts):
    """Draw parts [(depth, polygons, lines)] far to near into uint8 RGB `picture`."""
    for _, polygons, strokes in sorted(parts, key=lambda p: -p[0]):
        for polygon, colour in polygons:
            cv2.fillConvexPoly(picture, polygon, colour, cv2.LINE_8, SHIFT)
        if strokes is not None:
            cv2.polylines(picture, strokes[0], False, strokes[1], strokes[2], cv2.LINE_8, SHIFT)
