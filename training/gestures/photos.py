"""Photographs behind rendered hands: what is read, how it is cut and coloured, how it moves."""
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import PICTURES

from .track import sway

SIDE = 480  # pixels of the longer side that are kept


@lru_cache(maxsize=4)
def load(folders):
    """Photographs below folders (a tuple of paths), in the order of their names.

    Returns
    -------
    list of uint8 arrays [h, w, 3], RGB, the longer side at most 480 pixels

    Raises
    ------
    InputError
        A folder without pictures.
    """
    out = []
    for folder in folders:
        paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PICTURES)
        pictures = [p for p in (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths) if p is not None and min(p.shape[:2]) >= 100]
        if not pictures:
            raise InputError(f"no photographs in {folder}", found=f"{len(paths)} files that could be",
                             expected="pictures of 100 pixels a side and more",
                             do="name a folder of photographs")
        for picture in pictures:
            scale = SIDE / max(picture.shape[:2])
            if scale < 1:
                picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            out.append(picture[:, :, ::-1].copy())
    return out


def window(rng, photo, height, width):
    """A part of a photograph as a picture of height x width, mirrored half of the times: uint8 [height, width, 3].

    A part of a third of it is as likely as the whole; small parts are from about the middle above, where heads are.
    """
    h, w = photo.shape[:2]
    part = rng.uniform(0.33, 1.0)
    scale = min(w / width, h / height) * part  # photograph's pixels for one of the picture
    where = np.array([0.5, 0.3]) + rng.uniform(-1, 1, 2) * [0.2 + 0.3 * part, 0.2 + 0.5 * part]
    x, y = np.clip(where, 0, 1) * [w - width * scale, h - height * scale]
    matrix = np.array([[1 / scale, 0, -x / scale], [0, 1 / scale, -y / scale]])
    if rng.random() < 0.5:
        matrix[0] = [-1 / scale, 0, x / scale + width - 1]
    return cv2.warpAffine(photo, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def recoloured(rng, picture):
    """The picture in another light: brightness, contrast, saturation, tint."""
    flat = picture.astype(np.float32)
    grey = flat.mean(2, keepdims=True)
    flat = grey + (flat - grey) * rng.uniform(0.3, 1.4)
    flat = (flat - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-30, 30)
    return np.clip(flat * rng.uniform(0.92, 1.08, 3), 0, 255).astype(np.uint8)


class Overlay:
    """What programs draw over a picture: frames, bars, words. It stands still."""

    def __init__(self, rng, width, height):
        self.items = []
        for _ in range(rng.integers(1, 4)):
            x, y = (rng.uniform(0, 0.9, 2) * (width, height)).astype(int)
            bw, bh = (rng.uniform(0.05, 0.4, 2) * (width, height)).astype(int)
            self.items.append((rng.integers(3), (int(x), int(y)), (int(x + bw), int(y + bh)), rng.uniform(0, 255, 3).tolist()))

    def draw(self, picture):
        for kind, first, last, colour in self.items:
            if kind == 0:
                cv2.rectangle(picture, first, last, colour, 2)
            elif kind == 1:
                cv2.putText(picture, "Ag 12 frame"[: 3 + first[0] % 8], last, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
            else:
                cv2.arrowedLine(picture, first, last, colour, 2)


class Wild:
    """A picture under a camera that is carried about, and cuts to other pictures: what films have, and no gesture.

    pictures : list of uint8 [h, w, 3], of one size; the first is seen first
    """

    def __init__(self, rng, pictures):
        self.pictures, (h, w) = pictures, pictures[0].shape[:2]
        fast = rng.choice([0.3, 1.0, 2.0])
        self.move = sway(rng, np.array([0.09 * w, 0.06 * h, 0.08, 0.05]) * fast)
        self.zoom, self.turn = rng.uniform(-0.12, 0.12) * fast, rng.uniform(-0.15, 0.15) * fast * (rng.random() < 0.3)
        self.cuts = np.sort(rng.uniform(0, 3.0, len(pictures) - 1))

    def at(self, t):
        picture = self.pictures[int(np.searchsorted(self.cuts, t))]
        dx, dy, grow, turn = self.move(np.array([t]))[0]
        return shifted(picture, dx, dy, max(0.3, 1.15 + grow + self.zoom * t), turn + self.turn * t, 0.5)


def shifted(picture, dx, dy, scale, turn, centre):
    """A picture moved by dx, dy pixels, scaled and turned (radians) about a point `centre` of its height down its middle line."""
    h, w = picture.shape[:2]
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    cx, cy = w / 2, h * centre
    matrix = np.array([[c, -s, dx + cx - c * cx + s * cy], [s, c, dy + cy - s * cx - c * cy]])
    return cv2.warpAffine(picture, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


class Living:
    """A photograph that is not quite still: it sways and breathes as a person before a camera does.

    picture : uint8 [h, w, 3]
    """

    def __init__(self, rng, picture):
        self.picture = picture
        h, w = picture.shape[:2]
        size = rng.choice([0.0, 0.4, 1.0], p=[0.35, 0.4, 0.25])
        self.move = sway(rng, np.array([0.02 * w, 0.012 * h, 0.02, 0.02]) * size)
        self.still = size == 0

    def at(self, t):
        if self.still:
            return self.picture
        dx, dy, grow, turn = self.move(np.array([t]))[0]
        return shifted(self.picture, dx, dy, 1 + grow, turn, 0.8)
