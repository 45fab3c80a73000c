"""Operations that only move or add values: additions, splices that no other kernel takes in, layout changes."""
from __future__ import annotations

import math

from tsm_edge.export.graph import ops
from tsm_edge.export.kernels.write import tile
from tsm_edge.export.kernels.write.base import Kernel, TensorArg
from tsm_edge.export.kernels.write.emit import Emitter, clipped
from tsm_edge.export.kernels.write.names import clip_name, splice_name

from . import operands


def build(op, shapes, target, dtype="float32"):
    """The kernel of a ops.Add, ApplySplice or Layout."""
    builder = {ops.Add: _add, ops.ApplySplice: _splice, ops.Layout: _layout}[type(op)]
    return builder(op, shapes, target, dtype)


def _add(op, shapes, target, dtype):
    count, lanes = math.prod(shapes[op.out]), target.lanes
    symbol = f"add_{count}{clip_name(op.clip)}"
    e = Emitter(dtype)
    a, b, out = (e.param(name, count) for name in ("a", "b", "out"))

    def sum_at(place, size):
        e.store(out, place, clipped(e.load(a, place, size) + e.load(b, place, size), op.clip, size), size)

    step = 4 * lanes
    with e.loop(count // step, "parallel") as i:
        for u in range(4):
            sum_at(i * step + u * lanes, lanes)
    for start, size in tile.pieces(count % step, lanes):
        sum_at(count // step * step + start, size)
    args = tuple(TensorArg(name, (count,)) for name in (op.a, op.b, op.out))
    return Kernel(symbol, "add", e.function(symbol), args, 0)


def _splice(op, shapes, target, dtype):
    height, width, channels = shapes[op.x]
    pixels, fold, lanes = height * width, op.splice.stop - op.splice.start, target.lanes
    symbol = f"splice_{pixels}_{channels}{splice_name(op.splice)}"
    e = Emitter(dtype)
    x, cache = e.param("x", pixels * channels), e.param("cache", pixels * fold)
    next_cache, out = e.param("next_cache", pixels * fold), e.param("out", pixels * channels)
    with e.loop(pixels, "parallel") as pixel:
        own, kept = e.bind(pixel * channels), e.bind(pixel * fold)
        operands.splice_pixel(e, op.splice, channels, (x, own), (cache, next_cache, kept), (out, own), lanes)
    args = (TensorArg(op.x, (pixels * channels,)), TensorArg(op.splice.cache, (pixels * fold,)),
            TensorArg(op.splice.next_cache, (pixels * fold,)), TensorArg(op.out, (pixels * channels,)))
    return Kernel(symbol, "splice", e.function(symbol), args, 0)


def _layout(op, shapes, target, dtype):
    if op.to == "chw":
        height, width, channels = shapes[op.x]
    else:
        height, width, channels = shapes[op.out]
    pixels = height * width
    symbol = f"layout_{op.to}_{pixels}_{channels}"
    e = Emitter(dtype)
    x, out = e.param("x", pixels * channels), e.param("out", pixels * channels)
    strip = 8  # pixels or channels side by side in the output, so that a line of it is written at once
    last_outer, last_inner = (channels, pixels) if op.to == "chw" else (pixels, channels)

    def move(outer, first, count):
        for inner in range(count):
            place = (first + inner) * last_outer + outer
            e.store(out, outer * last_inner + (first + inner), e.load(x, place), 1)

    with e.loop(last_inner // strip, "parallel") as i, e.loop(last_outer) as outer:
        move(outer, i * strip, strip)
    if last_inner % strip:
        with e.loop(last_outer) as outer:
            move(outer, last_inner // strip * strip, last_inner % strip)
    args = (TensorArg(op.x, (pixels * channels,)), TensorArg(op.out, (pixels * channels,)))
    return Kernel(symbol, "layout", e.function(symbol), args, 0)
