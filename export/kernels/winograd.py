"""3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 multiplications for 4 outputs and one channel, instead of 36.

The image is cut into tiles of 2 x 2 outputs, which look at 4 x 4 inputs. Inputs and weights are transformed (B' d B and,
when exporting, G w G'); then there are 16 matrix products, tiles x input channels by input x output channels; A' m A turns
them into outputs. Transforms only add and subtract, and halve weights: the result is as exact as float32 sums are.

Tiles are worked through in strips whose transformed inputs stay in L2; threads share the strips.
"""
from __future__ import annotations

import numpy as np
from tvm import tirx

from tsm_edge.export.kernels import forms, planes, tile
from tsm_edge.export.kernels.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.emit import Emitter, clipped
from tsm_edge.export.kernels.names import clip_name

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_FEWEST_TILES = 28  # fewer do not use each of the transformed weights, which are nearly twice as many, often enough


def pays(op, shapes, target):
    """Whether `op` (a program.Conv) is one that is faster this way; measured on x86-64 only."""
    (oh, ow, oc), ic = shapes[op.out], shapes[op.x][2]
    return (forms.apart(target) and target.lanes >= 8 and op.groups == 1 and op.splice is None
            and tuple(op.weight.shape[2:]) == (3, 3) and op.stride == (1, 1)
            and ic % target.lanes == 0 and oc % target.lanes == 0 and ic >= 32 and oc >= 32
            and -(-oh // 2) * -(-ow // 2) >= _FEWEST_TILES)


def transformed(weight, groups):
    """weight [oc, ic, 3, 3] as the products read it: per panel of output channels [16][ic][width], flat."""
    values = np.einsum("ai,ocij,bj->abco", _G, weight.astype(np.float64), _G).reshape(16, weight.shape[1], -1)
    values = values.astype("float32")
    return np.concatenate([values[:, :, group.channel(number):group.channel(number) + group.width].reshape(-1)
                           for group in groups for number in range(group.count)])


def build(op, shapes, target):
    """The kernel of a 3x3 convolution for which `pays` holds, with bias, clip and residual."""
    (height, width, ic), (oh, ow, oc) = shapes[op.x], shapes[op.out]
    top, left = op.padding[:2]
    lanes, tasks = target.lanes, target.threads
    down, across = -(-oh // 2), -(-ow // 2)
    tiles = down * across
    strips = -(-tiles * 16 * ic * 4 // (target.l2_bytes // 2))
    strips = min(-(-strips // tasks) * tasks, tiles)
    size = -(-tiles // strips)  # tiles of a strip
    symbol = (f"winograd_{height}x{width}_{ic}_{oc}_p{'_'.join(map(str, op.padding))}{clip_name(op.clip)}"
              f"{'_add' if op.residual else ''}_{strips}_t{tasks}")
    shape = tile.tile_shape(target, size, ic, oc)
    groups = tile.split_channels(oc, lanes, shape.vectors)
    weights_array = transformed(op.weight, groups)
    rows, pitch = 2 * down + 2, (2 * across + 2) * ic
    panel = max(group.width for group in groups)

    e = Emitter()
    args = [TensorArg(op.x, (height * width * ic,)), WeightArg(weights_array), WeightArg(op.bias.astype("float32")),
            *(TensorArg(name, (oh * ow * oc,)) for name in (op.residual, op.out) if name),
            ScratchArg((rows * pitch,)), ScratchArg((tasks * 16 * size * ic,)), ScratchArg((tasks * 16 * size * panel,))]
    x = e.param("x", height * width * ic)
    weights, bias = e.param("weights", weights_array.size), e.param("bias", oc)
    residual = e.param("residual", oh * ow * oc) if op.residual else None
    out, padded = e.param("out", oh * ow * oc), e.param("padded", rows * pitch)
    inputs, products = e.param("inputs", tasks * 16 * size * ic), e.param("products", tasks * 16 * size * panel)

    with e.loop(rows, "parallel") as row:  # with a border of zeros that the last tiles may look at, too
        y = e.bind(row - top)

        def copy(row=row, y=y):
            start = e.bind(row * pitch)
            planes.fill_elements(e, padded, start, left * ic, lanes)
            planes.copy_elements(e, x, e.bind(y * (width * ic)), padded, e.bind(start + left * ic), width * ic, lanes)
            planes.fill_elements(e, padded, e.bind(start + (left + width) * ic), pitch - (left + width) * ic, lanes)

        e.choose(tirx.And(planes.at_least(y, 0), planes.at_least(height - 1, y)), copy,
                 lambda row=row: planes.fill_elements(e, padded, e.bind(row * pitch), pitch, lanes))

    def transform(first, base):
        """Inputs of the strip's tiles: [16][size][ic] from `base` on."""
        with e.loop(size) as number:
            index = e.bind(planes.minimum(first + number, tiles - 1))  # the last strip may be shorter: any tile will do
            corner = e.bind(tirx.floordiv(index, across) * (2 * pitch) + tirx.floormod(index, across) * (2 * ic))
            with e.loop(ic // lanes) as vector:
                at = e.bind(corner + vector * lanes)
                d = [[e.bind(e.load(padded, at + (r * pitch + c * ic), lanes)) for c in range(4)] for r in range(4)]
                d = [list(column) for column in zip(*(_inputs(e, column) for column in zip(*d)))]
                place = e.bind(base + number * ic + vector * lanes)
                for k, value in enumerate(value for row in d for value in _inputs(e, row)):
                    e.store(inputs, place + k * size * ic, value, lanes)

    def multiply(group, offset, source, result):
        """The 16 products of one panel: [16][size][width] from `result` on."""
        with e.loop(16) as k:
            at = e.bind(offset + k * (ic * group.width))
            for start, count, height_ in tile.split_rows(size, shape.rows):
                with e.loop(count) as number:
                    first = e.bind(k * size + start + number * height_)
                    acc = tile.Tile(e, target, height_, group.chunks)
                    acc.zero()
                    steps = tuple(i * ic for i in range(height_))
                    acc.multiply([tile.Span(inputs, e.bind(source + first * ic), steps, ic)], weights, at)
                    steps = tuple(i * group.width for i in range(height_))
                    acc.finish(tile.Rows(products, e.bind(result + first * group.width), steps))

    def finish(group, channel, first, result):
        """Outputs of the strip's tiles, one panel."""
        with e.loop(e.bind(planes.minimum(size, tiles - first))) as number, e.loop(len(group.chunks)) as vector:
            at = e.bind(result + number * group.width + vector * lanes)
            m = [[e.bind(e.load(products, at + (r * 4 + c) * size * group.width, lanes)) for c in range(4)] for r in range(4)]
            m = [list(row) for row in zip(*(_outputs(e, column) for column in zip(*m)))]
            here = e.bind(channel + vector * lanes)
            shift = e.bind(e.load(bias, here, lanes))
            y = e.bind(tirx.floordiv(first + number, across) * 2)
            x_ = e.bind(tirx.floormod(first + number, across) * 2)
            for r, row in enumerate(m):
                for c, value in enumerate(_outputs(e, row)):
                    value = e.bind(value + shift)
                    place = e.bind(((y + r) * ow + (x_ + c)) * oc + here)
                    inside = [planes.at_least(limit - 1, at_ + 1) for step, limit, at_ in ((r, oh, y), (c, ow, x_))
                              if step and limit % 2]
                    with e.when(tirx.And(*inside) if len(inside) == 2 else inside[0] if inside else True):
                        if op.residual:
                            value = value + e.load(residual, place, lanes)
                        e.store(out, place, clipped(value, op.clip, lanes), lanes)

    with e.loop(tasks, "parallel") as task:
        source, result = e.bind(task * (16 * size * ic)), e.bind(task * (16 * size * panel))
        begin, end = (e.bind(tirx.floordiv((task + i) * strips, tasks)) for i in (0, 1)) if tasks > 1 else (0, strips)
        with e.loop(end - begin) as number:
            first = e.bind((begin + number) * size)
            with e.when(planes.at_least(tiles - 1, first)):
                transform(first, source)
                for group in groups:
                    with e.loop(group.count) as panel_number:
                        channel = e.bind(group.channel(panel_number))
                        multiply(group, e.bind(channel * (16 * ic)), source, result)
                        finish(group, channel, first, result)
    return Kernel(symbol, "winograd", e.function(symbol), tuple(args), oh * ow * oc * ic * 9)


def _inputs(e, d):
    """B' d, for four vectors."""
    return [e.bind(d[0] - d[2]), e.bind(d[1] + d[2]), e.bind(d[2] - d[1]), e.bind(d[1] - d[3])]


def _outputs(e, m):
    """A' m, for four vectors."""
    return [e.bind(m[0] + m[1] + m[2]), e.bind(m[1] - m[2] - m[3])]
