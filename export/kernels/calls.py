"""From a program to kernel calls: ours where there is a kernel of ours, else TVM's legalisation."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.export.graph.ops import Conv, Fallback, Layout, Program
from tsm_edge.export.kernels.choose.record import Applied
from tsm_edge.export.kernels.generic import lower

from . import build, fuse

MOST_GROUPS = 8  # grouped convolutions are computed as full ones up to this many groups


@dataclass(frozen=True)
class Chosen:
    """The kernels of a program.

    program : after fusion. calls : (operation, Kernel), in order; an operation may take several kernels.
    fallbacks : ONNX operations that TVM's own legalisation computes, "Sigmoid (3)". notes : lines for the report.
    """

    program: Program
    calls: list
    fallbacks: list
    notes: list


def choose_kernels(program, target, precision="fp32", tuning=None):
    """The kernels of a program: ours where there is one, else TVM's legalisation.

    Parameters
    ----------
    program : Program
    target : Target
    precision : "fp32" or "fp16"
    tuning : choose.record.Record or None
        What to choose in kernels instead of what their cost model would.

    Returns
    -------
    Chosen

    Raises
    ------
    InputError
        In half precision, for an operation that has no kernel of ours.
    """
    choose = Applied(tuning) if tuning else None
    program = fuse(program)
    calls, fell_back = [], Counter()
    for op in program.ops:
        kernel = make_kernel(op, program.shapes, target, precision, choose)
        if kernel is not None:
            calls.append((op, kernel))
            continue
        if precision != "fp32":
            raise InputError(f"{op.name} has no {precision} kernel", found=_op_names(op),
                             expected="operations with kernels of ours", do="leave --precision out for fp32")
        calls += [(op, part) for part in lower.lower(op, program.shapes, target)]
        if not isinstance(op, Layout):
            fell_back.update(op.ops if isinstance(op, Fallback) else [type(op).__name__])
    fallbacks = [f"{name} ({count})" if count > 1 else name for name, count in sorted(fell_back.items())]
    return Chosen(program, calls, fallbacks, [choose.note()] if choose else [])


def make_kernel(op, shapes, target, precision="fp32", choose=None):
    """The kernel of ours for an operation, or None.

    choose : given the kernel as its cost model has it, returns the Choices to build it with, or None.
    """
    if isinstance(op, Fallback):
        return None
    kernel, groups = build(op, shapes, target, precision), 1
    if kernel is None and isinstance(op, Conv) and 1 < op.groups <= MOST_GROUPS:
        op, groups = _ungrouped(op), op.groups
        kernel = build(op, shapes, target, precision)
    choices = choose(kernel) if choose and kernel else None
    if choices:
        kernel = build(op, shapes, target, precision, choices)
    return replace(kernel, macs=kernel.macs // groups) if kernel and groups > 1 else kernel


def _ungrouped(op):
    """The same convolution with one group: zeros where groups do not meet. Dearer, yet far below a loop nest as it is."""
    oc, per_group, kh, kw = op.weight.shape
    weight = np.zeros((oc, per_group * op.groups, kh, kw), op.weight.dtype)
    for group in range(op.groups):
        rows = slice(group * oc // op.groups, (group + 1) * oc // op.groups)
        weight[rows, group * per_group:(group + 1) * per_group] = op.weight[rows]
    return replace(op, weight=weight, groups=1)


def _op_names(op):
    return ", ".join(op.ops) if isinstance(op, Fallback) else type(op).__name__
