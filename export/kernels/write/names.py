"""The parts that kernel symbols are made of: everything that shapes the code, nothing else."""
from __future__ import annotations

import math


def number(value):
    """A float as part of a C identifier: 6.0 -> "6", -0.5 -> "m0p5"."""
    if math.isinf(value):
        return "inf" if value > 0 else "minf"
    return f"{value:.9g}".replace("-", "m").replace(".", "p").replace("+", "")


def clip_name(clip):
    """"" for None, "_relu", "_relu6", or both ends spelt out."""
    if clip is None:
        return ""
    low, high = (float(value) for value in clip)
    if low == 0 and high == math.inf:
        return "_relu"
    if low == 0:
        return f"_relu{number(high)}"
    return f"_clip_{number(low)}_{number(high)}"


def splice_name(splice):
    return f"_splice{splice.start}_{splice.stop}" if splice else ""
