"""1x1 convolutions: a matrix product of pixels x channels, with the splice of a cache as a second source."""
from __future__ import annotations

from tsm_edge.export.kernels.choose.choices import NONE
from tsm_edge.export.kernels.write import sweep, tile
from tsm_edge.export.kernels.write.base import Kernel
from tsm_edge.export.kernels.write.emit import Emitter
from tsm_edge.export.kernels.write.names import clip_name, splice_name

from . import operands


def matches(op):
    """Whether `op` (a ops.Conv) is a 1x1 convolution that this module builds."""
    return op.groups == 1 and tuple(op.weight.shape[2:]) == (1, 1) and not any(op.padding)


def build(op, shapes, target, dtype="float32", choices=NONE):
    """The kernel of a 1x1 convolution of any stride, with bias, clip, residual and splice.

    Parameters
    ----------
    op : ops.Conv for which `matches` holds.
    shapes : dict of tensor name -> (h, w, c).
    choices : Choices of tile and order (of a 1x1 convolution of stride 1).

    dtype : of all tensors and weights.
    """
    (height, width, ic), (oh, ow, oc) = shapes[op.x], shapes[op.out]
    stride_y, stride_x = op.stride
    flat = (stride_y, stride_x) == (1, 1)
    if flat:  # then rows need not be told apart
        height, width, oh, ow = 1, height * width, 1, oh * ow
    symbol = f"pointwise_{height}x{width}_{ic}_{oc}" + ("" if flat else f"_s{stride_y}{stride_x}")
    symbol += clip_name(op.clip) + ("_add" if op.residual else "") + splice_name(op.splice) + choices.suffix()
    shape = tile.TileShape(*choices.tile) if choices.tile else tile.tile_shape(target, oh * ow, ic, oc, op.clip, ic * stride_x)
    groups = tile.split_channels(oc, target.lanes, shape.vectors)
    e = Emitter(dtype)
    has = operands.declare(e, op, shapes, tile.pack_panels(op.weight[:, :, 0, 0].T, op.bias, groups))

    def body(block, index, group, panel):
        y, x = block.place(index)
        pixel = e.bind(y * (stride_y * width) + x * stride_x)
        place = e.bind((y * ow + x) * oc + group.channel(panel))
        out_steps = block.steps(ow * oc, oc)
        at = e.bind(tile.panel_offset(group, panel, ic))
        spans = _spans(e, op, has, ic, pixel, block.steps(stride_y * width, stride_x))
        tile.compute(e, target, group, spans, has.weights, at, tile.Rows(has.out, place, out_steps), op.clip,
                     tile.Rows(has.residual, place, out_steps) if op.residual else None)

    def keep(first, count):
        """next_cache = the spliced channels' own values, for `count` pixels from `first` on."""
        with e.loop(count) as i:
            pixel = e.bind(first + i)
            tile.copy(e, has.x, pixel * ic + op.splice.start, has.next_cache, pixel * has.fold, has.fold, target.lanes)

    image = sweep.blocks(oh, ow, shape.rows)
    by_panels = not flat or oh * ow * ic * 4 <= target.l2_bytes // 2  # the whole input stays near: weights come once
    if flat and choices.order:
        by_panels = choices.order == "panels"
    if by_panels:
        if has.fold:
            keep(0, height * width)
        sweep.over_panels(e, image, groups, body, sweep.worth(oh * ow * ic * oc, target))
    else:
        run = sweep.run_length(image, max(1, target.l1_bytes // 2 // (4 * ic * shape.rows)), target.threads)
        before = (lambda block, first, length: keep(block.place(first)[1], length * block.width)) if has.fold else None
        sweep.over_tiles(e, image, groups, body, run, before)
    in_place = (op.residual,) if op.residual and op.residual != op.x else ()
    return Kernel(symbol, "pointwise", e.function(symbol), has.args, oh * ow * ic * oc, in_place)


def _spans(e, op, has, ic, pixel, steps):
    """Where the inputs of the pixels `steps` from `pixel` on lie: their own channels, and the cache's among them."""
    def own(start, stop):
        return tile.Span(has.x, e.bind(pixel * ic + start), tuple(step * ic for step in steps), stop - start)

    if not has.fold:
        return [own(0, ic)]
    old = tile.Span(has.cache, e.bind(pixel * has.fold), tuple(step * has.fold for step in steps), has.fold)
    return [span for span in (own(0, op.splice.start), old, own(op.splice.stop, ic)) if span.count]
