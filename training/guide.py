"""What tsm-record --guide shows and says: how the gesture goes, and whether a clip of it can be learnt from."""
from __future__ import annotations

import cv2
import numpy as np

from tsm_edge.card import background_of
from tsm_edge.training.data.mixed import rendered_names
from tsm_edge.training.gestures.clips import SPLITS, render_clip

FPS, SECONDS = 12.0, 2.5
DARK, MOVED, EDGE = 40.0, 25.0, 0.05
"""Mean brightness of a picture that is too dark, grey levels that a moving pixel changes by, and the share of the picture's sides
that is its edge."""


class Guide:
    """The rendered gesture of a label, in the corner of a picture.

    label : str. Where the rendered gestures do not know it, there is nothing to show: `frames` is None.
    """

    def __init__(self, label, size=(128, 96)):
        names, self.frames = rendered_names([label]), None
        if names:
            self.frames = render_clip(names[0], round(SECONDS * FPS), size, SPLITS["val"][0] + 12, FPS, variety=0)

    def draw(self, picture, seconds):
        """Put it into what will be the lower left corner once a BGR picture is mirrored, a quarter of its height, in place."""
        if self.frames is None:
            return
        height = max(24, picture.shape[0] // 4)
        width = min(picture.shape[1], round(height * self.frames.shape[2] / self.frames.shape[1]))
        frame = self.frames[int(seconds * FPS) % len(self.frames)][..., ::-1]
        picture[-height:, -width:] = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=cv2.INTER_AREA)


def moving(frames):
    """Where something moves: bool [n - 1, h, w], of frames scaled to 96 lines."""
    scale = 96 / frames[0].shape[0]
    small = [cv2.GaussianBlur(cv2.resize(np.ascontiguousarray(f), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
             for f in frames]
    return np.stack([cv2.absdiff(a, b).max(2) > MOVED for a, b in zip(small, small[1:])])


def problems(frames, label):
    """What is wrong with a recorded clip, in sentences; empty if nothing is.

    frames : list of uint8 [h, w, 3]. label : background classes ("No gesture") need no movement.
    """
    found = []
    light = float(np.mean([f.mean() for f in frames[:: max(1, len(frames) // 8)]]))
    if light < DARK:
        found.append(f"it is dark (mean brightness {light:.0f} of 255): put a light before you, not behind you")
    moves = moving(frames)
    share = moves.mean((1, 2))
    if background_of([label]):
        return found
    if np.median(share) > 0.5:
        found.append("the whole picture moved: put the camera down")
    elif share.max() < 0.004:
        found.append("nothing moved: make the whole movement after NOW")
    else:
        h, w = moves.shape[1:]
        y, x = max(1, round(EDGE * h)), max(1, round(EDGE * w))
        inside = moves[:, y:-y, x:-x].sum() / moves.sum()
        if inside < 0.5:
            found.append("the movement was at the picture's edge: come nearer to its middle, or step back")
    return found
