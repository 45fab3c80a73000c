"""What is known of the hand in every rendered frame: targets for an auxiliary loss.

A small network learns gestures from scratch far faster when a second head, thrown away after training, also has to say
where the hand is, how it is held, and what changed since the frame before. `TARGETS` names the 20 columns.
"""
import numpy as np

from .hand import FLEX, joints

TARGETS = ("visible", "x", "y", "size", "way x", "way y", "way z", "facing", "thumb x", "thumb y",
           "thumb", "index", "middle", "ring", "little", "move x", "move y", "move size", "move turn", "move flex")
"""visible: 1 or 0, all others are 0 where it is 0. x, y: palm in -1..1 of the picture. size: log2 of the hand's length
over the picture's height, plus 1.5. way: unit vector wrist to middle knuckle (x right, y down, z away). facing: 1 palm
to the camera, -1 its back. thumb x, y: from the palm to the thumb's tip, in hands. Then each finger's flex (0..1), and
the changes since the frame before of x, y, size (each times 2), the angle of `way` in the picture (half turns, clockwise
positive) and the mean flex (times 2)."""


def _measure(pose, handed, camera):
    points, axes = joints(pose, handed)
    pixel, scale = camera.project(pose[:, None, :3])
    place = pixel[:, 0] / camera.centre - 1
    way = points[:, 9] - points[:, 0]
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    size = np.log2(scale[:, 0] / (2 * camera.centre[1])) + 1.5
    thumb = points[:, 4, :2] - pose[:, :2]
    angle = np.arctan2(way[:, 1], way[:, 0])
    seen = (np.abs(place) < 1.15).all(1)
    return seen, np.column_stack([place, size, way, -axes[:, 2, 2], thumb, pose[:, FLEX]]), angle


def hand_targets(show, local, seconds, camera):
    """Targets of the first hand, float32 [n, 20], at times `local` [n]; `seconds` is the time of a frame."""
    track = show.hands[0]
    seen, now, angle = _measure(track.at(local), track.handed, camera)
    seen_before, before, angle_before = _measure(track.at(local - seconds), track.handed, camera)
    turn = (angle - angle_before + np.pi) % (2 * np.pi) - np.pi
    flat = np.hypot(now[:, 3], now[:, 4])  # a hand that points to the camera has no angle in the picture
    change = np.column_stack([2 * (now[:, :3] - before[:, :3]), turn / np.pi * np.minimum(1, 2 * flat),
                              2 * (now[:, 9:].mean(1) - before[:, 9:].mean(1))])
    out = np.column_stack([seen, now * seen[:, None], change * (seen & seen_before)[:, None]])
    return np.clip(out, -2, 2).astype(np.float32)


def crop_hands(hands, size, box):
    """Targets of frames of `size` (w, h) after a crop `box` (x, y, w, h): changes float32 [T, 20] in place."""
    (W, H), (x, y, w, h) = size, box
    seen = hands[:, 0] > 0.5
    hands[:, 1] = (hands[:, 1] + 1) * W / w - 2 * x / w - 1
    hands[:, 2] = (hands[:, 2] + 1) * H / h - 2 * y / h - 1
    hands[:, 3] += np.log2(H / h)
    hands[:, 15] *= W / w
    hands[:, 16] *= H / h
    hands[~(seen & (np.abs(hands[:, 1:3]) < 1.15).all(1))] = 0
    np.clip(hands, -2, 2, out=hands)


def mirror_hands(hands):
    """Targets after left and right were exchanged: x, the ways, the thumb's place, the move and the turn change their sign."""
    hands[:, [1, 4, 8, 15, 18]] *= -1
