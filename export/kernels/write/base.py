"""What a kernel is: one TensorIR function with its shapes baked in, and what it is called with."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorArg:
    """A tensor of the program, by name. shape is the kernel's own view of it (same element count, row-major)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class WeightArg:
    """A constant, packed as the kernel wants it. It lives in the library's read-only data, 64-byte aligned."""

    array: np.ndarray


@dataclass(frozen=True)
class ScratchArg:
    """Memory that is the kernel's own while it runs (arena, 64-byte aligned, content undefined at entry)."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Kernel:
    """One compiled operation.

    symbol : name of the TensorIR function, made from everything that shapes its code (not weights, not tensor names):
        two operations with the same symbol share the code.
    kind : "pointwise", "depthwise", "inverted_residual", "conv", "dense", "pool", ..., for reports.
    func : tvm PrimFunc; its parameters are `args` in order. May contain parallel loops.
    args : TensorArg | WeightArg | ScratchArg, in the order of func's parameters.
    macs : multiply-accumulates of one call (useful ones; halo work done twice is not counted twice).
    in_place : names of inputs that the output may lie over (same size): the kernel reads each of their elements before it
        writes the output's element in the same place, on the same thread, and not again after.
    """

    symbol: str
    kind: str
    func: object
    args: tuple
    macs: int
    in_place: tuple[str, ...] = ()
