"""The parameters of a convolution's kernel, in the order that all of them have; and how a pixel takes in its cache."""
from __future__ import annotations

import math
from dataclasses import dataclass

from tsm_edge.export.kernels.write import tile
from tsm_edge.export.kernels.write.base import TensorArg, WeightArg


@dataclass(frozen=True, eq=False)
class Operands:
    """Buffers of one convolution; what it has not is None. args : the same for Kernel. fold : channels of its splice."""

    x: object
    cache: object
    next_cache: object
    weights: object
    residual: object
    out: object
    args: tuple
    fold: int


def declare(e, op, shapes, packed, dtype=None):
    """Make the parameters of the kernel of `op` (an ops.Conv).

    packed : the weights as the kernel reads them, flat. dtype : of the input and the weights, if not as all else.
    """
    size, out_size = math.prod(shapes[op.x]), math.prod(shapes[op.out])
    fold = op.splice.stop - op.splice.start if op.splice else 0
    kept = size // shapes[op.x][2] * fold
    args = []

    def tensor(parameter, name, count, dtype=None):
        if not name:
            return None
        args.append(TensorArg(name, (count,)))
        return e.param(parameter, count, dtype)

    x = tensor("x", op.x, size, dtype)
    cache, next_cache = (tensor(key, op.splice and getattr(op.splice, key), kept) for key in ("cache", "next_cache"))
    args.append(WeightArg(packed))
    weights = e.param("weights", packed.size, dtype)
    return Operands(x, cache, next_cache, weights, tensor("residual", op.residual, out_size), tensor("out", op.out, out_size),
                    tuple(args), fold)


def splice_pixel(e, splice, channels, own, cached, out, lanes):
    """Write one pixel with the cache's channels in it; its own ones go to the next cache.

    own : (buffer, offset) of the pixel's `channels`. cached : (cache, next cache, offset in both). out : (buffer, offset).
    """
    (x, at), (cache, next_cache, kept), (to, place) = own, cached, out
    start, stop = splice.start, splice.stop
    tile.copy(e, x, at, to, place, start, lanes)
    tile.copy(e, cache, kept, to, place + start, stop - start, lanes)
    tile.copy(e, x, at + start, next_cache, kept, stop - start, lanes)
    tile.copy(e, x, at + stop, to, place + stop, channels - stop, lanes)
