"""What may be chosen differently in a kernel without changing what it computes, for tuning to try.

Builders take a `Choices`; what it leaves None, the builder's own cost model decides.
"""
from __future__ import annotations

from dataclasses import dataclass, fields

from tsm_edge.export.kernels.arm import aarch64

VERSION = 1  # of the kernels, for tuning records: raised when a choice means something else or better defaults outdate it
ORDERS = ("panels", "tiles")
_LIMITS = {"tile": (28, 8), "panel": (28, 8)}  # rows, vectors
_MOST_ROWS = 4096


@dataclass(frozen=True)
class Choices:
    """Free parameters of one kernel; None leaves one to the builder.

    tile : (rows, vectors) of the register tile of the product; in a fused block, of its projection.
    panel : (rows, vectors) of the register tile of a fused block's expansion; its vectors are the chunk of channels.
    strip, group : a fused block's output rows in a strip, and rows that one panel gets done at a time.
    order : "panels" outside (each weight comes from memory once) or "tiles" outside (each input does).
    """

    tile: tuple[int, int] | None = None
    panel: tuple[int, int] | None = None
    strip: int | None = None
    group: int | None = None
    order: str | None = None

    def as_dict(self):
        """What is chosen, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in values.items() if value is not None}

    def suffix(self):
        """The part of a kernel's symbol that tells it from the one without choices."""
        parts = [f"{key[0]}{'x'.join(map(str, value))}" for key, value in (("tile", self.tile), ("panel", self.panel))
                 if value]
        parts += [f"{key[0]}{value}" for key, value in (("strip", self.strip), ("group", self.group)) if value]
        return "".join("_" + part for part in ["with", *parts, *([self.order] if self.order else [])]) if self else ""

    def __bool__(self):
        return any(getattr(self, f.name) is not None for f in fields(self))


NONE = Choices()
OF_KIND = {"pointwise": ("tile", "order"), "conv": ("tile", "order"),
           "inverted_residual": ("tile", "panel", "strip", "group")}


def from_dict(values, kind):
    """The inverse of `Choices.as_dict`, for a kernel of `kind`.

    Raises
    ------
    ValueError
        Says what is wrong: something that such kernels have not, or a value out of bounds.
    """
    if not isinstance(values, dict):
        raise ValueError("choices are no JSON object")
    for key, value in values.items():
        if key not in OF_KIND.get(kind, ()):
            raise ValueError(f"'{key}', which kernels of kind '{kind}' do not have")
        if key in _LIMITS:
            good = isinstance(value, list) and len(value) == 2 and all(
                type(n) is int and 1 <= n <= most for n, most in zip(value, _LIMITS[key]))
        else:
            good = value in ORDERS if key == "order" else type(value) is int and 1 <= value <= _MOST_ROWS
        if not good:
            raise ValueError(f"{key} = {value!r}")
    return Choices(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def candidates(kind, target, rows):
    """What is worth trying for a kernel: {group of parameters: [Choices]}, each changing that group only.

    rows : output rows of the image.
    """
    tiles = _tiles(target)
    found = {}
    if "tile" in OF_KIND.get(kind, ()):
        found["tile"] = [Choices(tile=tile) for tile in tiles]
    if "order" in OF_KIND.get(kind, ()):
        found["order"] = [Choices(order=order) for order in ORDERS]
    if "strip" in OF_KIND.get(kind, ()):
        found["panel"] = [Choices(panel=tile) for tile in tiles]
        strips = sorted({min(rows, n) for n in (2, 4, 7, 14, rows)})
        found["strip"] = [Choices(strip=strip, group=group) for strip in strips
                          for group in sorted({min(strip, n) for n in (1, 2, 4, 7)}) if strip % group == 0]
    return found


def _tiles(target):
    """(rows, vectors) that use most of the vector registers, widest first."""
    most = {vectors: max((rows for rows in range(1, 29) if _fits(target, rows, vectors)), default=0)
            for vectors in (4, 3, 2, 1)}
    tiles = [(rows, vectors) for vectors, rows in most.items() if rows]
    return tiles + [(rows - 1, vectors) for rows, vectors in tiles if rows > 4 and vectors > 1]


def _fits(target, rows, vectors):
    if target.arch == "aarch64":
        return rows <= 8 and aarch64.fits(rows, vectors)
    return rows * vectors + vectors + 1 <= target.vector_registers and rows <= 14
