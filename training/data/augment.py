"""Changes to training clips. A clip is uint8 RGB [T, h, w, 3]; every frame of a clip is changed alike.

A transform is called as `transform(clip, label, rng, hands)` and returns `(clip, label)`: `Mirror` changes the label with
the picture, by a declared map, and leaves clips alone whose opposite is not among the classes. `hands`, None or float32
[T, 20] as in gestures/targets.py, is changed in place with the picture.
"""
import re

import cv2
import numpy as np

from tsm_edge.card import MEAN, STD
from tsm_edge.errors import InputError
from tsm_edge.picture import geometry
from tsm_edge.picture import shorter_side as default_shorter_side
from tsm_edge.sides import SIDE
from tsm_edge.training.gestures.labels import MIRRORED, REVERSED, slug
from tsm_edge.training.gestures.targets import crop_hands, mirror_hands

from .listing import class_finder

_TIMES = re.compile(r"(^|-)(left|right|up|down|in|out|away|towards?|forwards?|backwards?|clockwise|counterclockwise|"
                    r"anticlockwise|open|opening|close|closing)(-|$)")


def _label_map(classes, known, pairs, words, what):
    find, known = class_finder(classes), {slug(a): slug(b) for a, b in known.items()}
    declared = {}
    for pair in pairs:
        for name in pair:
            if find(name) is None:
                raise InputError(f"{what} names an unknown class", found=name, expected=", ".join(classes),
                                 do="name two classes of this data set")
        a, b = map(find, pair)
        declared[a], declared[b] = b, a
    unknown = [name for i, name in enumerate(classes) if i not in declared and slug(name) not in known and words.search(slug(name))]
    if unknown:
        raise InputError(f"{what}: classes that seem to have a direction are not declared", found=", ".join(unknown),
                         expected="each of them paired with its opposite, or with itself",
                         do="declare pairs, for example (\"swipe-left\", \"swipe-right\"), or switch it off")

    def opposite(i, name):
        other = known.get(slug(name), slug(name))
        return declared[i] if i in declared else i if other == slug(name) else find(other)

    found = [opposite(i, name) for i, name in enumerate(classes)]
    return np.array([-1 if i is None else i for i in found], np.int64)


def mirror_map(classes, pairs=()):
    """Class index of each class's mirror image, int64 [classes]; -1 where that is not among the classes.

    Jester's names are known. Other names with a side in them ("left", "clockwise", ...) must be declared.

    Parameters
    ----------
    classes : list of str
    pairs : iterable of (str, str)
        Classes that change into each other; `(a, a)` declares that a class stays.

    Raises
    ------
    InputError
        A class with a side in its name is not declared, or a pair names no class.
    """
    return _label_map(classes, MIRRORED, pairs, SIDE, "mirroring")


def backwards_map(classes, pairs=()):
    """As `mirror_map`, for clips played backwards."""
    return _label_map(classes, REVERSED, pairs, _TIMES, "playing backwards")


class Mirror:
    """Left and right exchanged with probability `p`, the label by `label_map` (from `mirror_map`)."""

    def __init__(self, label_map, p=0.5):
        self.label_map, self.p = np.asarray(label_map), p

    def __call__(self, clip, label, rng, hands=None):
        if rng.random() >= self.p or self.label_map[label] < 0:
            return clip, label
        if hands is not None:
            mirror_hands(hands)
        return np.ascontiguousarray(clip[:, :, ::-1]), int(self.label_map[label])


class MultiScaleCrop:
    """One crop per clip, its sides drawn from `scales` of the shorter side (at most `distort` apart), resized.

    Parameters
    ----------
    size : (int, int)
        Width, height of the result.
    scales : sequence of float
    distort : int
        How many places in `scales` width and height may differ.
    fixed : bool
        Only the 13 places of TSN (corners, centre, midpoints, quarters), else anywhere.
    squash : bool
        The sides are shares of the picture's own, whatever its shape: for networks that see the whole picture, squashed.
    """

    def __init__(self, size, scales=(1.0, 0.875, 0.75, 0.66), distort=1, fixed=True, squash=False):
        self.size, self.scales, self.distort, self.fixed, self.squash = size, scales, distort, fixed, squash

    def box(self, w, h, rng):
        """A crop (x, y, width, height) of a w x h picture."""
        ratio = w / h if self.squash else self.size[0] / self.size[1]
        base = min(w / ratio, h)  # height of the largest crop of the wanted shape
        i = int(rng.integers(len(self.scales)))
        j = int(np.clip(i + rng.integers(-self.distort, self.distort + 1), 0, len(self.scales) - 1))
        cw = max(1, min(w, round(base * ratio * self.scales[i])))
        ch = max(1, min(h, round(base * self.scales[j])))
        if self.fixed:
            x, y = _PLACES[int(rng.integers(len(_PLACES)))]
        else:
            x, y = rng.random(2)
        return round(x * (w - cw)), round(y * (h - ch)), cw, ch

    def __call__(self, clip, label, rng, hands=None):
        x, y, w, h = self.box(clip.shape[2], clip.shape[1], rng)
        if hands is not None:
            crop_hands(hands, (clip.shape[2], clip.shape[1]), (x, y, w, h))
        return resize(clip[:, y:y + h, x:x + w], self.size), label


_PLACES = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5), (0, 0.5), (1, 0.5), (0.5, 1), (0.5, 0), (0.25, 0.25),
           (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


def resize(clip, size):
    """All frames resized to (width, height): area filter when smaller, linear when larger."""
    if (clip.shape[2], clip.shape[1]) == tuple(size):
        return np.ascontiguousarray(clip)
    smaller = size[0] < clip.shape[2]
    way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.stack([cv2.resize(np.ascontiguousarray(f), tuple(size), interpolation=way) for f in clip])


class ColourJitter:
    """Brightness, contrast, saturation and hue changed alike in all frames.

    Each of `brightness`, `contrast`, `saturation` is the largest relative change; `hue` the largest turn of the hue
    circle (0.5 is half of it).
    """

    def __init__(self, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03):
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, clip, label, rng, hands=None):
        b, c, s = (1 + rng.uniform(-v, v) for v in (self.brightness, self.contrast, self.saturation))
        turn = rng.uniform(-self.hue, self.hue) * 2 * np.pi
        luma = np.array([0.299, 0.587, 0.114])
        # Hue: a rotation about the grey axis. All steps are one 3x3 matrix and an offset.
        axis = np.full(3, 1 / np.sqrt(3))
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        matrix = np.cos(turn) * np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * np.outer(axis, axis)
        matrix = (s * np.eye(3) + (1 - s) * luma) @ matrix * (b * c)
        offset = float((clip[:: max(1, len(clip) // 4)].reshape(-1, 3) @ luma).mean()) * b * (1 - c)
        t, h, w, _ = clip.shape
        flat = np.ascontiguousarray(clip).reshape(t * h, w, 3)
        affine = np.concatenate([matrix, np.full((3, 1), offset)], 1).astype(np.float32)
        return cv2.transform(flat, affine).reshape(t, h, w, 3), label


class Disguise:
    """Another look of all frames with probability `p`: grey, channels exchanged, inverted, posterised, edges alone, a hole.

    What stays is the movement: "motion before looks", as strongly stylised pictures teach shapes (Geirhos et al., ICLR 2019).
    """

    LOOKS = ("grey", "channels", "invert", "posterise", "edges", "hole")

    def __init__(self, p=0.3):
        self.p = p

    def __call__(self, clip, label, rng, hands=None):
        if rng.random() >= self.p:
            return clip, label
        look = self.LOOKS[rng.integers(len(self.LOOKS))]
        return np.ascontiguousarray(getattr(self, "_" + look)(clip, rng)), label

    @staticmethod
    def _grey(clip, rng):
        return np.repeat((clip @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)[..., None], 3, 3)

    @staticmethod
    def _channels(clip, rng):
        return clip[..., rng.permutation(3)]

    @staticmethod
    def _invert(clip, rng):
        return 255 - clip

    @staticmethod
    def _posterise(clip, rng):
        step = 256 // int(rng.integers(3, 8))
        return (clip // step) * step + step // 2

    @staticmethod
    def _edges(clip, rng):
        grey = Disguise._grey(clip, rng)[..., 0]
        found = np.stack([cv2.convertScaleAbs(cv2.Laplacian(cv2.GaussianBlur(f, (0, 0), 0.8), cv2.CV_16S), alpha=4) for f in grey])
        return np.repeat(found[..., None], 3, 3)

    @staticmethod
    def _hole(clip, rng):
        t, h, w, _ = clip.shape
        hh, ww = (max(1, int(side * rng.uniform(0.1, 0.35))) for side in (h, w))
        y, x = rng.integers(0, h - hh + 1), rng.integers(0, w - ww + 1)
        out = clip.copy()
        out[:, y:y + hh, x:x + ww] = rng.integers(0, 256, 3)
        return out


class Stutter:
    """Frames lost and shown twice, as slow cameras and bad containers do, in a share `p` of the clips; their order stays."""

    def __init__(self, p=0.2):
        self.p = p

    def __call__(self, clip, label, rng, hands=None):
        if rng.random() >= self.p:
            return clip, label
        at = np.sort(np.clip(np.round(np.arange(len(clip)) + rng.uniform(-1.2, 1.2, len(clip))), 0, len(clip) - 1).astype(int))
        if hands is not None:
            hands[:] = hands[at]
        return clip[at], label


class CentreCrop:
    """For testing: what a bundle shows its network, by the same rule (`tsm_edge.runtimes.preprocess`). No randomness.

    size : (width, height). resize : "crop" or "squash".
    """

    def __init__(self, size, shorter_side=None, resize="crop"):
        self.size, self.shorter_side, self.resize = size, shorter_side or default_shorter_side(*size), resize

    def __call__(self, clip, label, rng=None, hands=None):
        spec = {"resize": self.resize, "width": self.size[0], "height": self.size[1], "shorter_side": self.shorter_side}
        tall, wide, y, x = geometry(clip.shape[1], clip.shape[2], spec)
        return np.ascontiguousarray(resize(clip, (wide, tall))[:, y:y + self.size[1], x:x + self.size[0]]), label


class Compose:
    """Transforms one after another."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, clip, label, rng, hands=None):
        for step in self.steps:
            clip, label = step(clip, label, rng, hands)
        return clip, label


def normalise(clip, mean=MEAN, std=STD):
    """uint8 [T, h, w, 3] -> float32 [T, 3, h, w], (x / 255 - mean) / std."""
    scale = (1 / (255 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    return np.ascontiguousarray((clip * scale - shift).transpose(0, 3, 1, 2))
