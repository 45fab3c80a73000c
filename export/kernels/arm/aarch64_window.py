"""Depthwise convolution of one plane for 64-bit ARM, written out as assembly (see aarch64.py for why).

A plane is [rows][columns] vectors of one vector of channels; several neighbouring vectors come with one load. A band of
`down` output rows is computed from left to right, `across` outputs at a time: every input row of the block is loaded
once and added to each output row that sees it. Taps and limits stay in registers for the whole band.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

from . import aarch64


@dataclass(frozen=True)
class BandForm:
    """Everything that shapes a band's code; pitches in elements.

    taps : (kh, kw); limits : whether there is a lower, an upper one (a vector each, after the taps).
    down, width : outputs of the band.
    """

    taps: tuple[int, int]
    stride: tuple[int, int]
    limits: tuple[bool, bool]
    down: int
    width: int
    in_pitch: int
    out_pitch: int
    element: str = "s"


def fits(taps, stride, limits, across=4):
    """Whether there are registers for blocks of `across` outputs: taps, limits, a row of inputs, the sums."""
    return (taps[0] * taps[1] + sum(limits) + (across - 1) * stride[1] + taps[1] + across * _live(taps, stride)) <= 32


def _live(taps, stride):
    """Output rows that one input row is added to, at most: so many rows of sums live at a time."""
    return -(-taps[0] // stride[0])


@functools.cache
def function(form):
    """(name, LLVM IR) of the band's function. Arguments: source, taps, out (pointers)."""
    return _Band(form).finish()


class _Band(aarch64.Assembly):
    def __init__(self, form):
        super().__init__(form.element, ["source", "taps", "out"], ["count"])
        self.form = form
        self.across = min(4, form.width)
        kh, kw = form.taps
        self.columns = (self.across - 1) * form.stride[1] + kw
        self.limit0 = kh * kw
        self.input0 = self.limit0 + sum(form.limits)
        self.acc0 = self.input0 + self.columns
        self.live = min(form.down, _live(form.taps, form.stride))
        if self.acc0 + self.across * self.live > 32:
            raise ValueError("too many outputs for the registers")

    def acc(self, t, j):
        """Register of output j of row t; a row takes over the registers of one that is stored."""
        return self.acc0 + t % self.live * self.across + j

    def block(self, across):
        """`across` outputs of each row; the pointers move from row to row and end at the next block."""
        form = self.form
        kh, kw = form.taps
        stride_y, stride_x = form.stride
        columns = (across - 1) * stride_x + kw
        rows = (form.down - 1) * stride_y + kh
        started = set()
        for r in range(rows):
            back = across * stride_x * self.lanes - r * form.in_pitch  # from this row to the next block's first
            self.load_row(columns, form.in_pitch if r + 1 < rows else back)
            for t in range(form.down):
                ky = r - t * stride_y
                if not 0 <= ky < kh:
                    continue
                for kx in range(kw):
                    for j in range(across):
                        acc = self.acc(t, j)
                        value = self.vector(self.input0 + j * stride_x + kx)
                        word = "fmla" if (t, j) in started else "fmul"
                        self.add(f"{word} {self.vector(acc)}, {value}, {self.vector(ky * kw + kx)}")
                        started.add((t, j))
                if ky == kh - 1:
                    back = across * self.lanes - t * form.out_pitch
                    self.store_row(t, across, form.out_pitch if t + 1 < form.down else back)

    def load_row(self, columns, move):
        """The next input row of the block; then `source` is `move` elements on."""
        for first in range(0, columns, 4):
            count = min(4, columns - first)
            registers = self.list_of(self.input0 + first, count)
            if first + 4 < columns:
                self.add(f"ld1 {registers}, [[source]], #{count * 16}")
            else:
                self.add(f"ld1 {registers}, [[source]], [{self.constant((move - first * self.lanes) * self.size)}]")

    def store_row(self, t, across, move):
        registers = [self.acc(t, j) for j in range(across)]
        limit = self.limit0
        for word, there in zip(("fmaxnm", "fminnm"), self.form.limits):
            if there:
                for register in registers:
                    self.add(f"{word} {self.vector(register)}, {self.vector(register)}, {self.vector(limit)}")
                limit += 1
        self.add(f"st1 {self.list_of(registers[0], across)}, [[out]], [{self.constant(move * self.size)}]")

    def finish(self):
        form = self.form
        vectors = self.input0
        for first in range(0, vectors, 4):
            count = min(4, vectors - first)
            self.add(f"ld1 {self.list_of(first, count)}, [[taps]], #{count * 16}")
        turns, left = divmod(form.width, self.across)
        if turns > 1:
            self.add(f"mov [count:w], #{turns}")
            self.add("1:")
        self.block(self.across)
        if turns > 1:
            self.add("subs [count:w], [count:w], #1")
            self.add("b.ne 1b")
        if left:
            self.block(left)
        return self.as_function(f"band_{form.element}{form.down}x{form.width}")
