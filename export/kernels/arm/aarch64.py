"""The whole register tile for 64-bit ARM as one block of assembly inside TensorIR: bias, products, residual, clip, store.

LLVM's register allocator spills when a tile fills all 32 registers and its scheduler differs from one core to the next; a
tile written out is the same on each. `function(...)` makes an LLVM function whose body is that assembly; TensorIR code
calls it by name and TVM inlines it (pragma_import_llvm). Instructions of the inner loop, for 4 rows x 4 vectors and 8
channels: 128 multiply-adds by lane, 4 loads of inputs, 8 of weights, 2 for the loop.

Half precision ("h") has 8 lanes; there the lane operand must be one of v0 to v15, which inputs always are. A tile may also
compute in single precision and store its results narrowed to half precision.
"""
from __future__ import annotations

import functools
import hashlib
import math
import struct
from dataclasses import dataclass

ELEMENTS = {"float32": "s", "float16": "h"}
_LOOP_FROM = 4  # turns from which a loop is written as a loop


def block_length(depth):
    """How many channels half precision sums at a time, from zero, before the sum is added to those before.

    Rounding takes a share of each partial sum: over 960 channels the error is a third of that of one long sum.
    """
    return 16 if depth <= 192 else 32


@dataclass(frozen=True)
class Spacing:
    """How the rows of a tile lie in memory; distances in elements.

    steps : distance of each row from the first. plane : 0 where the channels of a row lie side by side; else a row has
    one vector of channels in each plane, and planes are this far apart.
    """

    steps: tuple[int, ...]
    plane: int = 0


@dataclass(frozen=True)
class TileForm:
    """Everything that shapes a tile's code.

    spans : (channels, Spacing) of each span. residual (channels side by side) : its rows' steps.
    limits : instead of bias and clip: there is no bias, and behind the weights come limits of their own for each channel
    (whether there is a lower, an upper one). narrow : all but the output is float32, the output float16; then `vectors`
    is even, two of them make one vector of the output, and `out` counts float16 elements.
    """

    vectors: int
    spans: tuple[tuple[int, Spacing], ...]
    out: Spacing
    clip: tuple[float, float] | None
    residual: tuple[int, ...] | None = None
    element: str = "s"  # "s": float32, "h": float16
    limits: tuple[bool, bool] | None = None
    narrow: bool = False

    @property
    def rows(self):
        return len(self.out.steps)


def fits(rows, vectors):
    """Whether a tile has enough registers: accumulators, one input vector per row, one set of weights."""
    return 1 <= vectors <= 4 and rows >= 1 and rows * vectors + rows + vectors <= 32


def instructions(rows, vectors, depth, lanes, clip):
    """About how many instructions a tile takes, for choosing its shape."""
    pairs = rows * vectors + 2 * rows + vectors <= 32
    inner = rows * vectors + 1 + (rows * (1 if pairs else 2) + 2) / (2 * lanes)
    return depth * inner + 3 * rows + (2 * rows * vectors if clip else 0) + 12


@functools.cache
def function(form):
    """(name, LLVM IR) of the tile's function. Its arguments are pointers: weights, out, [residual,] one per span."""
    return _Tile(form).finish()


class Assembly:
    """Lines of assembly that become the body of an LLVM function.

    [name] in a line is the register of a pointer, temporary or constant; [name:w] its 32-bit half.
    """

    def __init__(self, element, pointers, temps):
        self.element = element
        self.lanes, self.size = (4, 4) if element == "s" else (8, 2)
        self.pointers, self.temps = pointers, temps
        self.lines = []
        self.constants = {}  # value -> name; in a register before the code starts, so outside of loops around it

    def add(self, line):
        self.lines.append(line)

    def vector(self, number):
        return f"v{number}.{self.lanes}{self.element}"

    def list_of(self, first, count):
        return "{" + ", ".join(self.vector(first + i) for i in range(count)) + "}"

    def constant(self, value):
        """Operand that holds `value`."""
        return self.constants.setdefault(value, f"c{len(self.constants)}")

    def move(self, pointer, source, elements):
        """pointer = source + elements."""
        value = elements * self.size
        if value == 0 and pointer == source:
            return
        word = "add" if value >= 0 else "sub"
        if abs(value) < 4096 or (value % 4096 == 0 and abs(value) < 1 << 24):
            self.add(f"{word} [{pointer}], [{source}], #{abs(value)}")
        else:
            self.add(f"add [{pointer}], [{source}], [{self.constant(value)}]")

    def as_function(self, what):
        """(name, LLVM IR). Operands: pointers (changed), temporaries, then constants."""
        operands = {name: f"${i}" for i, name in enumerate(self.pointers + self.temps)}
        tied = len(self.pointers)
        for name in self.constants.values():
            operands[name] = f"${len(operands) + tied}"  # the tied inputs are numbered in between
        text = "\n".join(self.lines)
        for name, operand in operands.items():
            text = text.replace(f"[{name}]", operand).replace(f"[{name}:w]", f"${{{operand[1:]}:w}}")
        kinds = "ptr, " * tied + "i64, " * len(self.temps)
        constraints = ["=r"] * tied + ["=&r"] * len(self.temps) + [str(i) for i in range(tied)]
        constraints += ["r"] * len(self.constants) + [f"~{{v{i}}}" for i in range(32)] + ["~{cc}", "~{memory}"]
        values = [f"ptr %{name}" for name in self.pointers] + [f"i64 {value}" for value in self.constants]
        body = text.replace("\n", "\\0A").replace('"', '\\"')
        digest = hashlib.sha256((text + repr(list(self.constants))).encode()).hexdigest()[:16]
        name = f"tsm_{what}_{digest}"
        return name, (f"define void @{name}({', '.join(f'ptr %{p}' for p in self.pointers)}) {{\n"
                      f"  %r = call {{ {kinds[:-2]} }} asm sideeffect \"{body}\", \"{','.join(constraints)}\"("
                      f"{', '.join(values)})\n  ret void\n}}\n")


class _Tile(Assembly):
    def __init__(self, form):
        rows, vectors = form.rows, form.vectors
        super().__init__(form.element, ["weights", "out"] + ["residual"] * bool(form.residual)
                         + [f"x{i}" for i in range(len(form.spans))],
                         [f"row{i}" for i in range(1, rows)] + ["count"] + ["blocks", "kept"] * (form.element == "h"))
        self.form = form
        # registers: inputs first (lane operands of half precision must be low), weights, accumulators last
        free = 32 - rows * vectors
        self.pairs = 2 * rows + vectors <= free  # two vectors of inputs at a time
        inputs = rows * (2 if self.pairs else 1)
        self.sets = 2 if inputs + 2 * vectors <= free else 1  # weights of the next channel are loaded early
        self.weight0 = inputs
        self.acc0 = free
        self.fresh = False  # the accumulators hold nothing yet
        self.out_size = 2 if form.narrow else self.size
        self.out_vectors = vectors // 2 if form.narrow else vectors

    def acc(self, row, column):
        """Registers that are stored together lie side by side."""
        if self.form.out.plane:
            return self.acc0 + column * self.form.rows + row
        return self.acc0 + row * self.form.vectors + column

    def each_row(self, pointer, steps, instruction, size=None):
        """One instruction for each row, `pointer` moved along.

        instruction(row) -> (text before the address, pairs of registers to add up after it). size : bytes of an element,
        if not those that the tile computes in.
        """
        size = size or self.size
        deltas = [b - a for a, b in zip(steps, steps[1:])]
        for row in range(len(steps)):
            text, pairs = instruction(row)
            text += f", [[{pointer}]]"
            if row + 1 < len(steps):
                near = deltas[row] == self.form.vectors * self.lanes
                text += f", #{deltas[row] * size}" if near else f", [{self.constant(deltas[row] * size)}]"
            self.add(text)
            self.added(pairs)

    def start(self):
        """Accumulators = bias + residual; with limits they are left to the first product."""
        form = self.form
        width = form.vectors
        if form.limits is not None:
            self.fresh = True
            return
        if form.out.plane:
            self.add(f"ld1 {self.list_of(self.weight0, width)}, [[weights]], #{width * 16}")
            for column in range(width):
                for row in range(form.rows):
                    self.add(f"mov v{self.acc(row, column)}.16b, v{self.weight0 + column}.16b")
            return
        if form.residual is None:
            for row in range(form.rows):
                last = f", #{width * 16}" if row == form.rows - 1 else ""
                self.add(f"ld1 {self.list_of(self.acc(row, 0), width)}, [[weights]]{last}")
            return
        self.add(f"ld1 {self.list_of(self.weight0, width)}, [[weights]], #{width * 16}")
        self.each_row("residual", form.residual, lambda row: (f"ld1 {self.list_of(self.acc(row, 0), width)}", ()))
        for row in range(form.rows):
            for column in range(width):
                acc = self.vector(self.acc(row, column))
                self.add(f"fadd {acc}, {acc}, {self.vector(self.weight0 + column)}")

    def load_weights(self, which):
        first, width = self.weight0 + which * self.form.vectors, self.form.vectors
        self.add(f"ld1 {self.list_of(first, width)}, [[weights]], #{width * 16}")
        return first

    def steps(self, inputs, fresh=False):
        """Multiply-adds of several channels. inputs: per channel, a function row -> (register, lane).

        fresh : the accumulators start from zero.
        """
        form = self.form
        if fresh:
            self.fresh = False
        ready = self.load_weights(0) if self.sets == 2 else None
        for number, source in enumerate(inputs):
            if self.sets == 2:
                first = ready
                if number + 1 < len(inputs):
                    ready = self.load_weights((number + 1) % 2)
            else:
                first = self.load_weights(0)
            for column in range(form.vectors):
                for row in range(form.rows):
                    register, lane = source(row)
                    word = "fmul" if fresh and number == 0 else "fmla"
                    self.add(f"{word} {self.vector(self.acc(row, column))}, {self.vector(first + column)}, "
                             f"v{register}.{form.element}[{lane}]")

    def span(self, number, channels, spacing):
        """All products of one span."""
        pointer = f"x{number}"
        if spacing.plane:
            return self.turns(channels, lambda count, fresh=False: self.plane_of(pointer, spacing, count, fresh), None)
        rows = [pointer] + [f"row{i}" for i in range(1, self.form.rows)]
        for i in range(1, self.form.rows):
            self.move(rows[i], rows[i - 1], spacing.steps[i] - spacing.steps[i - 1])
        self.turns(channels, lambda count, fresh=False: self.vectors_of(rows, fresh) if count == self.lanes else
                   self.rest(rows, count, channels, fresh), rows if self.pairs else None)

    def turns(self, channels, vectors, rows):
        """`channels` in turns of two vectors each; vectors(count) does one vector or, at the end, less.

        rows : pointers of the rows, if two vectors of each are to be loaded at a time.
        """
        turns, left = divmod(channels, 2 * self.lanes)

        def whole(fresh=False):
            if rows:
                for i, pointer in enumerate(rows):
                    self.add(f"ldp q{2 * i}, q{2 * i + 1}, [[{pointer}]], #32")
                self.steps([lambda row, k=k: (2 * row + k // self.lanes, k % self.lanes)
                            for k in range(2 * self.lanes)], fresh)
            else:
                vectors(self.lanes, fresh)
                vectors(self.lanes)

        block = block_length(channels) // (2 * self.lanes)
        if self.fresh and self.element == "h":
            for register in range(self.acc0, 32):
                self.add(f"movi v{register}.2d, #0")
            self.fresh = False
        if self.fresh and turns:
            whole(fresh=True)
            turns -= 1
        if self.element == "h" and turns >= 2 * block:
            self.partial("store")
            self.add(f"mov [blocks:w], #{turns // block}")
            self.add("2:")
            whole(fresh=True)
            self.repeat(block - 1, whole)
            self.partial("add")
            self.partial("store")
            self.add("subs [blocks:w], [blocks:w], #1")
            self.add("b.ne 2b")
            self.partial("load")
            turns %= block
        self.repeat(turns, whole)
        for count in (self.lanes, left - self.lanes) if left > self.lanes else (left,):
            if count:
                vectors(count, self.fresh)

    def repeat(self, count, body):
        if count < _LOOP_FROM and (self.element == "s" or count < 2):
            for _ in range(count):
                body()
            return
        self.add(f"mov [count:w], #{count}")
        self.add("1:")
        body()
        self.add("subs [count:w], [count:w], #1")
        self.add("b.ne 1b")

    def partial(self, what):
        """Keep the accumulators where the result goes: "store" them there, "load" them, or "add" what is there."""
        form = self.form
        self.add("mov [kept], [out]")
        word = "st1" if what == "store" else "ld1"
        if form.out.plane:
            def run(first, rows, plane):
                register = 0 if what == "add" else self.acc(first, plane)
                added = [(self.acc(first + i, plane), i) for i in range(rows)] if what == "add" else []
                return f"{word} {self.list_of(register, rows)}", added

            self.each_run("kept", form.out, form.vectors, run)
        else:
            def row_of(row):
                register = 0 if what == "add" else self.acc(row, 0)
                added = [(self.acc(row, i), i) for i in range(form.vectors)] if what == "add" else []
                return f"{word} {self.list_of(register, form.vectors)}", added

            self.each_row("kept", form.out.steps, row_of)

    def added(self, pairs):
        for acc, register in pairs:
            self.add(f"fadd {self.vector(acc)}, {self.vector(acc)}, {self.vector(register)}")

    def plane_of(self, pointer, spacing, count, fresh):
        """One vector of each row from a plane, `count` channels of it used; the pointer moves on to the next plane."""
        self.each_run(pointer, spacing, 1, lambda first, rows, _: (f"ld1 {self.list_of(first, rows)}", ()))
        self.steps([lambda row, k=k: (row, k) for k in range(count)], fresh)

    def each_run(self, pointer, spacing, planes, instruction, size=None):
        """One instruction for up to four rows that lie side by side, in each of `planes` planes.

        instruction(first row, number of rows, plane), size -> as in each_row. The pointer ends at the next plane.
        """
        size = size or self.size
        runs = []
        for row, step in enumerate(spacing.steps):
            if row and step == spacing.steps[row - 1] + 16 // size and runs[-1][1] < 4:
                runs[-1][1] += 1
            else:
                runs.append([row, 1])
        starts = [spacing.steps[row] for row, _ in runs] + [spacing.plane]
        for plane in range(planes):
            for number, (first, rows) in enumerate(runs):
                move = (starts[number + 1] - starts[number]) * size
                by = f"#{move}" if move == rows * 16 else f"[{self.constant(move)}]"
                text, pairs = instruction(first, rows, plane)
                self.add(f"{text}, [[{pointer}]], {by}")
                self.added(pairs)

    def vectors_of(self, rows, fresh=False):
        """One vector of inputs of each row."""
        for i, pointer in enumerate(rows):
            self.add(f"ldr q{i}, [[{pointer}]], #16")
        self.steps([lambda row, k=k: (row, k) for k in range(self.lanes)], fresh)

    def rest(self, rows, left, channels, fresh):
        """The last channels, fewer than a vector: read from further back where the row has that much, else one by one."""
        if channels >= self.lanes:
            back = (self.lanes - left) * self.size
            for i, pointer in enumerate(rows):
                self.add(f"ldur q{i}, [[{pointer}], #-{back}]")
            self.steps([lambda row, k=k: (row, k) for k in range(self.lanes - left, self.lanes)],
                       fresh)
            return
        for i, pointer in enumerate(rows):
            for k in range(left):
                self.add(f"ld1 {{v{i}.{self.element}}}[{k}], [[{pointer}]], #{self.size}")
        self.steps([lambda row, k=k: (row, k) for k in range(left)], fresh)

    def clip(self):
        """Inputs and weights are done with: their registers hold the limits."""
        if self.form.limits is not None:
            return self.own_limits()
        low, high = self.form.clip
        used = []
        for register, (word, limit) in enumerate((("fmaxnm", low), ("fminnm", high))):
            if math.isinf(limit):
                continue
            self.limit(register, limit)
            used.append((word, self.vector(register)))
        for row in range(self.form.rows):
            for column in range(self.form.vectors):
                acc = self.vector(self.acc(row, column))
                for word, limit in used:
                    self.add(f"{word} {acc}, {acc}, {limit}")

    def own_limits(self):
        vectors, used = self.form.vectors, []
        for word, there in zip(("fmaxnm", "fminnm"), self.form.limits):
            if there:
                first = len(used) * vectors
                self.add(f"ld1 {self.list_of(first, vectors)}, [[weights]], #{vectors * 16}")
                used.append((word, first))
        for column in range(vectors):
            for row in range(self.form.rows):
                acc = self.vector(self.acc(row, column))
                for word, first in used:
                    self.add(f"{word} {acc}, {acc}, {self.vector(first + column)}")

    def limit(self, register, value):
        if value == 0:
            self.add(f"movi v{register}.2d, #0")
        elif _is_immediate(value):
            self.add(f"fmov {self.vector(register)}, #{value:.8f}")
        else:
            bits = struct.unpack("<I", struct.pack("<f", value))[0] if self.element == "s" else \
                struct.unpack("<H", struct.pack("<e", value))[0]
            self.add(f"dup {self.vector(register)}, [{self.constant(bits)}:w]")

    def result(self, row, column):
        """Register of one vector of the output."""
        return self.acc(row, 2 * column if self.form.narrow and self.form.out.plane else column)

    def narrow(self):
        """Two vectors of accumulators become one of the output."""
        for column in range(self.out_vectors):
            for row in range(self.form.rows):
                register = self.result(row, column)
                self.add(f"fcvtn v{register}.4h, {self.vector(self.acc(row, 2 * column))}")
                self.add(f"fcvtn2 v{register}.8h, {self.vector(self.acc(row, 2 * column + 1))}")

    def finish(self):
        form = self.form
        self.start()
        for number, (channels, spacing) in enumerate(form.spans):
            self.span(number, channels, spacing)
        if form.clip or form.limits is not None:
            self.clip()
        if form.narrow:
            self.narrow()
        if form.out.plane:
            self.each_run("out", form.out, self.out_vectors,
                          lambda first, rows, plane: (f"st1 {self.list_of(self.result(first, plane), rows)}", ()), self.out_size)
        else:
            self.each_row("out", form.out.steps,
                          lambda row: (f"st1 {self.list_of(self.result(row, 0), self.out_vectors)}", ()), self.out_size)
        return self.as_function(f"tile_{form.element}{form.rows}x{form.vectors}")


def _is_immediate(value):
    """Whether fmov can hold it: +-(16..31) / 16 * 2**(-3..4)."""
    if value == 0 or math.isinf(value) or math.isnan(value):
        return False
    fraction, exponent = math.frexp(abs(value))  # fraction in [0.5, 1)
    return -2 <= exponent <= 5 and fraction * 32 == int(fraction * 32)
