"""Activations inside a fused kernel: one plane for each vector of channels, so that neighbouring pixels lie side by side.

A plane is [rows][pitch][lanes]. Pixels next to each other are loaded and stored two at a time where the machine can, and
a window slides over memory that is read front to back, whatever the number of channels.
"""
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from tsm_edge.export.kernels.arm import aarch64, aarch64_window

from . import tile
from .emit import fma, lane, splat


@dataclass(frozen=True, eq=False)
class Planes:
    """Where a stack of planes lies: element `base` of `buffer`, planes `plane` elements apart, rows `row` apart."""

    buffer: object
    base: object
    plane: int
    row: int
    lanes: int

    def at(self, plane=0, y=0, x=0):
        """Offset of a pixel's vector; each coordinate may be an int or an expression."""
        return self.base + (plane * self.plane + y * self.row + x * self.lanes)


class PlaneTile(tile.Tile):
    """A register tile that reads its rows from planes, or stores its vectors to planes."""

    def multiply_planes(self, source, pixels, count, weights, offset):
        """Accumulators += x @ w for `count` channels from the first of `source` on.

        Parameters
        ----------
        source : Planes; its base points to the first pixel of the tile.
        pixels : offsets of the tile's pixels from the first, in elements.
        weights, offset : [count][width], as in `multiply`.
        """
        e, lanes = self.e, source.lanes
        whole, rest = divmod(count, lanes)
        step = lanes * self.width

        def group(plane, number):
            at = e.bind(offset + plane * step) if not isinstance(plane, int) else offset + plane * step
            base = source.base + plane * source.plane
            if self.by_lane:
                rows = [e.bind(e.load(source.buffer, base + pixel, lanes), "x") for pixel in pixels]
                for u in range(number):
                    self._step([e.bind(lane(row, u), "s") for row in rows], weights, at + u * self.width)
            else:
                with e.loop(number) as k:
                    inputs = [e.bind(e.load(source.buffer, base + (pixel + k))) for pixel in pixels]
                    self._step(inputs, weights, at + k * self.width)

        if self.by_lane and whole > 2:  # two planes a turn, for less loop overhead
            with e.loop(whole // 2) as g:
                group(g * 2, lanes)
                group(g * 2 + 1, lanes)
            if whole % 2:
                group(whole - 1, lanes)
        elif whole:
            with e.loop(whole) as g:
                group(g, lanes)
        if rest:
            group(whole, rest)

    def finish_planes(self, out, pixels, weights, offset, limits):
        """Store the accumulators, between the limits at weights[offset:]: vector j of each row to plane j of `out`.

        out : Planes whose base is the tile's first pixel.
        """
        ends = []
        for there in limits:
            ends.append(self._weights(weights, offset) if there else None)
            offset = offset + self.width * there
        for j, lanes in enumerate(self.chunks):
            for i, pixel in enumerate(pixels):
                value = self._acc[i][j].get()
                if ends[0]:
                    value = tirx.Max(value, ends[0][j])
                if ends[1]:
                    value = tirx.Min(value, ends[1][j])
                self.e.store(out.buffer, out.base + (j * out.plane + pixel), value, lanes)


@dataclass(frozen=True)
class Window:
    """A depthwise window: taps and stride."""

    kh: int
    kw: int
    stride_y: int
    stride_x: int

    def rows(self, count):
        """Input rows that `count` output rows look at."""
        return (count - 1) * self.stride_y + self.kh

    def columns(self, count):
        return (count - 1) * self.stride_x + self.kw


def slide(e, source, plane, window, taps, down, across, store):
    """Depthwise convolution of `down` x `across` outputs of one plane; every input is loaded once.

    Rows come one after the other: an input row is added to all outputs that see it, an output is stored as soon as its
    last row was added. So only `window.kh` rows of accumulators live at a time.

    Parameters
    ----------
    source : Planes; its base points to the first input pixel.
    taps : kh x kw vectors.
    store : function (y, x, value), for each output.
    """
    sums = {}
    for r in range(window.rows(down)):
        values = [e.bind(e.load(source.buffer, source.at(plane, r, c), source.lanes), "x")
                  for c in range(window.columns(across))]
        for kx in range(window.kw):
            for t in range(down):
                ky = r - t * window.stride_y
                if not 0 <= ky < window.kh:
                    continue
                for j in range(across):
                    value = values[j * window.stride_x + kx]
                    if (t, j) in sums:
                        sums[t, j] = e.bind(fma(value, taps[ky][kx], sums[t, j]), "a")
                    else:
                        sums[t, j] = e.bind(value * taps[ky][kx], "a")
        for t in range(down):
            if r == t * window.stride_y + window.kh - 1:
                for j in range(across):
                    store(t, j, sums.pop((t, j)))


def slide_width(target, window):
    """How many outputs of a row `slide` makes at once, so that nothing is spilt."""
    rows = -(-window.kh // window.stride_y)
    left = target.vector_registers - window.kh * window.kw - 2
    best = 1
    for across in range(2, 8):
        if rows * across + window.columns(across) <= left:
            best = across
    return best if left > 0 else 2


def written_out_band(e, target, source, window, weights, limits, down, width, out):
    """Emit a depthwise band (one plane, `down` x `width` outputs) as the target's own assembly, if there is that.

    Parameters
    ----------
    source, out : Planes; their bases point to the band's first pixel.
    weights : (buffer, offset) of the plane's taps and limits. limits : which of (lower, upper) there are.

    Returns
    -------
    Whether it did.
    """
    taps, stride = (window.kh, window.kw), (window.stride_y, window.stride_x)
    if target.arch != "aarch64" or not aarch64_window.fits(taps, stride, limits, min(4, width)):
        return False
    for start, count, rows in tile.split_rows(down, 8):
        form = aarch64_window.BandForm(taps, stride, tuple(limits), rows, width, source.row, out.row,
                                   aarch64.ELEMENTS[e.dtype])
        for index in range(count):
            y = start + index * rows
            e.call_llvm(*aarch64_window.function(form), [(source.buffer, source.at(0, y * window.stride_y)), weights,
                                                         (out.buffer, out.at(0, y))])
    return True


def fill(e, out, offset, count, value, lanes):
    """out[offset : + count * lanes] = count times `value` (a vector)."""
    if isinstance(count, int) and count <= 4:
        for i in range(count):
            e.store(out, offset + i * lanes, value, lanes)
    else:
        with e.loop(count) as i:
            e.store(out, offset + i * lanes, value, lanes)


def copy(e, source, source_offset, out, out_offset, count, lanes):
    """Copy `count` vectors, four a turn."""
    turns, left = divmod(count, 4)
    with e.loop(turns) as turn:
        for i in range(4):
            at = turn * (4 * lanes) + i * lanes
            e.store(out, out_offset + at, e.load(source, source_offset + at, lanes), lanes)
    for i in range(turns * 4, turns * 4 + left):
        e.store(out, out_offset + i * lanes, e.load(source, source_offset + i * lanes, lanes), lanes)


@dataclass(frozen=True, eq=False)
class Source:
    """Input of a tile: `count` channels of the pixels at `steps` from the place's base.

    plane : 0 where a pixel's channels lie side by side, else the distance of planes.
    """

    place: Planes
    steps: tuple[int, ...]
    count: int
    plane: int


def pixels(place, tall, wide):
    """Distances of the pixels of a tall x wide tile in planes from the first one."""
    return tuple(y * place.row + x * place.lanes for y in range(tall) for x in range(wide))


def compute(e, target, group, sources, weights, offset, out, block, limits, narrow=False):
    """One tile of a matrix product into planes: out = sum over sources, between limits of each channel.

    Parameters
    ----------
    sources : list of Source.
    weights, offset : buffer and place of the panel: [channels of all sources][width], then its limits.
    out : Planes; its base points to the tile's first pixel in the panel's first plane.
    block : (height, width) of the tile, in pixels.
    limits : whether there is a lower, an upper one. narrow : as for tile.compute.
    """
    steps = pixels(out, *block)
    if tile.written_out(e, target, group, [(s.place, aarch64.Spacing(s.steps, s.plane), s.count) for s in sources],
                        weights, offset, (out, aarch64.Spacing(steps, out.plane)), limits=limits, narrow=narrow):
        return
    if narrow:
        raise ValueError("no tile of this form narrows its results")
    acc = PlaneTile(e, target, len(steps), group.chunks)
    acc.zero()
    for source in sources:
        if source.plane:
            acc.multiply_planes(source.place, source.steps, source.count, weights, offset)
        else:
            acc.multiply([tile.Span(source.place.buffer, source.place.base, source.steps, source.count)], weights, offset)
        offset = offset + source.count * group.width
    acc.finish_planes(out, steps, weights, offset, limits)


def compute_rows(e, target, group, source, weights, offset, out, clip=None, residual=None):
    """From planes to channels last, with bias: as tile.compute; `source` is one Source."""
    if tile.written_out(e, target, group, [(source.place, aarch64.Spacing(source.steps, source.plane), source.count)],
                        weights, offset, (out, aarch64.Spacing(tuple(out.steps))), clip, residual):
        return
    acc = PlaneTile(e, target, len(source.steps), group.chunks)
    acc.start(weights, offset)
    acc.multiply_planes(source.place, source.steps, source.count, weights, offset + group.width)
    acc.finish(out, group.valid, clip, residual)


def pack_row(e, x, pixel, channels, out, count):
    """Copy `count` pixels, channels last, into planes.

    Parameters
    ----------
    x, pixel : buffer and offset of the first pixel's first wanted channel; `channels`: (wanted, pitch) of a pixel.
    out : Planes; its base points to the place of the first pixel.
    """
    wanted, pitch = channels
    lanes = out.lanes
    turn = max(n for n in range(1, 9) if count % n == 0)
    if turn < 4:
        turn = min(count, 8)

    def move(x_, number):
        whole = wanted // lanes
        with e.loop(whole) as v:
            for i in range(number):
                e.store(out.buffer, out.at(v, 0, x_ + i), e.load(x, pixel + ((x_ + i) * pitch + v * lanes), lanes), lanes)
        for start, size in tile.pieces(wanted % lanes, lanes):
            for i in range(number):
                place = out.at(whole, 0, x_ + i) + start
                e.store(out.buffer, place, e.load(x, pixel + ((x_ + i) * pitch + whole * lanes + start), size), size)

    with e.loop(count // turn) as i:
        move(i * turn, turn)
    if count % turn:
        move(count // turn * turn, count % turn)


def fill_elements(e, out, offset, count, lanes):
    """out[offset : + count] = 0; count is an int."""
    with e.loop(count // lanes) as i:
        e.store(out, offset + i * lanes, splat(0.0, lanes, out.dtype), lanes)
    for start, size in tile.pieces(count % lanes, lanes):
        e.store(out, offset + (count // lanes * lanes + start), splat(0.0, size, out.dtype), size)


def copy_elements(e, source, source_offset, out, out_offset, count, lanes):
    """Copy `count` (an int) elements, wherever they begin."""
    copy(e, source, source_offset, out, out_offset, count // lanes, lanes)
    for start, size in tile.pieces(count % lanes, lanes):
        at = count // lanes * lanes + start
        e.store(out, out_offset + at, e.load(source, source_offset + at, size), size)


def zero(lanes, dtype):
    return splat(0.0, lanes, dtype)


def at_least(a, b):
    """a >= b as an expression, of ints too."""
    return tirx.GE(*(tirx.IntImm("int32", value) if isinstance(value, int) else value for value in (a, b)))


def minimum(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return tirx.min(a, b)


def maximum(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return tirx.max(a, b)
