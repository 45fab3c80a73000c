"""The first part of a fused block: what fills the planes that the depthwise window slides over.

Three kinds of it: a 1x1 convolution of the block's input (`Pointwise`), any other convolution (`Windowed`, the network's
first one), or the input itself (`Copied`). Each brings the input it needs near (`fetch`), then makes rows of the planes of
one panel of channels after the other (`rows`, or `image` for all rows at once).

The bias of the convolution is moved behind its clip: clip(s + b, low, high) = clip(s, low - b, high - b) + b. The planes
hold the part without b; so their border is not 0 but -b, and the depthwise bias takes in the rest (`moved_bias`).
"""
from __future__ import annotations

import numpy as np
from tvm import tirx

from tsm_edge.export.kernels.choose import strip_cost
from tsm_edge.export.kernels.write import planes, sweep, tile
from tsm_edge.export.kernels.write.emit import cast
from tsm_edge.export.kernels.write.names import clip_name, splice_name


def stage(space, panel=None):
    """The first part of a fused block. space : Workspace. panel : (rows, vectors) of its register tile, if not as it sees fit."""
    conv = space.op.expand
    if conv is None:
        kind = Copied
    elif is_pointwise(conv):
        kind = Pointwise
    else:
        kind = Narrowed if tile.narrows(space.e, space.target, conv.x_dtype) else Windowed
    return kind(space, tile.TileShape(*panel) if panel else None)


def is_pointwise(conv):
    return conv.groups == 1 and tuple(conv.weight.shape[2:]) == (1, 1) and conv.stride == (1, 1) and not any(conv.padding)


class Copied:
    """No convolution: the planes are the block's input.

    shape : TileShape. groups : the panels that the channels are cut into.
    """

    carries = False  # rows are as easily read again as carried
    dtype = None  # of the input, what is copied of it, and the weights; None: as everything else
    narrow = False

    def __init__(self, space, shape=None):
        self.space, self.e, self.conv = space, space.e, space.op.expand
        self.depth = self.conv.weight[0].size if self.conv else 0
        self.moved_bias = None
        self.macs = 0
        self.shape = self.fitting(shape or self.best_shape())
        self.groups = tile.split_channels(space.vectors * space.lanes, space.lanes, self.shape.vectors)

    def best_shape(self):
        return strip_cost.plane_tile(self.space.target, self.space.width, 0, 0, None)

    def fitting(self, shape):
        """The shape, or what of it there are registers for."""
        return shape

    def key(self):
        return ""

    def declare(self):
        """The parameters of the kernel that belong here."""
        space = self.space
        self.x = space.tensor("x", space.op.x, space.height * space.width * space.mid)

    def border(self, group, panel):
        """Vectors that stand around the image, one for each plane of a panel."""
        return [planes.zero(lanes, self.e.dtype) for lanes in group.chunks]

    def fetch(self, slot, begin, end, origin, owned_from):
        """Bring near what the rows [begin, end) of the planes need; row r is row origin + r of the padded image.

        owned_from : the first row that no other thread works on.
        """

    def keep(self, first, last):
        """What `fetch` does for rows of the input that are owned, beside bringing them near, for the rows [first, last)."""

    def image(self, group, panel, slot):
        space = self.space
        self.rows(group, panel, slot, space.top, space.top + space.height, 0)

    def rows(self, group, panel, slot, begin, end, origin):
        """Fill the rows [begin, end) of the planes of one panel."""
        e, space = self.e, self.space
        work = space.work(slot)
        with e.loop(end - begin) as number:
            row = e.bind(begin + number)
            out = planes.Planes(work.buffer, e.bind(work.at(0, row, space.left)), work.plane, work.row, space.lanes)
            pixel = e.bind((origin + row - space.top) * (space.width * space.mid) + group.channel(panel))
            planes.pack_row(e, self.x, pixel, (min(group.width, space.mid), space.mid), out, space.width)


class _Convolution(Copied):
    """What both kinds of convolution share: packed weights without bias, limits, border values."""

    carries = True

    def __init__(self, space, shape=None):
        super().__init__(space, shape)
        conv = self.conv
        self.ic = conv.weight.shape[1]
        bias = conv.bias.astype(space.e.dtype).astype(np.float64)  # as rounded, so that a clipped value stays exact
        ends = [end - bias for end in conv.clip or (-np.inf, np.inf)]
        self.limits = tuple(bool(np.isfinite(end).all()) for end in ends)
        self.moved_bias = bias
        # behind a panel's weights: its limits, then its border
        self.trailer = [end for end, there in zip(ends, self.limits) if there] + [-bias]
        self.macs = space.height * space.width * conv.weight.size

    def product(self):
        """Pixels at a time, terms of a sum, and channels: what the register tile's shape is chosen for."""
        space = self.space
        return space.width * (space.height if space.whole else 1), self.depth, space.vectors * space.lanes

    def best_shape(self):
        return strip_cost.plane_tile(self.space.target, *self.product(), self.conv.clip)

    def key(self):
        return f"{clip_name(self.conv.clip)}{splice_name(self.conv.splice)}"

    def packed_weights(self):
        """Per panel of channels: weights [depth][width], limits and border [width] each."""
        space = self.space
        matrix = self.conv.weight.transpose(2, 3, 1, 0).reshape(self.depth, space.mid)
        rows = np.zeros((self.depth + len(self.trailer), space.vectors * space.lanes), "float32")
        rows[:, :space.mid] = np.concatenate([matrix, *(row[None] for row in self.trailer)])
        return np.concatenate([rows[:, first:first + group.width].reshape(-1) for group in self.groups
                               for first in range(group.start, group.start + group.count * group.width, group.width)])

    def declare(self):
        space = self.space
        packed = self.packed_weights()
        self.weights = space.constant("expand_weights", packed, self.dtype)

    def panel(self, group, panel):
        """Where a panel's weights start."""
        return self.e.bind(group.channel(panel) * (self.depth + len(self.trailer)))

    def border(self, group, panel):
        at = self.panel(group, panel) + (self.depth + len(self.trailer) - 1) * group.width
        lanes = self.space.lanes
        return [self.e.bind(self.e.load(self.weights, at + i * lanes, lanes)) for i in range(len(group.chunks))]

    def image(self, group, panel, slot):
        space, done = self.space, 0
        parts = sweep.blocks(space.height, space.width, self.shape.rows)
        tiles = sum(part.count for part in parts)
        for part in parts:
            with self.e.loop(part.count) as index:
                y, x = part.place(index)
                space.claim(group, panel, slot, done + index, tiles)
                self.tile(group, panel, slot, self.e.bind(y + space.top), x, part.height, part.width)
            done += part.count

    def rows(self, group, panel, slot, begin, end, origin):
        e = self.e
        with e.loop(end - begin) as number:
            row = e.bind(begin + number)
            for start, count, size in tile.split_rows(self.space.width, self.shape.rows):
                with e.loop(count) as index:
                    self.tile(group, panel, slot, row, e.bind(start + index * size), 1, size)

    def tile(self, group, panel, slot, row, x, tall, wide):
        """tall x wide pixels of the planes of one panel, from column x of the image on."""
        e, space = self.e, self.space
        work = space.work(slot)
        out = planes.Planes(work.buffer, e.bind(work.at(0, row, x + space.left)), work.plane, work.row, space.lanes)
        planes.compute(e, space.target, group, self.sources(slot, row, x, tall, wide), self.weights,
                       self.panel(group, panel), out, (tall, wide), self.limits, self.narrow)


class Pointwise(_Convolution):
    """1x1: the input's new rows are put into planes, too, with the cache spliced in; then all panels read them."""

    def __init__(self, space, shape=None):
        super().__init__(space, shape)
        self.splice = self.conv.splice
        self.fold = self.splice.stop - self.splice.start if self.splice else 0

    def declare(self):
        space = self.space
        pixels = space.height * space.width
        self.x = space.tensor("x", self.conv.x, pixels * self.ic)
        if self.fold:
            self.cache = space.tensor("cache", self.splice.cache, pixels * self.fold)
            self.next_cache = space.tensor("next_cache", self.splice.next_cache, pixels * self.fold)
        super().declare()
        self.plane = space.strip_rows * space.width * space.lanes
        self.scratch = space.scratch("packed", -(-self.ic // space.lanes) * self.plane, shared=space.shared)

    def packed(self, slot):
        return self.space.place(self.scratch, slot, self.plane, self.space.width * self.space.lanes)

    def sources(self, slot, row, x, tall, wide):
        packed = self.packed(slot)
        first = planes.Planes(packed.buffer, self.e.bind(packed.at(0, row, x)), packed.plane, packed.row, packed.lanes)
        return [planes.Source(first, planes.pixels(first, tall, wide), self.ic, first.plane)]

    def fetch(self, slot, begin, end, origin, owned_from):
        e, packed = self.e, self.packed(slot)
        with e.loop(end - begin, "parallel" if self.space.shared else "serial") as number:
            row = e.bind(begin + number)
            self.pack(packed, row, e.bind(origin + row - self.space.top), planes.at_least(row, owned_from))

    def pack(self, packed, row, y, owned):
        """One row of the input with the cache spliced in; its own spliced channels go to the next cache if it is owned."""
        e, width, ic, fold, lanes = self.e, self.space.width, self.ic, self.fold, self.space.lanes
        out = planes.Planes(packed.buffer, e.bind(packed.at(0, row)), packed.plane, packed.row, lanes)
        planes.pack_row(e, self.x, e.bind(y * (width * ic)), (ic, ic), out, width)
        if not fold:
            return
        start, stop = self.splice.start, self.splice.stop
        with e.loop(width) as x:
            pixel = e.bind(y * width + x)
            at = start
            while at < stop:
                count = min(stop, (at // lanes + 1) * lanes) - at
                tile.copy(e, self.cache, pixel * fold + (at - start), out.buffer,
                          out.at(at // lanes, 0, x) + at % lanes, count, lanes)
                at += count
        with e.when(owned):
            self.keep_row(y)

    def keep(self, first, last):
        if self.fold:
            with self.e.loop(last - first) as number:
                self.keep_row(self.e.bind(first + number))

    def keep_row(self, y):
        """The spliced channels of one row of the input go to the next cache."""
        e, width, ic, fold = self.e, self.space.width, self.ic, self.fold
        with e.loop(width) as x:
            pixel = e.bind(y * width + x)
            tile.copy(e, self.x, pixel * ic + self.splice.start, self.next_cache, pixel * fold, fold, self.space.lanes)


class Windowed(_Convolution):
    """More taps: the input's rows are copied with a zero border; the taps of one window row lie side by side there."""

    def __init__(self, space, shape=None):
        super().__init__(space, shape)
        conv = self.conv
        self.in_height, self.in_width, _ = space.shapes[conv.x]
        self.kh, self.kw = conv.weight.shape[2:]
        self.pitch = max(conv.padding[1] + self.in_width, (space.width - 1) * conv.stride[1] + self.kw) * self.ic

    def key(self):
        conv = self.conv
        return (f"_{self.in_height}x{self.in_width}_{self.ic}_k{self.kh}x{self.kw}_s{conv.stride[0]}{conv.stride[1]}"
                f"_p{'_'.join(map(str, conv.padding))}{super().key()}")

    def declare(self):
        space = self.space
        self.x = space.tensor("x", self.conv.x, self.in_height * self.in_width * self.ic, self.dtype)
        super().declare()
        self.copied_rows = (space.strip_rows - 1) * self.conv.stride[0] + self.kh
        self.scratch = space.scratch("copied", self.copied_rows * self.pitch, shared=space.shared, dtype=self.dtype)

    def copied(self, slot):
        buffer, size = self.scratch
        return buffer, self.e.bind(slot * size) if size else 0

    def sources(self, slot, row, x, tall, wide):
        """One source for each row of the window: its taps' channels lie side by side."""
        stride_y, stride_x = self.conv.stride
        buffer, base = self.copied(slot)
        first = self.e.bind(base + row * (stride_y * self.pitch) + x * (stride_x * self.ic))
        steps = tuple(y * stride_y * self.pitch + i * stride_x * self.ic for y in range(tall) for i in range(wide))
        return [planes.Source(planes.Planes(buffer, self.e.bind(first + ky * self.pitch), 0, 0, 0), steps,
                              self.kw * self.ic, 0) for ky in range(self.kh)]

    def fetch(self, slot, begin, end, origin, owned_from):
        e, space, conv, pitch = self.e, self.space, self.conv, self.pitch
        lanes, stride = space.lanes, conv.stride[0]
        buffer, base = self.copied(slot)
        first = e.bind(begin * stride)
        shift = e.bind((origin - space.top) * stride - conv.padding[0])  # from a row of the copy to one of the input
        left, width = conv.padding[1] * self.ic, self.in_width * self.ic
        with e.loop(planes.maximum(0, (end - begin - 1) * stride + self.kh),
                    "parallel" if space.shared else "serial") as number:
            row = e.bind(first + number)
            y, place = e.bind(row + shift), e.bind(base + row * pitch)

            def copy(y=y, place=place):
                for start, count in ((0, left), (left + width, pitch - left - width)):
                    planes.fill_elements(e, buffer, place + start, count, lanes)
                planes.copy_elements(e, self.x, e.bind(y * width), buffer, e.bind(place + left), width, lanes)

            e.choose(tirx.And(planes.at_least(y, 0), planes.at_least(self.in_height - 1, y)), copy,
                     lambda place=place: planes.fill_elements(e, buffer, place, pitch, lanes))


class Narrowed(Windowed):
    """The frame's convolution in a network in half precision: computed in float32, the planes are float16; see tile.narrows."""

    dtype, narrow = "float32", True

    def best_shape(self):
        return tile.tile_shape(self.space.target, *self.product(), self.conv.clip, narrow=True)

    def fitting(self, shape):
        return tile.narrow_shape(shape)

    def key(self):
        return super().key() + "_narrow"

    def border(self, group, panel):
        return [self.e.bind(cast(value, "float16", self.space.lanes)) for value in super().border(group, panel)]
