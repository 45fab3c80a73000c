"""Pooling: windows (max, average) and the average over the whole image.

Averages are summed in float32, in half precision too: in float16 a long sum would soon be too large for the next value to
count.
"""
from __future__ import annotations

from tvm import tirx

from tsm_edge.export.graph import ops
from tsm_edge.export.kernels.write import tile
from tsm_edge.export.kernels.write.base import Kernel, TensorArg
from tsm_edge.export.kernels.write.emit import Emitter, cast, fma, splat

SUM = "float32"


def build(op, shapes, target, dtype="float32"):
    """The kernel of a ops.Pool or ops.GlobalAveragePool, any size."""
    return (_window if isinstance(op, ops.Pool) else _global)(op, shapes, target, dtype)


def window(e, position, stride, before, taps, size):
    """First and one past the last tap of a window that lie inside the image, as expressions of an output position."""
    start = position * stride - before
    first = e.bind(tirx.max(0, 0 - start)) if before else 0
    return first, e.bind(tirx.min(taps, size - start))


def channel_vectors(e, channels, lanes):
    """Yield (first channel, lanes) of vectors that cover `channels`; what is emitted meanwhile runs for each of them."""
    whole = channels // lanes
    if whole:
        with e.loop(whole) as i:
            yield i * lanes, lanes
    for start, size in tile.pieces(channels % lanes, lanes):
        yield whole * lanes + start, size


def _window(op, shapes, target, dtype):
    (height, width, channels), (oh, ow, _) = shapes[op.x], shapes[op.out]
    (kh, kw), (stride_y, stride_x), (top, left, bottom, right) = op.kernel, op.stride, op.padding
    biggest = op.kind == "max"
    symbol = (f"{op.kind}pool_{height}x{width}_{channels}_{oh}x{ow}_k{kh}x{kw}_s{stride_y}{stride_x}"
              f"_p{top}_{left}_{bottom}_{right}")
    e = Emitter(dtype)
    x, out = e.param("x", height * width * channels), e.param("out", oh * ow * channels)
    with e.loop(oh, "parallel") as oy:
        ky0, ky1 = window(e, oy, stride_y, top, kh, height)
        with e.loop(ow) as ox:
            kx0, kx1 = window(e, ox, stride_x, left, kw, width)
            scale = None if biggest else e.bind(
                splat(1.0, 1, SUM) / tirx.Cast(SUM, (ky1 - ky0) * (kx1 - kx0)))
            for channel, lanes in channel_vectors(e, channels, target.lanes):
                acc = e.vector(lanes, None if biggest else SUM)
                acc.set(splat(-3.402823466e38, lanes, dtype) if biggest else splat(0.0, lanes, SUM))
                with e.loop(ky1 - ky0) as ky:
                    row = e.bind((oy * stride_y - top + ky0 + ky) * width)
                    with e.loop(kx1 - kx0) as kx:
                        place = (row + (ox * stride_x - left + kx0 + kx)) * channels + channel
                        value = e.load(x, place, lanes)
                        acc.set(tirx.Max(acc.get(), value) if biggest else acc.get() + cast(value, SUM, lanes, e.dtype))
                value = acc.get() if biggest else cast(acc.get() * splat(scale, lanes), e.dtype, lanes, SUM)
                e.store(out, (oy * ow + ox) * channels + channel, value, lanes)
    args = (TensorArg(op.x, (height * width * channels,)), TensorArg(op.out, (oh * ow * channels,)))
    return Kernel(symbol, "pool", e.function(symbol), args, 0)


def _global(op, shapes, target, dtype):
    height, width, channels = shapes[op.x]
    symbol = f"globalpool_{height}x{width}_{channels}"
    e = Emitter(dtype)
    x, out = e.param("x", height * width * channels), e.param("out", channels)
    for group in tile.split_channels(channels, target.lanes, 4):
        with e.loop(group.count, "parallel") as panel:
            first = e.bind(group.channel(panel))
            parts, at = [], 0
            for lanes in group.chunks:
                parts += [(at + start, size, e.vector(size, SUM)) for start, size in
                          tile.pieces(min(lanes, group.valid - at), lanes)]
                at += lanes
            for _, size, acc in parts:
                acc.set(splat(0.0, size, SUM))
            with e.loop(height * width) as pixel:
                for at, size, acc in parts:
                    value = cast(e.load(x, pixel * channels + (first + at), size), SUM, size, e.dtype)
                    acc.set(fma(value, splat(1.0 / (height * width), size, SUM), acc.get()))
            for at, size, acc in parts:
                e.store(out, first + at, cast(acc.get(), e.dtype, size, SUM), size)
    args = (TensorArg(op.x, (height * width * channels,)), TensorArg(op.out, (channels,)))
    return Kernel(symbol, "global_pool", e.function(symbol), args, 0)
