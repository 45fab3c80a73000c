"""Kernels in half precision: the same builders, with vectors of twice the lanes and float16 tensors.

Everything between the frame and the logits is float16: activations, weights, caches (a cache holds activations, so it
loses nothing). Long sums are taken in blocks (aarch64.py). The two ends are float32: the frame and the first convolution's
sums (tile.narrows says why), the last layer's sums and the logits.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.export.graph import ops
from tsm_edge.export.kernels.write.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.write.emit import Emitter, cast

from . import dense


def build(builder, op, shapes, target):
    """The float16 kernel of `op`.

    Parameters
    ----------
    builder : the module's build function for float32.

    Returns
    -------
    Kernel, or None where `builder` has none or the target does not compute in float16.

    Raises
    ------
    InputError
        A weight is too large for float16.
    """
    if not target.fp16:
        return None
    if isinstance(op, ops.Dense):
        return _dense(op, target)
    # sizes of float16 elements: what the builders take for four bytes is two
    wide = replace(target, vector_bits=2 * target.vector_bits, l1_bytes=2 * target.l1_bytes,
                   l2_bytes=2 * target.l2_bytes)
    kernel = builder(op, shapes, wide, dtype="float16")
    if kernel is None:
        return None
    symbol = kernel.symbol + "_f16"
    args = tuple(_as_parameter(arg, str(parameter.dtype), op.name) for arg, parameter in zip(kernel.args, kernel.func.params))
    return replace(kernel, symbol=symbol, func=kernel.func.with_attr("global_symbol", symbol), args=args)


def _as_parameter(arg, dtype, name):
    """A kernel's argument with the type of the function's parameter."""
    if not isinstance(arg, WeightArg):
        return replace(arg, dtype=dtype)
    return WeightArg(_half(arg.array, name)) if dtype == "float16" else arg


def _half(array, name):
    largest = float(np.abs(array).max(initial=0))
    if largest > 65504:
        raise InputError(f"a weight of {name} does not fit float16", found=largest, expected="at most 65504",
                         do="leave --precision out for fp32")
    return array.astype("float16")


def _dense(op, target):
    """float16 input and float32 weights and sums; the result as the operation has it."""
    oc, ic = op.weight.shape
    dtype = op.out_dtype or "float16"
    e = Emitter()
    x, wide = e.param("x", ic, "float16"), e.param("wide", ic)
    groups, packed = dense.pack(op, target)
    weights = e.param("weights", packed.size)
    result = e.param("out", oc, dtype)
    out = result if dtype == "float32" else e.param("sums", oc)
    _convert(e, x, wide, ic, target.lanes, "float32")
    dense.emit(e, op, target, groups, wide, weights, out)
    args = [TensorArg(op.x, (ic,), "float16"), ScratchArg((ic,)), WeightArg(packed), TensorArg(op.out, (oc,), dtype)]
    if dtype == "float16":
        _convert(e, out, result, oc, target.lanes, dtype)
        args.append(ScratchArg((oc,)))
    symbol = dense.symbol(op) + f"_f16_{dtype}"
    return Kernel(symbol, "dense", e.function(symbol), tuple(args), ic * oc)


def _convert(e, source, out, count, lanes, dtype):
    for first, turns, size in ((0, count // lanes, lanes), (count // lanes * lanes, count % lanes, 1)):
        with e.loop(turns) as i:
            at = first + i * size
            e.store(out, at, cast(e.load(source, at, size), dtype, size), size)
