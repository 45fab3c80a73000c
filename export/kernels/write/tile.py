"""The register tile: rows x channels of a matrix product, held in vector registers. Convolutions are made of it.

    out[row, c] = clip(bias[c] + sum over k of x[row, k] * w[k, c] + residual[row, c])

Output channels are cut into *panels* (`split_channels`), a panel into vectors ("chunks"). Weights are packed panel after
panel, each as [1 + K][width], bias first, so that a panel is read front to back (`pack_panels`; `panel_offset` finds
one). A *row* is one output pixel; rows of a tile lie at fixed distances, known when the code is made.

    shape = tile_shape(target)                                    # rows and vectors that fill the registers
    groups = split_channels(oc, target.lanes, shape.vectors)
    packed = pack_panels(weight.T, bias, groups)                  # weight.T: [K, oc]
    for group in groups:
        with e.loop(group.count) as p:
            compute(e, target, group, [Span(x, base, steps, K)], w, panel_offset(group, p, K),
                    Rows(out, out_base + group.channel(p), out_steps), clip, residual=Rows(...) or None)

A splice is two spans: the cache's channels and the input's own. Where K comes in pieces, under loops or conditions, use
the class `Tile` itself: start, multiply as often as needed, finish. `compute` is the faster one where it fits.
Reads never leave [first element of the first row, last element of the last row) of a span.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tsm_edge.export.kernels.arm import aarch64

from .emit import clipped, fma, lane, part, splat

_AHEAD = 10240  # bytes between a weight in use and the one that is fetched meanwhile, for wide vectors


@dataclass(frozen=True)
class TileShape:
    """rows x vectors accumulators, so that everything a tile needs fits the vector registers."""

    rows: int
    vectors: int


def tile_shape(target, pixels=0, depth=0, channels=0, clip=None, pitch=0, narrow=False):
    """The tile that suits a product of pixels x depth by depth x channels on `target`'s registers.

    pitch : elements from one row's inputs to the next one's. narrow : see `narrows`.
    With multiplication by one lane each row holds a vector of its own inputs; else inputs are broadcast from memory.
    """
    if target.fma_by_element:
        if target.arch != "aarch64" or not channels:
            return TileShape(7, 3)  # 21 accumulators, 7 inputs, 3 weights of 32 registers
        shapes = [TileShape(rows, vectors) for vectors in range(1, 5) for rows in range(1, 9)
                  if aarch64.fits(rows, vectors)]
        if narrow:
            single = replace(target, vector_bits=target.vector_bits // 2)
            best = min((shape for shape in shapes if shape.vectors % 2 == 0),
                       key=lambda shape: _instructions(single, shape, pixels, depth, channels, clip))
            return TileShape(best.rows, best.vectors // 2)
        return min(shapes, key=lambda shape: _instructions(target, shape, pixels, depth, channels, clip))
    if target.vector_registers >= 32:
        if pitch and pitch * 4 % 2048 == 0:  # such rows meet in one or two of L1's sets, which hold 8 lines each
            return TileShape(8, 3)
        return TileShape(14, 2)  # 28 accumulators, 2 weights, 1 broadcast
    return TileShape(6, 2)  # 12 accumulators, 2 weights, 1 broadcast of 16


def narrows(e, target, dtype):
    """Whether a product with an input of type `dtype` is computed in float32 from float32, and narrowed to float16.

    That is what a network in half precision does with its frame: neighbouring pixels are alike, so the sums of its first
    convolution are small differences of large values, which float16 would leave with few digits.
    """
    return e.dtype == "float16" and target.arch == "aarch64" and dtype == "float32"


def narrow_shape(shape):
    """The largest part of a tile's shape that also fits the registers where each vector takes two."""
    vectors = min(2, shape.vectors)
    return TileShape(max(rows for rows in range(1, shape.rows + 1) if rows == 1 or aarch64.fits(rows, 2 * vectors)), vectors)


def _instructions(target, shape, pixels, depth, channels, clip):
    """Instructions of the whole product with tiles of this shape, and half a one for each weight read from beyond L1."""
    total = 0
    for group in split_channels(channels, target.lanes, shape.vectors):
        vectors = len(group.chunks)
        far = depth * vectors * target.vector_bits // 8 > target.l1_bytes // 2
        for _, count, rows in split_rows(pixels, shape.rows):
            each = aarch64.instructions(rows, vectors, depth, target.lanes, clip) + (depth * vectors / 2 if far else 0)
            total += group.count * count * each
    return total


@dataclass(frozen=True)
class Group:
    """`count` panels of the same form, from output channel `start` on.

    chunks : lanes of each vector of the panel; width : their sum (channels as packed); valid : channels that exist
    (the last panel of an odd channel count is packed with zeros up to a multiple of 4).
    """

    start: int
    count: int
    chunks: tuple[int, ...]
    valid: int

    @property
    def width(self):
        return sum(self.chunks)

    def channel(self, panel):
        """First output channel of panel number `panel` (an int or an expression) of the group."""
        return self.start + panel * self.width


def split_channels(channels, lanes, most):
    """Cut `channels` into panels of at most `most` vectors, as even as they come.

    Returns
    -------
    list of Group; vectors have `lanes` lanes, but for the last channels, which take narrower ones (down to 4 lanes).
    """
    chunks = [lanes] * (channels // lanes)
    left = channels % lanes
    width = lanes
    while left > 0:
        width = max(4, width // 2)
        while left >= width or (width == 4 and left > 0):
            chunks.append(width)
            left -= width
    panels = -(-len(chunks) // most)
    groups, start = [], 0
    for index in range(panels):
        take = -(-len(chunks) // (panels - index))
        panel, chunks = tuple(chunks[:take]), chunks[take:]
        valid = min(sum(panel), channels - start)
        last = groups[-1] if groups else None
        if last and last.chunks == panel and last.valid == valid:
            groups[-1] = Group(last.start, last.count + 1, panel, valid)
        else:
            groups.append(Group(start, 1, panel, valid))
        start += valid
    return groups


def pack_panels(matrix, bias, groups, dtype="float32"):
    """Pack a weight matrix [K, channels] and bias [channels] as the tile reads them: per panel [1 + K][width], flat."""
    packed = []
    rows = np.concatenate([np.asarray(bias)[None, :], np.asarray(matrix)], axis=0).astype(dtype)
    for group in groups:
        for index in range(group.count):
            start = group.channel(index)
            panel = np.zeros((rows.shape[0], group.width), dtype)
            panel[:, :group.valid] = rows[:, start:start + group.valid]
            packed.append(panel.reshape(-1))
    return np.concatenate(packed)


def panel_offset(group, panel, depth):
    """Where panel number `panel` of `group` starts in what pack_panels made; depth is K."""
    return (1 + depth) * group.channel(panel)


def split_rows(total, most):
    """Cut `total` rows into tiles of at most `most`, all equal or of two neighbouring sizes: [(start, count, size)]."""
    if total <= 0:
        return []
    tiles = -(-total // most)
    size = -(-total // tiles)
    small = tiles * size - total
    out = [(0, tiles - small, size)]
    if small:
        out.append(((tiles - small) * size, small, size - 1))
    return out


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the rows of a tile lie: row i starts at buffer[base + steps[i]]. base may be an expression, steps: ints."""

    buffer: object
    base: object
    steps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Span:
    """`count` input channels that lie side by side: row i has them at buffer[base + steps[i] : + count]."""

    buffer: object
    base: object
    steps: tuple[int, ...]
    count: int


def compute(e, target, group, spans, weights, offset, out, clip=None, residual=None, narrow=False):
    """One whole tile: out = clip(bias + x @ w + residual).

    Parameters
    ----------
    group : Group, for its vectors and how many channels are stored.
    spans : list of Span; their channels follow one another in K.
    weights, offset : buffer made by pack_panels, and where this panel starts in it.
    out, residual : Rows at the panel's first channel; as many rows as the spans have.
    narrow : see `narrows`; for whole vectors of channels and shapes as `narrow_shape` gives them.
    """
    if written_out(e, target, group, [(span, aarch64.Spacing(span.steps), span.count) for span in spans], weights, offset,
                   (out, aarch64.Spacing(out.steps)), clip, residual, narrow=narrow):
        return
    if narrow:
        raise ValueError("no tile of this form narrows its results")
    acc = Tile(e, target, len(out.steps), group.chunks)
    acc.start(weights, offset)
    acc.multiply(spans, weights, offset + group.width)
    acc.finish(out, group.valid, clip, residual)


def written_out(e, target, group, sources, weights, offset, out, clip=None, residual=None, limits=None, narrow=False):
    """Emit a whole tile as the target's own assembly, if there is that and it fits. Returns whether it did.

    Parameters
    ----------
    sources : list of (place, aarch64.Spacing, channels); out : (place, aarch64.Spacing). A place has .buffer and .base.
    The rest is as for `compute`; with an output in planes all of a panel's channels are stored.
    """
    place, spacing = out
    rows, vectors = len(spacing.steps), len(group.chunks) * (2 if narrow else 1)
    if target.arch != "aarch64" or not aarch64.fits(rows, vectors) or set(group.chunks) != {target.lanes}:
        return False
    if not spacing.plane and group.valid != group.width:
        return False
    form = aarch64.TileForm(vectors, tuple((channels, at) for _, at, channels in sources), spacing, clip and tuple(clip),
                        residual and residual.steps, aarch64.ELEMENTS["float32" if narrow else e.dtype], limits, narrow)
    places = [(weights, offset), (place.buffer, place.base)]
    places += [(residual.buffer, residual.base)] if residual else []
    e.call_llvm(*aarch64.function(form), places + [(source.buffer, source.base) for source, _, _ in sources])
    return True


class Tile:
    """rows x chunks accumulators, with the code that fills and stores them. See the module's text."""

    def __init__(self, e, target, rows, chunks):
        self.e, self.rows, self.chunks, self.dtype = e, rows, tuple(chunks), e.dtype
        self.by_lane = target.lanes if target.fma_by_element else 0
        self.width = sum(chunks)
        self._acc = [[e.vector(lanes) for lanes in self.chunks] for _ in range(rows)]

    def _weights(self, weights, offset):
        vectors, at = [], 0
        for lanes in self.chunks:
            vectors.append(self.e.bind(self.e.load(weights, offset + at, lanes), "w"))
            at += lanes
        return vectors

    def start(self, weights, offset):
        """Accumulators = the bias at weights[offset : offset + width], the same for each row."""
        for j, bias in enumerate(self._weights(weights, offset)):
            for row in self._acc:
                row[j].set(bias)

    def zero(self):
        """Accumulators = 0."""
        for row in self._acc:
            for register in row:
                register.set(splat(0.0, register.lanes, self.dtype))

    def multiply(self, spans, weights, offset):
        """Accumulators += x @ w. The spans' channels follow one another; their weights [K][width] start at `offset`."""
        for span in spans:
            if self.by_lane:
                self._multiply_by_lane(span, weights, offset)
            else:
                self._multiply_by_broadcast(span, weights, offset)
            offset = offset + span.count * self.width

    def _step(self, inputs, weights, offset):
        """One k: acc[i][j] += inputs[i] * w[j]."""
        vectors = self._weights(weights, offset)
        at = _AHEAD // 4
        for lanes in self.chunks if not self.by_lane else ():
            if lanes >= 16:  # weights stream through: a line is used up by each multiply-add of a row
                self.e.prefetch(weights, offset + at)
            at += lanes
        for i, value in enumerate(inputs):
            for j, lanes in enumerate(self.chunks):
                register = self._acc[i][j]
                register.set(fma(splat(value, lanes), vectors[j], register.get()))

    def _multiply_by_broadcast(self, span, weights, offset):
        def step(k):
            inputs = [self.e.bind(self.e.load(span.buffer, span.base + step + k)) for step in span.steps]
            self._step(inputs, weights, offset + k * self.width)

        if span.count <= 4:
            for k in range(span.count):
                step(k)
        else:
            with self.e.loop(span.count) as k:
                step(k)

    def _multiply_by_lane(self, span, weights, offset):
        size = self.by_lane

        def group(first, count=size):
            """`count` (<= size) channels from `first` on; each row's are loaded at once."""
            rows = [self._row_vector(span, i, first, count) for i in range(self.rows)]
            for u in range(count):
                self._step([row(u) for row in rows], weights, offset + (first + u) * self.width)

        whole = span.count // size
        with self.e.loop(whole) as g:
            group(g * size)
        if span.count % size:
            group(whole * size, span.count % size)

    def _row_vector(self, span, i, first, count):
        """Load channels [first, first + count) of row i; returns a function lane number -> scalar.

        A vector that would read too far starts earlier instead, or is loaded in smaller pieces.
        """
        e, size, at = self.e, self.by_lane, span.steps[i] + first
        if count < size:
            low, high = span.steps[0], span.steps[-1] + span.count  # both inside what the tile reads
            shift = 0 if at + size <= high else size - count
            if at - shift < low:
                return self._row_pieces(span, at, count)
        else:
            shift = 0
        vector = e.bind(e.load(span.buffer, span.base + (at - shift), size), "x")
        return lambda u: e.bind(lane(vector, u + shift), "s")

    def _row_pieces(self, span, at, count):
        scalars = [self.e.bind(self.e.load(span.buffer, span.base + (at + u)), "s") for u in range(count)]
        return lambda u: scalars[u]

    def finish(self, out, valid=None, clip=None, residual=None):
        """Store clip(accumulators + residual) to the rows of `out`, the first `valid` channels of the tile.

        out, residual : Rows at the tile's first channel.
        """
        e, left = self.e, self.width if valid is None else valid
        at = 0
        for j, lanes in enumerate(self.chunks):
            for start, count in pieces(min(lanes, left - at)):
                for i in range(self.rows):
                    value = self._acc[i][j].get()
                    if count != lanes:
                        value = e.bind(value)
                        value = lane(value, start) if count == 1 else part(value, start, count)
                    if residual is not None:
                        place = residual.base + (residual.steps[i] + at + start)
                        value = value + e.load(residual.buffer, place, count)
                    e.store(out.buffer, out.base + (out.steps[i] + at + start), clipped(value, clip, count), count)
            at += lanes


def pieces(count, largest=64):
    """Cut `count` elements into powers of two: [(start, size)]."""
    out, start = [], 0
    size = largest
    while size:
        while count - start >= size:
            out.append((start, size))
            start += size
        size //= 2
    return out


def copy(e, source, source_offset, out, out_offset, count, lanes):
    """out[out_offset : + count] = source[source_offset : + count], in vectors of at most `lanes`; count is an int."""
    vectors = count // lanes
    if vectors > 8:
        with e.loop(vectors) as i:
            e.store(out, out_offset + i * lanes, e.load(source, source_offset + i * lanes, lanes), lanes)
        first = vectors * lanes
    else:
        first = 0
    for start, size in pieces(count - first, lanes):
        start += first
        e.store(out, out_offset + start, e.load(source, source_offset + start, size), size)
