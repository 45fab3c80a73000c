"""The step program: the step graph as a list of fused operations, channels last, weights as numpy arrays.

It stands between the ONNX file and the kernels. Tensors are named; activations have shape (h, w, c) (the batch of one
is dropped) and vectors (n,). An operation computes `out = clip(op(x) + bias + residual)`; parts that are None are left out.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Splice:
    """Channels [start, stop) of an operation's input come from `cache`; the input's own are kept in `next_cache`."""

    cache: str
    next_cache: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Conv:
    """2D convolution. weight: (oc, ic // groups, kh, kw); bias: (oc,); padding: (top, left, bottom, right)."""

    name: str
    x: str
    out: str
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    clip: tuple[float, float] | None = None  # (0, inf) is ReLU, (0, 6) is ReLU6
    residual: str | None = None  # added before the clip
    splice: Splice | None = None
    x_dtype: str | None = None  # "float32": x is that in a program of half precision, too


@dataclass(frozen=True, eq=False)
class InvertedResidual:
    """expand (1x1, may be None), depthwise (3x3), project (1x1) as one kernel; the tensors between them never exist."""

    name: str
    expand: Conv | None
    depthwise: Conv
    project: Conv

    @property
    def x(self):
        return (self.expand or self.depthwise).x

    @property
    def out(self):
        return self.project.out


@dataclass(frozen=True, eq=False)
class Dense:
    """out = clip(weight @ x + bias). weight: (oc, ic); x: (ic,); out: (oc,)."""

    name: str
    x: str
    out: str
    weight: np.ndarray
    bias: np.ndarray
    clip: tuple[float, float] | None = None
    out_dtype: str | None = None  # "float32": out is that in a program of half precision, too


@dataclass(frozen=True)
class Pool:
    """kind "max" or "average" over windows (padding not counted in an average)."""

    name: str
    kind: str
    x: str
    out: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class GlobalAveragePool:
    """(h, w, c) -> (c,)."""

    name: str
    x: str
    out: str


@dataclass(frozen=True)
class Add:
    """out = clip(a + b), same shapes."""

    name: str
    a: str
    b: str
    out: str
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class ApplySplice:
    """A splice that no kernel takes in: out = x with channels [start, stop) from the cache; next_cache = x's own."""

    name: str
    x: str
    out: str
    splice: Splice


@dataclass(frozen=True)
class Layout:
    """Between channels last (h, w, c) and channels first (c, h, w), around fallback operations. to: "chw" or "hwc"."""

    name: str
    x: str
    out: str
    to: str


@dataclass(frozen=True, eq=False)
class Fallback:
    """ONNX nodes left to TVM's own legalisation, on channels-first tensors. `model` is a one-purpose onnx.ModelProto."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: object
    ops: tuple[str, ...]  # ONNX op types, for the report


@dataclass
class Program:
    """The whole step. `shapes` holds every tensor; `frame`, `logits` and the caches are the ends."""

    ops: list
    shapes: dict[str, tuple[int, ...]]  # activation (h, w, c); vector (n,); channels-first fallback tensors as they are
    frame: str = "frame"  # (h, w, 3), RGB, normalised
    logits: str = "logits"
    caches: list[Splice] = field(default_factory=list)  # in execution order; cache shape (h, w, stop - start)


def inputs_of(op):
    """Names of the tensors an operation (or an ONNX node) reads, caches included."""
    if hasattr(op, "inputs"):
        return [name for name in op.inputs if name]
    if hasattr(op, "project"):
        stages = [s for s in (op.expand, op.depthwise, op.project) if s is not None]
        made = {s.out for s in stages}
        return [name for s in stages for name in inputs_of(s) if name not in made]
    if hasattr(op, "b"):
        return [op.a, op.b]
    names = [op.x]
    if getattr(op, "splice", None):
        names.append(op.splice.cache)
    if getattr(op, "residual", None):
        names.append(op.residual)
    return names


def outputs_of(op):
    """Names of the tensors an operation (or an ONNX node) writes, next caches included."""
    if hasattr(op, "outputs"):
        return [name for name in op.outputs if name]
    if hasattr(op, "project"):
        stages = [s for s in (op.expand, op.depthwise, op.project) if s is not None]
        return [s.splice.next_cache for s in stages if s.splice] + [op.out]
    return [op.out] + ([op.splice.next_cache] if getattr(op, "splice", None) else [])
