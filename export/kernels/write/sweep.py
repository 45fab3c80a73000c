"""The loops around the register tile: which order tiles and panels come in, and what is split over threads."""
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from . import tile


@dataclass(frozen=True)
class Block:
    """Tiles of one form in an output image: `down` x `across` of them, of height x width pixels each, from (y, x) on."""

    y: int
    x: int
    down: int
    across: int
    height: int
    width: int

    @property
    def count(self):
        return self.down * self.across

    def place(self, index):
        """(y, x) of the first pixel of tile number `index`, an int or an expression."""
        if self.count == 1:  # whatever the expression: it is zero, but products with it need not fit 32 bits
            return self.y, self.x
        if self.across == 1:
            return self.y + index * self.height, self.x
        if self.down == 1:
            return self.y, self.x + index * self.width
        if isinstance(index, int):
            return self.y + index // self.across * self.height, self.x + index % self.across * self.width
        return (self.y + tirx.floordiv(index, self.across) * self.height,
                self.x + tirx.floormod(index, self.across) * self.width)

    def steps(self, row_pitch, pixel_pitch):
        """Distance of each pixel of a tile from its first one, in elements."""
        return tuple(y * row_pitch + x * pixel_pitch for y in range(self.height) for x in range(self.width))


def blocks(height, width, most):
    """Cut an image of height x width pixels into tiles of at most `most` pixels."""
    tall = max(1, most // width)
    return [Block(y, x, down, across, tile_height, tile_width)
            for y, down, tile_height in tile.split_rows(height, tall)
            for x, across, tile_width in tile.split_rows(width, min(most, width))]


def over_panels(e, image, groups, body, threads=1):
    """Panels outside, tiles inside: each weight comes from memory once. body(block, tile number, group, panel).

    Where the panels do not share out evenly over `threads`, the tiles of each are cut into parts too. 0 threads: what is
    here is not worth waking others for.
    """
    panels = sum(group.count for group in groups)
    tiles = max(block.count for block in image)
    parts = min(range(1, max(1, min(tiles, 2 * threads)) + 1),
                key=lambda n: (round(_waiting(panels * n, max(1, threads)), 1), n))

    def one_panel(group, number):
        panel, part = (number, 0) if parts == 1 else (e.bind(tirx.floordiv(number, parts)),
                                                      e.bind(tirx.floormod(number, parts)))
        for block in image:
            first = e.bind(_share(block.count, part, parts))
            with e.loop(e.bind(_share(block.count, part + 1, parts)) - first) as index:
                body(block, first + index, group, panel)

    _split(e, groups, lambda group: group.count * parts, one_panel, "parallel" if threads else "serial")


def worth(macs, target):
    """`target.threads`, or 0 for so little work that a thread is not woken in the time."""
    return target.threads if macs >= 1 << 17 else 0


def _waiting(tasks, threads):
    """Time of the slowest of `threads` that take tasks in contiguous shares, over the time of an even split."""
    return -(-tasks // threads) * threads / tasks


def _share(count, part, parts):
    """First element of part number `part`."""
    if parts == 1:
        return part * count
    return tirx.floordiv(part * count, parts)


def run_length(image, most, threads):
    """How many tiles to take in a run: at most `most`, and enough runs for all threads."""
    if threads == 1:
        return most
    return max(1, min(most, sum(block.count for block in image) // (4 * threads)))


def over_tiles(e, image, groups, body, run, before=None):
    """Runs of `run` tiles outside, then panels, then the run's tiles: each input comes from memory once.

    before(block, first tile number, number of tiles) comes once before each run.
    """
    def one_run(block, number):
        first = e.bind(number * run)
        exact = block.count % run == 0
        length = run if exact else e.bind(tirx.min(run, block.count - first)) if block.count > run else block.count
        if before:
            before(block, first, length)
        for group in groups:
            with e.loop(group.count) as panel, e.loop(length) as index:
                body(block, first + index, group, panel)

    _split(e, image, lambda block: -(-block.count // run), one_run)


def _split(e, parts, count, body, kind="parallel"):
    """One loop over all parts: body(part, number) for number in range(count(part))."""
    total = sum(count(part) for part in parts)

    def choose(index, rest):
        part, here = rest[0], count(rest[0])
        if len(rest) == 1:
            return body(part, index)
        return e.choose(index < here, lambda: body(part, index), lambda: choose(e.bind(index - here), rest[1:]))

    with e.loop(total, kind) as index:
        if isinstance(index, int):
            body(parts[0], index)
        else:
            choose(index, parts)
