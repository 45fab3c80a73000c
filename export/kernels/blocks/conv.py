"""Convolutions of more than one tap (3x3, 7x7, any stride), one group, on a copy of the input with a zero border."""
from __future__ import annotations

from tsm_edge.export.kernels.choose.choices import NONE
from tsm_edge.export.kernels.write import planes, sweep, tile
from tsm_edge.export.kernels.write.base import Kernel, ScratchArg
from tsm_edge.export.kernels.write.emit import Emitter
from tsm_edge.export.kernels.write.names import clip_name, splice_name

from . import operands


def matches(op):
    """Whether `op` (a ops.Conv) is a convolution that this module builds."""
    return op.groups == 1


def build(op, shapes, target, dtype="float32", choices=NONE):
    """The kernel of a dense convolution, with bias, clip, residual and splice.

    Parameters
    ----------
    op : ops.Conv with one group.
    shapes : dict of tensor name -> (h, w, c).
    choices : Choices of tile and order.

    dtype : of all tensors and weights.
    """
    (height, width, ic), (oh, ow, oc) = shapes[op.x], shapes[op.out]
    (kh, kw), (stride_y, stride_x), (top, left, bottom, right) = op.weight.shape[2:], op.stride, op.padding
    e, depth = Emitter(dtype), kh * kw * ic
    narrow = tile.narrows(e, target, op.x_dtype) and oc % target.lanes == 0 and not op.splice and not op.residual
    symbol = (f"conv_{height}x{width}_{ic}_{oc}_k{kh}x{kw}_s{stride_y}{stride_x}_p{top}_{left}_{bottom}_{right}"
              + clip_name(op.clip) + ("_add" if op.residual else "") + splice_name(op.splice) + choices.suffix()
              + ("_narrow" if narrow else ""))
    shape = tile.TileShape(*choices.tile) if choices.tile else tile.tile_shape(target, oh * ow, depth, oc, op.clip, ic * stride_x,
                                                                               narrow)
    if narrow:
        shape = tile.narrow_shape(shape)
    groups = tile.split_channels(oc, target.lanes, shape.vectors)
    packed = tile.pack_panels(op.weight.transpose(2, 3, 1, 0).reshape(depth, oc), op.bias, groups)
    has = operands.declare(e, op, shapes, packed, "float32" if narrow else None)
    source, args = has.x, has.args
    pitch = left + width + right  # pixels of a row, with the border
    padded_size = (top + height + bottom) * pitch * ic
    if any(op.padding) or op.splice:
        source = e.param("padded", padded_size, has.x.dtype)
        args += (ScratchArg((padded_size,)),)
        _pad(e, target.lanes, op, has, shapes[op.x], source)

    def body(block, index, group, panel):
        y, x = block.place(index)
        pixel = e.bind((y * (stride_y * pitch) + x * stride_x) * ic)
        steps = block.steps(stride_y * pitch * ic, stride_x * ic)
        place = e.bind((y * ow + x) * oc + group.channel(panel))
        out_steps = block.steps(ow * oc, oc)
        at = e.bind(tile.panel_offset(group, panel, depth))
        # the taps of one row of the window lie side by side, with their channels
        spans = [tile.Span(source, e.bind(pixel + ky * (pitch * ic)), steps, kw * ic) for ky in range(kh)]
        tile.compute(e, target, group, spans, has.weights, at, tile.Rows(has.out, place, out_steps), op.clip,
                     tile.Rows(has.residual, place, out_steps) if op.residual else None, narrow)

    image = sweep.blocks(oh, ow, shape.rows)
    by_panels = padded_size * 4 <= target.l2_bytes // 2 or packed.nbytes > target.l2_bytes // 2
    if choices.order:
        by_panels = choices.order == "panels"
    if by_panels:
        sweep.over_panels(e, image, groups, body, sweep.worth(oh * ow * depth * oc, target))
    else:
        sweep.over_tiles(e, image, groups, body, 1)
    return Kernel(symbol, "conv", e.function(symbol), args, oh * ow * depth * oc)


def _pad(e, lanes, op, has, shape, out):
    """out = x with a border of zeros; with a splice, its channels come from the cache and x's own go to next_cache."""
    (height, width, ic), (top, left, bottom, right) = shape, op.padding
    row = (width + left + right) * ic

    def fill(offset, count):
        planes.fill_elements(e, out, offset, count, lanes)

    fill(0, top * row)
    fill((top + height) * row, bottom * row)
    with e.loop(height, "parallel") as y:
        start = e.bind((y + top) * row)
        fill(start, left * ic)
        fill(start + (left + width) * ic, right * ic)
        if not op.splice:
            tile.copy(e, has.x, y * (width * ic), out, start + left * ic, width * ic, lanes)
        else:
            with e.loop(width) as x:
                pixel = e.bind(y * width + x)
                place = e.bind(start + (left + x) * ic)
                operands.splice_pixel(e, op.splice, ic, (has.x, pixel * ic), (has.cache, has.next_cache, pixel * has.fold),
                                      (out, place), lanes)
