"""Left and right: whose they are, and what becomes of a network's classes before a camera that mirrors.

Classes with a side in their name mean the performer's own left and right before a camera that does not mirror, as in Jester and
NVGesture: "Swiping Left" goes to the right of the picture. Some front cameras give the picture as a mirror would. What a network
sees then is the mirror image of the gesture, and its name the mirror image of the name: `for_mirrored_camera` exchanges them. That
is exact for networks that were trained with mirrored clips (tsm-train --mirror), whatever hand is used.
"""
import re

from .errors import InputError

_OPPOSITE = {"left": "right", "right": "left", "leftward": "rightward", "rightward": "leftward", "leftwards": "rightwards",
             "rightwards": "leftwards", "clockwise": "counterclockwise", "counterclockwise": "clockwise", "anticlockwise": "clockwise",
             "cw": "ccw", "ccw": "cw"}
SIDE = re.compile(r"(?<![A-Za-z])(" + "|".join(sorted(_OPPOSITE, key=len, reverse=True)) + r")(?![A-Za-z])", re.IGNORECASE)
"""A word for a side in a class's name."""


def _turned(name):
    def other(match):
        word = _OPPOSITE[match.group(0).lower()]
        return word.upper() if match.group(0).isupper() else word.capitalize() if match.group(0)[0].isupper() else word

    return SIDE.sub(other, name)


def mirrored_names(classes: "list[str]") -> "list[str]":
    """Class names with left and right, clockwise and counterclockwise exchanged, in the order of the network's outputs.

    Raises
    ------
    InputError
        A class with a side in its name whose opposite is not among the classes.
    """
    out = [_turned(name) for name in classes]
    out = [name if name in classes else re.sub("counterclockwise", "anticlockwise", name) for name in out]
    alone = [name for name, turned in zip(classes, out) if turned not in classes]
    if alone:
        raise InputError("a mirror makes classes of these that the network does not have", found=", ".join(alone),
                         expected="for each its opposite among the classes: " + ", ".join(_turned(name) for name in alone),
                         do="let the camera not mirror, or turn its picture: --input-flip horizontal")
    return out


def whose(manifest: dict) -> str:
    """Whose left and right the classes of a manifest mean, in a sentence; empty where none has a side in its name."""
    if not any(SIDE.search(name) for name in manifest["classes"]):
        return ""
    if manifest["input"].get("camera") == "mirrored":
        return "Left and right are the performer's own before a camera that gives its picture as a mirror does: exported for such a one."
    return ("Left and right are the performer's own before a camera that does not mirror: a swipe to the left goes to the right of the "
            "picture. (For one that mirrors: --input-flip horizontal, or tsm-export --mirrored-camera.)")


def for_mirrored_camera(card):
    """The `Card` of the same network behind a camera that mirrors: `camera` says so, and classes with sides are exchanged.

    Raises
    ------
    InputError
        See `mirrored_names`; or no class has a name.
    """
    if not card.classes:
        raise InputError("a network without class names has no left and right", found="no class names", expected="names",
                         do="give them: --classes FILE")
    return card.but(camera="mirrored" if card.camera == "direct" else "direct", classes=mirrored_names(card.classes))
