"""Depthwise convolutions: each channel with its own window."""
from __future__ import annotations

import numpy as np

from tsm_edge.export.kernels.write.base import Kernel
from tsm_edge.export.kernels.write.emit import Emitter, clipped, fma
from tsm_edge.export.kernels.write.names import clip_name

from . import operands
from .pool import channel_vectors, window


def build(op, shapes, target, dtype="float32"):
    """The kernel of a depthwise convolution (ops.Conv with as many groups as channels), any size and stride.

    Returns
    -------
    Kernel, or None for what it does not take: several outputs of one channel or a splice.
    """
    channels = shapes[op.x][2]
    if op.splice or op.weight.shape[0] != channels or op.groups != channels:
        return None
    (height, width, _), (oh, ow, _) = shapes[op.x], shapes[op.out]
    kh, kw = op.weight.shape[2:]
    (stride_y, stride_x), (top, left, bottom, right) = op.stride, op.padding
    symbol = (f"depthwise_{height}x{width}_{channels}_k{kh}x{kw}_s{stride_y}{stride_x}"
              f"_p{top}_{left}_{bottom}_{right}{clip_name(op.clip)}" + ("_add" if op.residual else ""))
    packed = np.concatenate([np.asarray(op.bias)[None], op.weight[:, 0].transpose(1, 2, 0).reshape(kh * kw, channels)])
    e = Emitter(dtype)
    has = operands.declare(e, op, shapes, packed.astype("float32").reshape(-1))
    with e.loop(oh, "parallel") as oy:
        ky0, ky1 = window(e, oy, stride_y, top, kh, height)
        with e.loop(ow) as ox:
            kx0, kx1 = window(e, ox, stride_x, left, kw, width)
            for channel, lanes in channel_vectors(e, channels, target.lanes):
                acc = e.vector(lanes)
                acc.set(e.load(has.weights, channel, lanes))
                with e.loop(ky1 - ky0) as ky:
                    row = e.bind((oy * stride_y - top + ky0 + ky) * width)
                    with e.loop(kx1 - kx0) as kx:
                        pixel = e.bind(row + (ox * stride_x - left + kx0 + kx))
                        tap = e.bind((ky0 + ky) * kw + (kx0 + kx) + 1)
                        acc.set(fma(e.load(has.x, pixel * channels + channel, lanes),
                                    e.load(has.weights, tap * channels + channel, lanes), acc.get()))
                place = e.bind((oy * ow + ox) * channels + channel)
                value = acc.get()
                if op.residual:
                    value = value + e.load(has.residual, place, lanes)
                e.store(has.out, place, clipped(value, op.clip, lanes), lanes)
    return Kernel(symbol, "depthwise", e.function(symbol), has.args, oh * ow * channels * kh * kw)
