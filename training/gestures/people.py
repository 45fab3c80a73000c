"""Real hands and people out of photographs: cut-outs that can be moved, and the photographs without the hands.

    python -m tsm_edge.training.gestures.people PHOTOS --output people.npz

PHOTOS is a folder whose sub-folders are called after what the hands in them do; `KINDS` says which names are known. Landmarks
of hands and bodies come from mediapipe (Apache-2.0, its models are in its wheel), which is needed for this command alone:
`pip install mediapipe==0.10.14`, in an environment of its own if need be. The outline is GrabCut's (Rother et al., SIGGRAPH 2004).
"""
import argparse
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from tsm_edge import cli
from tsm_edge.errors import InputError
from tsm_edge.files import written_whole
from tsm_edge.runtimes.sources import PICTURES

KINDS = {"palm": ("hand_palm",), "up": ("hand_up",), "down": ("hand_down",),
         "other": ("hand_left", "hand_right", "hand_follow")}
"""Kinds of hands, and the folders whose photographs show them."""

CANVAS, LENGTH = 224, 64
"""Side of a cut-out in pixels, and how long the hand is in it (wrist to the tip of the middle finger, were it straight)."""

_FINGERS = [(a, a + 1) for f in range(5) for a in range(1 + 4 * f, 4 + 4 * f)] + [(0, 1), (0, 5), (0, 17), (5, 9), (9, 13), (13, 17)]


class People:
    """What a file made by this module holds.

    hands : uint8 [n, 224, 224, 4], RGBA; the palm's centre is the middle, the hand 64 pixels long
    kinds : list of n keys of KINDS
    sides : int8 [n], 1 where the thumb is at the right of the palm, else -1
    scenes : uint8 [m, h, w, 3], RGB photographs; hands that were found are painted over
    """

    def __init__(self, hands, kinds, sides, scenes):
        self.hands, self.kinds, self.sides, self.scenes = hands, list(kinds), sides, scenes

    def of(self, kind):
        """Indices of the hands of a kind."""
        return [i for i, name in enumerate(self.kinds) if name == kind]


@lru_cache(maxsize=2)
def load(path):
    """Open a file of this module.

    Raises
    ------
    InputError
    """
    try:
        with np.load(path) as data:
            return People(data["hands"], [str(k) for k in data["kinds"]], data["sides"], data["scenes"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no hands", found=f"{type(error).__name__}: {str(error)[:80]}", expected="an .npz of "
                         "tsm_edge.training.gestures.people", do="make one, see the module's text") from None


# --- cutting out ------------------------------------------------------------------------------------------------------


def _capsules(shape, points, pairs, thickness):
    mask = np.zeros(shape, np.uint8)
    for a, b in pairs:
        cv2.line(mask, *(tuple(int(v) for v in np.round(points[k])) for k in (a, b)), 1, max(1, int(thickness)), cv2.LINE_8)
    return mask


def hand_length(points):
    """Pixels from the wrist to where the tip of a straight middle finger would be, from landmarks [21, 2]."""
    palm = max(np.linalg.norm(points[9] - points[0]), 0.9 * np.linalg.norm(points[5] - points[17]) * 1.3)
    return 1.95 * palm


def outline(picture, points, elbow):
    """Alpha uint8 [h, w] of a hand with its lower arm.

    picture : uint8 RGB [h, w, 3]; points : landmarks [21, 2], pixels; elbow : [2] or None
    """
    length = hand_length(points)
    palm = cv2.convexHull(np.round(points[[0, 1, 5, 9, 13, 17]]).astype(np.int32))
    sure = _capsules(picture.shape[:2], points, _FINGERS, 0.05 * length)
    cv2.fillConvexPoly(sure, palm, 1)
    wide = _capsules(picture.shape[:2], points, _FINGERS, 0.3 * length)
    if elbow is not None:
        arm = np.stack([points[0], elbow])
        sure |= _capsules(picture.shape[:2], arm, [(0, 1)], 0.16 * length)
        wide |= _capsules(picture.shape[:2], arm, [(0, 1)], 0.5 * length)
    labels = np.where(sure > 0, cv2.GC_FGD, np.where(wide > 0, cv2.GC_PR_FGD, cv2.GC_BGD)).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(cv2.dilate(wide, np.ones((25, 25), np.uint8)))
    part, inside = np.ascontiguousarray(picture[y:y + h, x:x + w]), np.ascontiguousarray(labels[y:y + h, x:x + w])
    cv2.setRNGSeed(0)
    cv2.grabCut(part, inside, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[y:y + h, x:x + w] = np.where((inside == cv2.GC_FGD) | (inside == cv2.GC_PR_FGD), 255, 0)
    alpha = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return cv2.GaussianBlur(alpha, (0, 0), max(0.8, 0.012 * length))


def cut_out(picture, alpha, points):
    """The hand on its canvas, RGBA uint8 [224, 224, 4]."""
    scale = LENGTH / hand_length(points)
    x, y = points[[0, 5, 9, 13, 17]].mean(0)
    matrix = np.array([[scale, 0, CANVAS / 2 - scale * x], [0, scale, CANVAS / 2 - scale * y]])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    rgba = cv2.warpAffine(np.dstack([picture, alpha]), matrix, (CANVAS, CANVAS), flags=way)
    edge = np.linspace(-1, 1, CANVAS)
    fade = np.clip((1 - np.hypot(edge[:, None], edge[None])) * 12, 0, 1)  # an arm does not end with the canvas
    rgba[..., 3] = (rgba[..., 3] * fade).astype(np.uint8)
    return rgba


def without(picture, alpha):
    """The picture with what alpha covers painted over from around it."""
    mask = cv2.dilate((alpha > 20).astype(np.uint8), np.ones((9, 9), np.uint8))
    filled = cv2.inpaint(picture, mask, 7, cv2.INPAINT_TELEA)
    grain = np.random.default_rng(0).normal(0, 3, picture.shape)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2)[..., None]
    return np.clip(picture * (1 - soft) + (filled + grain) * soft, 0, 255).astype(np.uint8)


class _Finder:
    """mediapipe's hands and body of one photograph."""

    UP = 3  # photographs are small: they are looked at so many times larger

    def __init__(self):
        try:
            from mediapipe import solutions
        except ImportError:
            raise InputError("mediapipe is not installed", found=sys.executable, expected="the package that finds hands in photographs",
                             do="pip install mediapipe==0.10.14") from None
        self.hands = solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.3)
        self.pose = solutions.pose.Pose(static_image_mode=True, min_detection_confidence=0.3)

    def __call__(self, picture):
        """[(landmarks [21, 2], elbow [2] or None), ...], pixels of the picture."""
        h, w = picture.shape[:2]
        large = cv2.resize(picture, None, fx=self.UP, fy=self.UP, interpolation=cv2.INTER_CUBIC)
        found, body = self.hands.process(large), self.pose.process(large)
        arms = []
        if body.pose_landmarks:
            at = [(p.x * w, p.y * h) for p in body.pose_landmarks.landmark]
            arms = [(np.array(at[15]), np.array(at[13])), (np.array(at[16]), np.array(at[14]))]
        out = []
        for hand in found.multi_hand_landmarks or ():
            points = np.array([(p.x * w, p.y * h) for p in hand.landmark])
            near = [elbow for wrist, elbow in arms if np.linalg.norm(wrist - points[0]) < 0.8 * hand_length(points)]
            out.append((points, near[0] if near else None))
        return out


def extract(folder, say=lambda text: None):
    """Everything of a folder of photographs; see `People` for what is returned (as its arguments).

    Raises
    ------
    InputError
    """
    paths = sorted(p for p in Path(folder).glob("*/*") if p.suffix.lower() in PICTURES)
    if not paths:
        raise InputError(f"no photographs in {folder}", found="nothing", expected="sub-folders of pictures", do="check the path")
    find, kind_of = _Finder(), {name: kind for kind, names in KINDS.items() for name in names}
    hands, kinds, sides, scenes = [], [], [], []
    for path in paths:
        picture = np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1])
        clean = picture
        for points, elbow in find(picture):
            up = 3
            alpha = outline(cv2.resize(picture, None, fx=up, fy=up, interpolation=cv2.INTER_CUBIC), points * up,
                            None if elbow is None else elbow * up)
            small = cv2.resize(alpha, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
            clean = without(clean, small)
            length = hand_length(points)
            hangs = elbow is None or points[0][1] - elbow[1] > 0.6 * length  # the other hand, at rest
            if path.parent.name in kind_of and not hangs and length >= 22:
                large = cv2.resize(picture, None, fx=up, fy=up, interpolation=cv2.INTER_CUBIC)
                hands.append(cut_out(large, alpha, points * up))
                kinds.append(kind_of[path.parent.name])
                sides.append(1 if points[4][0] > points[[5, 9, 13, 17]].mean(0)[0] else -1)
        scenes.append(clean)
        say(f"\r{len(scenes)}/{len(paths)} photographs, {len(hands)} hands")
    return np.array(hands), np.array(kinds), np.array(sides, np.int8), np.array(scenes)


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    parser = argparse.ArgumentParser(prog="python -m tsm_edge.training.gestures.people", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="PHOTOS", help="folder of folders of photographs")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .npz to write")
    args = parser.parse_args(argv)
    hands, kinds, sides, scenes = extract(args.photos, lambda text: print(text, end="", file=sys.stderr))
    print(file=sys.stderr)
    with written_whole(Path(args.output), parents=True) as part:
        with open(part, "wb") as file:
            np.savez_compressed(file, hands=hands, kinds=kinds, sides=sides, scenes=scenes)
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in KINDS)
    print(f"PASSED {len(scenes)} photographs and {len(hands)} hands ({counts}) are in {args.output}")
    return 0


if __name__ == "__main__":
    main()
