"""The card of a network: what it is, what it expects and how its answers become events, said in one place.

A checkpoint holds a card, `create_model` gives one to the network (`net.card`), training fills it in, and what a bundle, an
ONNX file or an engine says of a network is its card's `manifest()`. FIELDS is all that a card can say, with the words in
which every command and function refuses a value that cannot be used. A network of one's own may bring a plain dict of such
values instead, `net.tsm_info`. Needs nothing but Python, 3.6 or later.
"""
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError
from .jester import CLASSES
from .picture import shorter_side

WIDTH = 0.1, 4.0  # least and most: width multipliers,
SIDE = 8, 2048  # and pixels a side of a network's input: from an array of thermometers to more than a board can use
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values 0 to 1
# The smoothing of the published online demo for its 27 Jester classes: the logits of 12 frames summed; both directions
# of rolling and turning a hand, and pulling it in, are masked; "Doing other things" counts as "No gesture".
JESTER_DEMO = {"window": 12, "hold": 2, "on": 0.0, "off": 0.0, "merge": {"0": 2}, "ignore": [7, 8, 21, 22, 3],
               "background": [2]}
BACKGROUND = ("no gesture", "doing other things", "background", "nothing")


def background_of(classes: "Sequence[str]") -> "list[int]":
    """Numbers of the classes that say that nothing happens, however they are written: "No gesture", "no_gesture", "Nothing"."""
    return [i for i, name in enumerate(classes) if " ".join(re.sub("[-_]", " ", name.casefold()).split()) in BACKGROUND]


def event_rule(classes: "Sequence[str]", trained: bool) -> dict:
    """How scores become events where nobody says otherwise: the manifest's "events".

    The published classes, with trained weights, take the smoothing of their online demo; others the same without masked and
    merged classes, and with a threshold.
    """
    if trained and tuple(classes) == CLASSES:
        return dict(JESTER_DEMO)
    return dict(JESTER_DEMO, on=0.3, off=0.2, merge={}, ignore=[], background=background_of(classes))


def check_classes(classes: object, outputs: "int | None" = None) -> "list[str]":
    """Class names as a list of str; `outputs`: those of a network with so many.

    Raises
    ------
    InputError
        No list of names, the same name twice, or not one for each output.
    """
    names = list(classes) if hasattr(classes, "__iter__") and not isinstance(classes, (str, bytes, Mapping)) else []
    named = bool(names) and all(isinstance(name, str) and name.strip() for name in names)
    name, times = Counter(names).most_common(1)[0] if named else ("", 0)
    if named and times == 1 and outputs in (None, len(names)):
        return [str(name) for name in names]
    found = repr(classes)[:200] if not named else f"'{name}' twice" if times > 1 else f"{len(names)} names"
    raise InputError("the class names cannot be used", found=found,
                     expected="different names" if outputs is None else f"{outputs} different names, one for each output",
                     do="for example classes=['left', 'right'] for a network with two outputs")


# Each of these gives a value back as a card holds it, or raises TypeError, ValueError or OverflowError.


def _only(good, value):
    if not good:
        raise ValueError
    return value


def _text(value):
    return _only(isinstance(value, str) and value, value)


def _choice(*words):
    return lambda value: _only(isinstance(value, str) and value in words, value)


def _flag(value):
    return _only(value in (True, False), bool(value))


def _whole(least, most):
    return lambda value: _only(not isinstance(value, bool) and least <= operator.index(value) <= most, operator.index(value))


def _number(least, most):
    return lambda value: _only(not isinstance(value, (bool, str)) and least <= float(value) <= most, float(value))


def _three(least):
    return lambda values: _only(len(values) == 3, tuple(map(_number(least, 1e300), values)))


def _folds(value):
    start, stop = map(operator.index, value)
    return _only(0 <= start < stop, (start, stop))


def _size(value):
    one = hasattr(value, "__index__") and not hasattr(value, "__len__")
    width, height = map(_whole(*SIDE), (value, value) if one else value)
    return width, height


def _dict(value):
    return _only(isinstance(value, Mapping), dict(value))


FIELDS = {  # name: (usual value, how a value is read, which values there are, an example)
    "name": ("network", _text, "mobilenet_v2, resnet18, resnet50, or the class of a network of one's own", "name='mobilenet_v2'"),
    "model_name": (None, _text, "text: what its bundles call the model", "model_name='gestures'"),
    "num_classes": (None, _whole(1, 10 ** 6), "a whole number, 1 to 1000000", "num_classes=27"),
    "classes": (None, check_classes, "names", "classes=['left', 'right']"),
    "width": (1.0, _number(*WIDTH), "a width multiplier, {:g} to {:g}".format(*WIDTH), "width=1.4, or --width 1.4"),
    "rounding": ("reference", _choice("reference", "mmaction2"), "reference or mmaction2", "rounding='reference'"),
    "input_size": ((224, 224), _size, "pixels a side, or (width, height), each {} to {}".format(*SIDE),
                   "input_size=(224, 224), or --input-size 224x224"),
    "shift": (None, _choice("online", "offline"), "online, offline, or None without shifts", "shift='online'"),
    "past": (None, _folds, "(start, stop) in folds of channels", "past=(0, 1)"),
    "future": (None, _folds, "(start, stop) in folds of channels", "future=(0, 1)"),
    "fold_div": (8, _whole(1, 65536), "a whole number, at least 1", "fold_div=8"),
    "placement": ("residual", _choice("residual", "inplace"), "residual or inplace", "placement='residual'"),
    "n_segment": (8, _whole(1, 10 ** 6), "frames of a clip, at least 1", "n_segment=8"),
    "mean": (MEAN, _three(-1e300), "three numbers", f"mean={MEAN}"),
    "std": (STD, _three(1e-12), "three numbers above 0", f"std={STD}"),
    "resize": ("crop", _choice("crop", "squash"), "crop or squash", "resize='crop'"),
    "filter": ("antialias", _choice("antialias", "bilinear"), "antialias or bilinear", "filter='antialias'"),
    "fps": (0.0, _number(0, 1e6), "frames a second, 0 for every frame", "fps=12"),
    "camera": ("direct", _choice("direct", "mirrored"), "direct or mirrored: whether the picture is as a mirror shows it",
               "camera='direct'"),
    "max_gap_seconds": (1.0, _number(0, 1e9), "seconds, 0 for any", "max_gap_seconds=1"),
    "trained": (True, _flag, "true or false", "trained=True"),
    "events": (None, _dict, "window, hold, on, off, merge, ignore and background", "none, for the usual rule"),
    "notes": ((), lambda value: [_text(note) for note in value], "sentences", "notes=[]"),
    "checkpoint": (None, _dict, "what is known of the weights: kind, shift, past, future", "none"),
}


def check(name: str, value: Any) -> Any:
    """A value as FIELDS reads it.

    Raises
    ------
    InputError
    """
    _, read, words, example = FIELDS[name]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"the network's {name.replace('_', ' ')} cannot be used", found=f"{name}={value!r}"[:200],
                         expected=words, do=f"for example {example}") from None


def parse_size(text: str) -> "tuple[int, int]":
    """An input size as it is typed, "224" or "256x192", -> (width, height).

    Raises
    ------
    InputError
    """
    match = re.match(r"\s*(\d{1,9})(?:[xX](\d{1,9}))?\s*$", text)
    return check("input_size", (int(match.group(1)), int(match.group(2) or match.group(1))) if match else text)


class Card(Mapping):
    """What is known of a network. `card.width` is what was said, else the usual value; `card["width"]` is the same.

    A card does not change: `card.but(...)` is another. `card.said` has only what was said; None says nothing, but for
    `shift=None`: nothing is shifted.

    Parameters
    ----------
    info : mapping
        Values by the names of FIELDS; others are left out.

    Raises
    ------
    InputError
        A value that cannot be used, or class names that are not one for each of num_classes.
    """

    __slots__ = ("said",)

    def __init__(self, info=()):
        info = {name: value for name, value in dict(info).items() if name in FIELDS and (value is not None or name == "shift")}
        self.said = {name: None if value is None else check(name, value) for name, value in info.items() if name != "classes"}
        if "classes" in info:
            self.said["classes"] = check_classes(info["classes"], self.num_classes)

    @classmethod
    def of(cls, net: Any) -> "Card":
        """A network's card: `net.card`, else what `net.tsm_info` says, else what its class is called and nothing more."""
        if isinstance(getattr(net, "card", None), cls):
            return net.card
        card = cls(getattr(net, "tsm_info", None) or {})
        return card if "name" in card.said else card.but(name=type(net).__name__)

    def but(self, **given: Any) -> "Card":
        """Who is heard: what is given here, else what this card says, else the usual value."""
        unknown = sorted(set(given) - set(FIELDS))
        if unknown:
            raise TypeError("a card has no " + ", ".join(unknown))
        return Card({**self.said, **{name: value for name, value in given.items() if value is not None}})

    def manifest(self, outputs: "int | None" = None) -> dict:
        """The blocks name, trained, classes, input, stream, events and network of manifest.json, as a dict.

        outputs : number of logits; num_classes when None.

        Raises
        ------
        InputError
            Class names that are not one for each output.
        """
        outputs = self.num_classes if outputs is None else outputs
        classes = check_classes(self.classes or [f"class {i}" for i in range(outputs)], outputs)
        ending = "-untrained" if not self.trained else "-jester" if tuple(classes) == CLASSES else ""
        width, height = self.input_size
        return {
            "name": self.model_name or self.name + ending,
            "trained": self.trained,
            "classes": classes,
            "input": {
                "width": width, "height": height, "colour": "RGB", "resize": self.resize,
                "shorter_side": shorter_side(width, height) if self.resize == "crop" else 0,
                "filter": self.filter, "mean": list(self.mean), "std": list(self.std), "camera": self.camera,
            },
            "stream": {"fps": self.fps, "max_gap_seconds": self.max_gap_seconds},
            "events": dict(self.events or event_rule(classes, self.trained)),
            "network": {"arch": self.name, "width": self.width, "fold_div": self.fold_div,
                        "past": list(self.past) if self.past else None, "n_segment": self.n_segment},
        }

    def __getitem__(self, name):
        return self.said.get(name, FIELDS[name][0])

    def __getattr__(self, name):
        if name not in FIELDS:
            raise AttributeError(f"a card has no {name}")
        return self[name]

    def __iter__(self):
        return iter(FIELDS)

    def __len__(self):
        return len(FIELDS)

    def __repr__(self):
        return f"Card({self.said!r})"


def amend(net: Any, **changes: Any) -> None:
    """Change what a network says of itself: its card, or, of a network of one's own that has none, `tsm_info`."""
    if isinstance(getattr(net, "card", None), Card):
        net.card = net.card.but(**changes)
    else:
        net.tsm_info = {**(getattr(net, "tsm_info", None) or {}), **changes}
