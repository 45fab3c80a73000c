"""Convolutions of more than one tap (3x3, 7x7, any stride), one group, on a copy of the input with a zero border."""
from __future__ import annotations

from tsm_edge.export.kernels.choose.choices import NONE
from tsm_edge.export.kernels.write import sweep, tile
from tsm_edge.export.kernels.write.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.write.emit import Emitter, splat
from tsm_edge.export.kernels.write.names import clip_name, splice_name


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
    kh, kw = op.weight.shape[2:]
    (stride_y, stride_x), (top, left, bottom, right) = op.stride, op.padding
    fold = op.splice.stop - op.splice.start if op.splice else 0
    symbol = (f"conv_{height}x{width}_{ic}_{oc}_k{kh}x{kw}_s{stride_y}{stride_x}_p{top}_{left}_{bottom}_{right}"
              + clip_name(op.clip) + ("_add" if op.residual else "") + splice_name(op.splice) + choices.suffix())

    e = Emitter(dtype)
    narrow = tile.narrows(e, target, op.x_dtype) and oc % target.lanes == 0 and not fold and not op.residual
    symbol += "_narrow" if narrow else ""
    dtype = "float32" if narrow else None  # of all but the result
    depth = kh * kw * ic
    shape = tile.TileShape(*choices.tile) if choices.tile else tile.tile_shape(target, oh * ow, depth, oc, op.clip, ic * stride_x,
                                                                               narrow)
    if narrow:
        shape = tile.narrow_shape(shape)
    groups = tile.split_channels(oc, target.lanes, shape.vectors)
    packed = tile.pack_panels(op.weight.transpose(2, 3, 1, 0).reshape(depth, oc), op.bias, groups)
    padded_height, padded_width = height + top + bottom, width + left + right
    needs_copy = any(op.padding) or bool(fold)

    args = [TensorArg(op.x, (height * width * ic,))]
    if fold:
        args += [TensorArg(name, (height * width * fold,)) for name in (op.splice.cache, op.splice.next_cache)]
    args.append(WeightArg(packed))
    args += [TensorArg(name, (oh * ow * oc,)) for name in (op.residual, op.out) if name]
    if needs_copy:
        args.append(ScratchArg((padded_height * padded_width * ic,)))

    x = e.param("x", height * width * ic, dtype)
    cache = e.param("cache", height * width * fold) if fold else None
    next_cache = e.param("next_cache", height * width * fold) if fold else None
    weights = e.param("weights", packed.size, dtype)
    residual = e.param("residual", oh * ow * oc) if op.residual else None
    out = e.param("out", oh * ow * oc)
    source = x
    if needs_copy:
        source = e.param("padded", padded_height * padded_width * ic, dtype)
        _pad(e, target.lanes, x, source, (height, width, ic), op.padding, op.splice, cache, next_cache)

    def body(block, index, group, panel):
        y, x_ = block.place(index)
        pixel = e.bind((y * (stride_y * padded_width) + x_ * stride_x) * ic)
        steps = block.steps(stride_y * padded_width * ic, stride_x * ic)
        place = e.bind((y * ow + x_) * oc + group.channel(panel))
        out_steps = block.steps(ow * oc, oc)
        at = e.bind(tile.panel_offset(group, panel, depth))
        # the taps of one row of the window lie side by side, with their channels
        spans = [tile.Span(source, e.bind(pixel + ky * (padded_width * ic)), steps, kw * ic) for ky in range(kh)]
        tile.compute(e, target, group, spans, weights, at, tile.Rows(out, place, out_steps), op.clip,
                     tile.Rows(residual, place, out_steps) if op.residual else None, narrow)

    image = sweep.blocks(oh, ow, shape.rows)
    by_panels = padded_height * padded_width * ic * 4 <= target.l2_bytes // 2 or packed.nbytes > target.l2_bytes // 2
    if choices.order:
        by_panels = choices.order == "panels"
    if by_panels:
        sweep.over_panels(e, image, groups, body, sweep.worth(oh * ow * depth * oc, target))
    else:
        sweep.over_tiles(e, image, groups, body, 1)
    return Kernel(symbol, "conv", e.function(symbol), tuple(args), oh * ow * depth * oc)


def _pad(e, lanes, x, out, shape, padding, splice, cache, next_cache):
    """out = x with a border of zeros; with a splice, its channels come from the cache and x's own go to next_cache."""
    height, width, ic = shape
    top, left, bottom, right = padding
    row = (width + left + right) * ic
    fold = splice.stop - splice.start if splice else 0

    def fill(offset, count):
        with e.loop(count // lanes) as i:
            e.store(out, offset + i * lanes, splat(0.0, lanes, out.dtype), lanes)
        for start, size in tile.pieces(count % lanes, lanes):
            e.store(out, offset + (count // lanes * lanes + start), splat(0.0, size, out.dtype), size)

    fill(0, top * row)
    fill((top + height) * row, bottom * row)
    with e.loop(height, "parallel") as y:
        start = e.bind((y + top) * row)
        fill(start, left * ic)
        fill(start + (left + width) * ic, right * ic)
        if not splice:
            tile.copy(e, x, y * (width * ic), out, start + left * ic, width * ic, lanes)
        else:
            with e.loop(width) as x_:
                pixel = e.bind(y * width + x_)
                place = e.bind(start + (left + x_) * ic)
                tile.copy(e, x, pixel * ic, out, place, splice.start, lanes)
                tile.copy(e, cache, pixel * fold, out, place + splice.start, fold, lanes)
                tile.copy(e, x, pixel * ic + splice.start, next_cache, pixel * fold, fold, lanes)
                tile.copy(e, x, pixel * ic + splice.stop, out, place + splice.stop, ic - splice.stop, lanes)
