"""Our TensorIR kernels: `build` makes one for an operation of the step program, `fuse` decides what is fused first.

Each module of blocks/ has `build(op, shapes, target, dtype="float32") -> Kernel | None` for its operations.
A kernel's tensors are flat buffers, row-major; activations are (h, w, c).
"""
from __future__ import annotations

import functools
import importlib

from tsm_edge.export.graph import ops

# operation -> module of blocks/ that builds it
_BUILDERS = {
    ops.Dense: "dense",
    ops.InvertedResidual: "inverted_residual",
    ops.Pool: "pool",
    ops.GlobalAveragePool: "pool",
    ops.Add: "elementwise",
    ops.ApplySplice: "elementwise",
    ops.Layout: "elementwise",
}


def build(op, shapes, target, precision="fp32", choices=None):
    """The kernel for one operation.

    Parameters
    ----------
    op : an operation of tsm_edge.export.graph.ops
    shapes : dict of tensor name -> shape, as in Program.shapes
    target : Target
    precision : "fp32" or "fp16"
    choices : Choices (choose/choices.py) for the free parameters of its kind of kernel; None leaves them to the builder

    Returns
    -------
    Kernel, or None where there is no kernel of ours for it.
    """
    name = _conv_builder(op) if isinstance(op, ops.Conv) else _BUILDERS.get(type(op))
    if name is None:
        return None
    if name == "conv" and precision == "fp32" and not choices:
        winograd = importlib.import_module(f"{__name__}.blocks.winograd")
        m = winograd.way(op, shapes, target)
        if m:
            return winograd.build(op, shapes, target, m)
    builder = importlib.import_module(f"{__name__}.blocks.{name}").build
    if choices:
        builder = functools.partial(builder, choices=choices)
    if precision == "fp16":
        from tsm_edge.export.kernels.blocks import half

        return half.build(builder, op, shapes, target)
    return builder(op, shapes, target)


def _conv_builder(op):
    if op.groups == 1:
        pointwise = tuple(op.weight.shape[2:]) == (1, 1) and not any(op.padding)
        return "pointwise" if pointwise else "conv"
    return "depthwise" if op.weight.shape[1] == 1 else None


def fuse(step):
    """The program with operations fused; see fusion.py."""
    return importlib.import_module(f"{__name__}.fusion").fuse(step)
