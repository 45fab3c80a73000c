"""Which operations become one kernel.

A depthwise convolution between two pointwise ones (or before one) becomes a ops.InvertedResidual where nothing else
looks at the tensors between them.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tsm_edge.export.graph import ops
from tsm_edge.export.kernels.blocks import inverted_residual


def fuse(step):
    """The program with the operations fused that can be.

    Parameters
    ----------
    step : ops.Program

    Returns
    -------
    ops.Program with the same inputs and outputs; `step` itself is not changed.
    """
    uses = _uses(step)
    makers = {op.out: op for op in step.ops if isinstance(op, ops.Conv)}
    blocks, gone = {}, set()
    for project in makers.values():
        depthwise = makers.get(project.x)
        if depthwise is None or uses[project.x] != 1 or id(depthwise) in gone:
            continue
        expand = makers.get(depthwise.x)
        if expand is not None and (uses[depthwise.x] != 1 or id(expand) in gone):
            expand = None
        for first in (expand, None) if expand else (None,):
            block = ops.InvertedResidual(_name(first, depthwise, project), first, depthwise, project)
            if inverted_residual.matches(block, step.shapes):
                blocks[id(project)] = block
                gone.update(id(op) for op in (first, depthwise) if op)
                break
    return replace(step, ops=[blocks.get(id(op), op) for op in step.ops if id(op) not in gone])


def _uses(step):
    """How many operations read each tensor; the step's own results count as read."""
    uses = Counter([step.logits, *(splice.next_cache for splice in step.caches)])
    for op in step.ops:
        uses.update(ops.inputs_of(op))
    return uses


def _name(expand, depthwise, project):
    """The common beginning of the operations' names, or the first one's."""
    names = [op.name for op in (expand, depthwise, project) if op]
    common = names[0]
    while not all(name.startswith(common) for name in names):
        common = common[:-1]
    return common.rstrip("._/") or names[0]
