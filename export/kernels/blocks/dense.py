"""Fully connected layers: a matrix times one vector."""
from __future__ import annotations

from tsm_edge.export.kernels.write import sweep, tile
from tsm_edge.export.kernels.write.base import Kernel, TensorArg, WeightArg
from tsm_edge.export.kernels.write.emit import Emitter
from tsm_edge.export.kernels.write.names import clip_name


def build(op, shapes, target):
    """The kernel of a ops.Dense: out = clip(weight @ x + bias)."""
    oc, ic = op.weight.shape
    groups, packed = pack(op, target)
    e = Emitter()
    x, weights, out = e.param("x", ic), e.param("weights", packed.size), e.param("out", oc)
    emit(e, op, target, groups, x, weights, out)
    args = (TensorArg(op.x, (ic,)), WeightArg(packed), TensorArg(op.out, (oc,)))
    return Kernel(symbol(op), "dense", e.function(symbol(op)), args, ic * oc)


def symbol(op):
    oc, ic = op.weight.shape
    return f"dense_{ic}_{oc}" + clip_name(op.clip)


def pack(op, target):
    """(groups, packed weights) for `emit`."""
    groups = tile.split_channels(op.weight.shape[0], target.lanes, 4)
    return groups, tile.pack_panels(op.weight.T, op.bias, groups)


def emit(e, op, target, groups, x, weights, out):
    """The product itself, from and to buffers of the weights' type."""
    ic = op.weight.shape[1]

    def body(block, index, group, panel):
        at = e.bind(tile.panel_offset(group, panel, ic))
        tile.compute(e, target, group, [tile.Span(x, 0, (0,), ic)], weights, at,
                     tile.Rows(out, group.channel(panel), (0,)), op.clip)

    sweep.over_panels(e, sweep.blocks(1, 1, 1), groups, body, sweep.worth(op.weight.size, target))
