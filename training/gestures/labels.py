"""What the rendered gestures are called, and what a mirror or a film run backwards makes of each name."""

import unicodedata

from tsm_edge.jester import CLASSES
from tsm_edge.sides import mirrored_names

CORE_CLASSES = (
    "Doing other things", "Drumming Fingers", "No gesture", "Pulling Hand In", "Pushing Hand Away",
    "Rolling Hand Backward", "Rolling Hand Forward", "Shaking Hand", "Stop Sign", "Swiping Down", "Swiping Left",
    "Swiping Right", "Swiping Up", "Thumb Down", "Thumb Up", "Turning Hand Clockwise",
    "Turning Hand Counterclockwise", "Zooming In With Full Hand", "Zooming Out With Full Hand",
)
"""The 19 labels that need no two-finger pose: the easier set for a small network and small pictures."""


WEBCAM_CLASSES = (
    "Doing other things", "No gesture", "Pulling Hand In", "Pushing Hand Away", "Stop Sign", "Swiping Down",
    "Swiping Left", "Swiping Right", "Swiping Up", "Thumb Down", "Thumb Up",
)
"""The 11 labels of the packaged model: those that rendered hands can teach a network to see on real people."""

SETS = {"webcam": WEBCAM_CLASSES, "core": CORE_CLASSES, "all": CLASSES}
"""Gesture sets by name."""

ALIKE = tuple(name for name in CLASSES if "Two Fingers" in name and not name.startswith("Zooming"))
"""Two-finger gestures that a small picture hardly tells from the same move of the whole hand."""


def left_out(classes):
    """Gestures that a network of `classes` should take for other things: not among them, nor too much alike."""
    return tuple(name for name in CLASSES if name not in classes and name not in ALIKE)


def _both_ways(*pairs):
    table = {name: name for name in CLASSES}
    for a, b in pairs:
        table[a], table[b] = b, a
    return table


_LEFT_RIGHT = (
    ("Swiping Left", "Swiping Right"), ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
    ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
)

MIRRORED = dict(zip(CLASSES, mirrored_names(CLASSES)))
"""Label of the clip seen in a mirror (left and right exchanged)."""

REVERSED = _both_ways(
    *_LEFT_RIGHT,
    ("Swiping Up", "Swiping Down"), ("Sliding Two Fingers Up", "Sliding Two Fingers Down"),
    ("Pushing Hand Away", "Pulling Hand In"), ("Pushing Two Fingers Away", "Pulling Two Fingers In"),
    ("Rolling Hand Forward", "Rolling Hand Backward"),
    ("Zooming In With Full Hand", "Zooming Out With Full Hand"),
    ("Zooming In With Two Fingers", "Zooming Out With Two Fingers"),
)
"""Label of the clip played backwards. Held poses and oscillations stay what they are."""


def slug(name):
    """Letters and digits of any script joined by '-', lower case: "Swiping Left" and "swiping_left" are one name.

    Empty where a name has neither.
    """
    folded = unicodedata.normalize("NFKC", str(name)).casefold()
    return "-".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())
