"""3x3 convolutions of stride 1 by Winograd's F(m x m, 3x3), m = 2 or 4 (Lavin, Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016): 4 or 2.25 multiplications for an output and a channel, instead of 9.

The image is cut into tiles of m x m outputs, which look at (m + 2) x (m + 2) inputs. Inputs and weights are transformed
(B' d B and, when exporting, G w G'); then there are (m + 2)^2 matrix products, tiles x input channels by input x output
channels; A' m A turns them into outputs. The points of interpolation are 0, 1, -1 and infinity for m = 2, which only adds and
subtracts; for m = 4 they are 0, +-sqrt(1/2), +-sqrt(2) and infinity, at which the error is half of that at the usual
0, +-1, +-2: it is 4 times that of m = 2, 1e-6 of the outputs' size.

Tiles are worked through in strips whose transformed inputs stay in L2. Where each core has an L2 of its own, threads share
the strips; else they share a strip's tiles for the transform and then its output channels, so that weights come in once.
"""
from __future__ import annotations

import math

import numpy as np
from tvm import tirx

from tsm_edge.export.kernels.arm import aarch64
from tsm_edge.export.kernels.choose import strip_cost
from tsm_edge.export.kernels.write import planes, tile
from tsm_edge.export.kernels.write.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.write.emit import Emitter, clipped, fma, lanes_of, splat
from tsm_edge.export.kernels.write.names import clip_name

_A, _B = math.sqrt(0.5), math.sqrt(2.0)
_G = {2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
      4: np.array([[1, 0, 0], *([s, s * p, s * p * p] for s, p in ((-2 / 3, _A), (-2 / 3, -_A), (1 / 6, _B), (1 / 6, -_B))),
                   [0, 0, 1]])}
_FEWEST_TILES = 28  # on x86-64 fewer do not use each of the transformed weights, which are 2 or 4 times as many, often enough
_TRANSFORM = {2: (64, 60), 4: (230, 240)}  # instructions for one tile and a vector of input, of output channels
_OVERHEAD = 1.1  # instructions of a product for each multiply-add


def way(op, shapes, target):
    """The m that is fastest for `op` (a ops.Conv) on `target`, or None: not this way.

    For x86-64 measured (ResNet-50: 4 % less time than with m = 2 alone). For ARM a model: instructions, and as much for each
    byte of weights from beyond L2 (four cores at 1.5 GHz that share 8 GB/s).
    """
    (oh, ow, oc), ic = shapes[op.out], shapes[op.x][2]
    if not (op.groups == 1 and op.splice is None and tuple(op.weight.shape[2:]) == (3, 3) and op.stride == (1, 1)
            and ic % target.lanes == 0 and oc % target.lanes == 0 and ic >= 32 and oc >= 32):
        return None
    if strip_cost.apart(target):
        ways = [m for m in (4, 2) if -(-oh // m) * -(-ow // m) >= _FEWEST_TILES]
        return ways[0] if ways and target.lanes >= 8 else None
    if target.arch != "aarch64":
        return None

    def cost(m):
        if m is None:
            return 9 * ic * oc * (_OVERHEAD * oh * ow / target.lanes + 4)
        tiles, products = -(-oh // m) * -(-ow // m), (m + 2) ** 2
        transforms = tiles * (ic * _TRANSFORM[m][0] + oc * _TRANSFORM[m][1]) / target.lanes
        return products * ic * oc * (_OVERHEAD * tiles / target.lanes + 4) + transforms

    return min((None, 2, 4), key=cost)


def transformed(weight, groups, m):
    """weight [oc, ic, 3, 3] as the products read it: per panel of output channels [(m + 2)^2][ic][width], flat."""
    values = np.einsum("ai,ocij,bj->abco", _G[m], weight.astype(np.float64), _G[m]).reshape((m + 2) ** 2, weight.shape[1], -1)
    values = values.astype("float32")
    return np.concatenate([values[:, :, group.channel(number):group.channel(number) + group.width].reshape(-1)
                           for group in groups for number in range(group.count)])


def build(op, shapes, target, m):
    """The kernel of a 3x3 convolution, with bias, clip and residual, for an m that `way` may give."""
    return _Builder(op, shapes, target, m).kernel()


class _Builder:
    def __init__(self, op, shapes, target, m):
        self.op, self.target, self.m, self.lanes, self.tasks = op, target, m, target.lanes, target.threads
        (self.height, self.width, self.ic), (self.oh, self.ow, self.oc) = shapes[op.x], shapes[op.out]
        self.down, self.across = -(-self.oh // m), -(-self.ow // m)
        self.tiles, self.points = self.down * self.across, (m + 2) ** 2
        self.apart = strip_cost.apart(target)
        strips = -(-self.tiles * self.points * self.ic * 4 // (target.l2_bytes // 2))
        if self.apart:
            strips = -(-strips // self.tasks) * self.tasks
        self.strips = min(strips, self.tiles)
        self.size = -(-self.tiles // self.strips)  # tiles of a strip
        self.shape = tile.tile_shape(target, self.size, self.ic, self.oc)
        self.groups = tile.split_channels(self.oc, self.lanes, self.shape.vectors)
        self.panel = max(group.width for group in self.groups)
        self.rows, self.pitch = m * self.down + 2, (m * self.across + 2) * self.ic  # of the padded input
        self.e = Emitter()

    def kernel(self):
        e, op = self.e, self.op
        weights = transformed(op.weight, self.groups, self.m)
        pixels, near, far = self.oh * self.ow, self.points * self.size * self.ic, self.points * self.size * self.panel
        copies = self.tasks if self.apart else 1
        args = [TensorArg(op.x, (self.height * self.width * self.ic,)), WeightArg(weights), WeightArg(op.bias.astype("float32")),
                *(TensorArg(name, (pixels * self.oc,)) for name in (op.residual, op.out) if name),
                ScratchArg((self.rows * self.pitch,)), ScratchArg((copies * near,)), ScratchArg((self.tasks * far,))]
        self.x = e.param("x", self.height * self.width * self.ic)
        self.weights, self.bias = e.param("weights", weights.size), e.param("bias", self.oc)
        self.residual = e.param("residual", pixels * self.oc) if op.residual else None
        self.out, self.padded = e.param("out", pixels * self.oc), e.param("padded", self.rows * self.pitch)
        self.inputs, self.products = e.param("inputs", copies * near), e.param("products", self.tasks * far)
        self.pad()
        if self.apart:
            with e.loop(self.tasks, "parallel") as task:
                source, result = e.bind(task * near), e.bind(task * far)
                begin, end = self.share(task, self.strips)
                with e.loop(end - begin) as number:
                    first = e.bind((begin + number) * self.size)
                    with e.when(planes.at_least(self.tiles - 1, first)):
                        self.transform(first, 0, self.size, source)
                        for group in self.groups:
                            self.panels(group, 0, group.count, first, source, result)
        else:
            with e.loop(self.strips) as strip:
                first = e.bind(strip * self.size)
                with e.loop(self.tasks, "parallel") as task:
                    begin, end = self.share(task, self.size)
                    self.transform(first, begin, end, 0)
                with e.loop(self.tasks, "parallel") as task:
                    result = e.bind(task * far)
                    for group in self.groups:
                        self.panels(group, *self.share(task, group.count), first, 0, result)
        symbol = (f"winograd{self.m}_{self.height}x{self.width}_{self.ic}_{self.oc}_p{'_'.join(map(str, op.padding))}"
                  f"{clip_name(op.clip)}{'_add' if op.residual else ''}_{self.strips}_t{self.tasks}")
        return Kernel(symbol, "winograd", e.function(symbol), tuple(args), pixels * self.oc * self.ic * 9)

    def share(self, task, count):
        """The part [first, last) of `count` things that is task number `task`'s."""
        if self.tasks == 1:
            return 0, count
        return tuple(self.e.bind(tirx.floordiv((task + i) * count, self.tasks)) for i in (0, 1))

    def pad(self):
        """The input with a border of zeros that the last tiles may look at, too."""
        e, ic, lanes = self.e, self.ic, self.lanes
        top, left = self.op.padding[:2]
        right = self.pitch - (left + self.width) * ic
        with e.loop(self.rows, "parallel") as row:
            y = e.bind(row - top)

            def copy():
                start = e.bind(row * self.pitch)
                planes.fill_elements(e, self.padded, start, left * ic, lanes)
                planes.copy_elements(e, self.x, e.bind(y * (self.width * ic)), self.padded, e.bind(start + left * ic),
                                     self.width * ic, lanes)
                planes.fill_elements(e, self.padded, e.bind(start + (left + self.width) * ic), right, lanes)

            e.choose(tirx.And(planes.at_least(y, 0), planes.at_least(self.height - 1, y)), copy,
                     lambda: planes.fill_elements(e, self.padded, e.bind(row * self.pitch), self.pitch, lanes))

    def transform(self, first, begin, end, base):
        """Inputs of the tiles [begin, end) of the strip that begins at tile `first`: [points][size][ic] from `base` on."""
        e, ic, lanes, m, side = self.e, self.ic, self.lanes, self.m, range(self.m + 2)
        with e.loop(end - begin) as turn:
            number = e.bind(begin + turn)
            index = e.bind(planes.minimum(first + number, self.tiles - 1))  # the last strip may be shorter: any tile will do
            corner = e.bind(tirx.floordiv(index, self.across) * (m * self.pitch) + tirx.floormod(index, self.across) * (m * ic))
            with e.loop(ic // lanes) as vector:
                at = e.bind(corner + vector * lanes)
                place = e.bind(base + number * ic + vector * lanes)
                columns = [_inputs(e, [e.bind(e.load(self.padded, at + (r * self.pitch + c * ic), lanes)) for r in side])
                           for c in side]
                for r in side:
                    for c, value in enumerate(_inputs(e, [column[r] for column in columns])):
                        e.store(self.inputs, place + (r * (m + 2) + c) * self.size * ic, value, lanes)

    def panels(self, group, begin, end, first, source, result):
        """Outputs of a strip's tiles, the panels [begin, end) of a group of channels."""
        with self.e.loop(end - begin) as turn:
            channel = self.e.bind(group.channel(begin + turn))
            self.multiply(group, self.e.bind(channel * (self.points * self.ic)), source, result)
            self.finish(group, channel, first, result)

    def multiply(self, group, offset, source, result):
        """The products of one panel: [points][size][width] from `result` on."""
        e, ic, size = self.e, self.ic, self.size
        with e.loop(self.points) as k:
            at = e.bind(offset + k * (ic * group.width))
            for start, count, height in tile.split_rows(size, self.shape.rows):
                with e.loop(count) as number:
                    row = e.bind(k * size + start + number * height)
                    span = tile.Span(self.inputs, e.bind(source + row * ic), tuple(i * ic for i in range(height)), ic)
                    out = tile.Rows(self.products, e.bind(result + row * group.width),
                                    tuple(i * group.width for i in range(height)))
                    if tile.written_out(e, self.target, group, [(span, aarch64.Spacing(span.steps), ic)], self.weights, at,
                                        (out, aarch64.Spacing(out.steps)), limits=(False, False)):
                        continue
                    acc = tile.Tile(e, self.target, height, group.chunks)
                    acc.zero()
                    acc.multiply([span], self.weights, at)
                    acc.finish(out)

    def finish(self, group, channel, first, result):
        """Outputs of the strip's tiles, one panel."""
        e, op, m, lanes, side = self.e, self.op, self.m, self.lanes, range(self.m + 2)
        with e.loop(e.bind(planes.minimum(self.size, self.tiles - first))) as number, e.loop(len(group.chunks)) as vector:
            at = e.bind(result + number * group.width + vector * lanes)
            columns = [_outputs(e, [e.bind(e.load(self.products, at + (r * (m + 2) + c) * self.size * group.width, lanes))
                                    for r in side]) for c in side]
            here = e.bind(channel + vector * lanes)
            shift = e.bind(e.load(self.bias, here, lanes))
            y = e.bind(tirx.floordiv(first + number, self.across) * m)
            x = e.bind(tirx.floormod(first + number, self.across) * m)
            for r in range(m):
                for c, value in enumerate(_outputs(e, [column[r] for column in columns])):
                    value = e.bind(value + shift)
                    place = e.bind(((y + r) * self.ow + (x + c)) * self.oc + here)
                    inside = [planes.at_least(limit - 1 - step, begin) for step, limit, begin in ((r, self.oh, y), (c, self.ow, x))
                              if limit % m and step >= limit % m]  # the last tiles may reach over the image's end
                    with e.when(tirx.And(*inside) if len(inside) == 2 else inside[0] if inside else True):
                        if op.residual:
                            value = value + e.load(self.residual, place, lanes)
                        e.store(self.out, place, clipped(value, op.clip, lanes), lanes)


def _inputs(e, d):
    """B' d, for m + 2 vectors."""
    if len(d) == 4:
        return [e.bind(d[0] - d[2]), e.bind(d[1] + d[2]), e.bind(d[2] - d[1]), e.bind(d[1] - d[3])]

    times = _adder(e, d[0])
    even, odd = times(d[2], -2.0, d[4]), times(d[1], -2.0, d[3])
    wide, broad = times(d[2], -0.5, d[4]), times(d[1], -0.5, d[3])
    return [times(d[2], -2.5, e.bind(d[0] + d[4])), times(odd, _A, even), times(odd, -_A, even),
            times(broad, _B, wide), times(broad, -_B, wide), times(d[3], -2.5, e.bind(d[1] + d[5]))]


def _outputs(e, m):
    """A' m, for m + 2 vectors."""
    if len(m) == 4:
        return [e.bind(m[0] + m[1] + m[2]), e.bind(m[1] - m[2] - m[3])]

    times, lanes = _adder(e, m[0]), lanes_of(m[0])
    even, odd, wide, broad = e.bind(m[1] + m[2]), e.bind(m[1] - m[2]), e.bind(m[3] + m[4]), e.bind(m[3] - m[4])
    return [e.bind(m[0] + even + wide), times(broad, _B, e.bind(odd * splat(_A, lanes, e.dtype))),
            times(wide, 2.0, e.bind(even * splat(0.5, lanes, e.dtype))), times(broad, _B ** 3, times(odd, _A ** 3, m[5]))]


def _adder(e, like):
    """A function (value, factor, more) -> value * factor + more, for vectors like this one."""
    lanes = lanes_of(like)
    return lambda value, factor, more: e.bind(fma(value, splat(factor, lanes, e.dtype), more))
