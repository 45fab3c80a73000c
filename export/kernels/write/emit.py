"""Building TensorIR statement by statement: what you write is the code that LLVM gets.

    e = Emitter()
    x, out = e.param("x", 64), e.param("out", 64)
    with e.loop(16, "parallel") as i:
        e.store(out, i * 4, e.load(x, i * 4, 4) * 2.0)
    func = e.function("double_64")

Buffers are flat (one dimension, row-major); offsets count elements. `e.vector(lanes)` is a register: a small local
buffer which LLVM keeps in registers, because each of its accesses is at a constant place. (Its scope is "global": TVM
puts "local" ones into a workspace allocated at run time.) Values are tirx expressions; `e.bind` names one, so that it
is computed once.
"""
from __future__ import annotations

import contextlib

import tvm
from tvm import tirx
from tvm.tirx import op as tir_op

_KINDS = {"serial": tirx.ForKind.SERIAL, "parallel": tirx.ForKind.PARALLEL}


def _index(value):
    return tirx.IntImm("int32", value) if isinstance(value, int) else value


class Register:
    """One mutable vector (or scalar, lanes 1) that lives in a machine register."""

    def __init__(self, emitter, lanes, dtype):
        self.lanes, self.dtype = lanes, dtype
        self._emitter = emitter
        self._buffer = tirx.decl_buffer((lanes,), dtype, emitter.fresh("r"), scope="global")
        emitter.emit(tirx.AllocBuffer(self._buffer))

    def get(self):
        return self._emitter.load(self._buffer, 0, self.lanes)

    def set(self, value):
        self._emitter.store(self._buffer, 0, value)


class Emitter:
    """Collects parameters and statements of one kernel. dtype : of parameters and registers for which none is given."""

    def __init__(self, dtype="float32"):
        self._params = []
        self._blocks = [[]]
        self.dtype = dtype
        self._count = 0
        self._llvm = {}

    def fresh(self, hint):
        self._count += 1
        return f"{hint}{self._count}"

    def emit(self, statement):
        self._blocks[-1].append(statement)

    def param(self, name, size, dtype=None):
        """The next parameter: a flat buffer of `size` elements. Parameters come in the order of a Kernel's args."""
        buffer = tirx.decl_buffer((size,), dtype or self.dtype, name)
        self._params.append(buffer)
        return buffer

    def vector(self, lanes, dtype=None):
        """A new register variable; read with .get(), written with .set(value)."""
        return Register(self, lanes, dtype or self.dtype)

    def bind(self, value, hint="v"):
        """Name a value: it is computed here, once. Constants come back as they are."""
        if isinstance(value, (int, float, tirx.IntImm)):
            return value
        var = tirx.Var(self.fresh(hint), value.dtype if hasattr(value, "dtype") else value.ty)
        self.emit(tirx.Bind(var, value))
        return var

    def load(self, buffer, offset, lanes=1):
        """buffer[offset : offset + lanes]; a scalar for lanes 1."""
        offset = _index(offset)
        return tirx.BufferLoad(buffer, [offset if lanes == 1 else tirx.Ramp(offset, _index(1), lanes)])

    def store(self, buffer, offset, value, lanes=None):
        """buffer[offset : offset + lanes of value] = value."""
        lanes = lanes or lanes_of(value)
        offset = _index(offset)
        self.emit(tirx.BufferStore(buffer, value, [offset if lanes == 1 else tirx.Ramp(offset, _index(1), lanes)]))

    def prefetch(self, buffer, offset):
        """Bring the line of buffer[offset] near; the offset may lie behind the end."""
        address = tir_op.address_of(tirx.BufferLoad(buffer, [_index(offset)]))
        read, near, data = _index(0), _index(3), _index(1)
        self.emit(tirx.Evaluate(tir_op.call_llvm_intrin("void", "llvm.prefetch", address, read, near, data)))

    @contextlib.contextmanager
    def loop(self, extent, kind="serial"):
        """`with e.loop(n) as i:` runs the statements inside n times (an int or an expression); i is 0 if n is 1."""
        if isinstance(extent, int) and extent == 1:
            yield 0
            return
        var = tirx.Var(self.fresh("i"), "int32")
        self._blocks.append([])
        yield var
        body = self._blocks.pop()
        if body and not (isinstance(extent, int) and extent <= 0):
            self.emit(tirx.For(var, _index(0), _index(extent), _KINDS[kind], _seq(body)))

    @contextlib.contextmanager
    def when(self, condition):
        """`with e.when(cond):` runs the statements inside only if cond; a Python bool decides here and now."""
        self._blocks.append([])
        yield
        body = self._blocks.pop()
        if isinstance(condition, bool):
            self._blocks[-1].extend(body if condition else [])
        elif body:
            self.emit(tirx.IfThenElse(condition, _seq(body), None))

    @contextlib.contextmanager
    def each_thread(self):
        """`with e.each_thread():` runs the statements inside once in each thread; parallel loops in there are shared out.

        Each thread gets one contiguous part of such a loop, in order, so registers set before it carry state along.
        """
        self._blocks.append([])
        yield
        body = _seq(self._blocks.pop())
        self.emit(tirx.AttrStmt(_index(0), "pragma_parallel_launch_point", _index(1), body))

    def choose(self, condition, then, otherwise):
        """Run `then()` or `otherwise()` (functions that emit), by a condition at run time or a Python bool."""
        if isinstance(condition, bool):
            return (then if condition else otherwise)()
        branches = []
        for function in (then, otherwise):
            self._blocks.append([])
            function()
            branches.append(_seq(self._blocks.pop()))
        self.emit(tirx.IfThenElse(condition, *branches))

    def call_llvm(self, name, text, places):
        """Call a function given as LLVM IR text; it is inlined. Its arguments are addresses: places is
        [(buffer, offset)]."""
        self._llvm[name] = text
        addresses = [tir_op.address_of(tirx.BufferLoad(buffer, [_index(offset)])) for buffer, offset in places]
        self.emit(tirx.Evaluate(tir_op.call_extern("void", name, *addresses)))

    def function(self, symbol):
        """The finished PrimFunc; its parameters do not alias."""
        body = _seq(self._blocks[0])
        for text in self._llvm.values():
            body = tirx.AttrStmt(_index(0), "pragma_import_llvm", tvm.ir.StringImm(text), body)
        func = tirx.PrimFunc(self._params, body)
        return func.with_attr({"global_symbol": symbol, "s_tir": True, "tirx.noalias": True})


def _seq(statements):
    if not statements:
        return tirx.Evaluate(_index(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def lanes_of(value):
    return _type_of(value)[1]


def _type_of(value):
    """(element type, lanes) of an expression."""
    dtype, _, lanes = (str(value.dtype) if hasattr(value, "dtype") else str(value.ty)).partition("x")
    return dtype, int(lanes or 1)


def splat(value, lanes, dtype=None):
    """A scalar in all lanes: an expression, or a number of element type `dtype`."""
    if isinstance(value, (int, float)):
        if dtype == "float16":
            value = max(-65504.0, min(65504.0, value))
        value = tirx.FloatImm(dtype, float(value))
    return value if lanes == 1 else tirx.Broadcast(value, _index(lanes))


def lane(vector, index):
    """One lane of a vector expression, as a scalar."""
    return tirx.Shuffle([vector], [_index(index)])


def part(vector, start, count):
    """Lanes [start, start + count) of a vector expression."""
    return tirx.Shuffle([vector], [_index(i) for i in range(start, start + count)])


def cast(value, dtype, lanes, source=None):
    """A vector as one of another element type; `source` is the type it has, if it may be this one already."""
    return value if source == dtype else tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def fma(a, b, c):
    """a * b + c, fused where the target can."""
    return tir_op.fma(a, b, c)


def clipped(value, clip, lanes):
    """min(max(value, low), high); `clip` is (low, high) or None, and infinite ends are left out."""
    if clip is None:
        return value
    (low, high), (dtype, _) = clip, _type_of(value)
    if low != float("-inf"):
        value = tirx.Max(value, splat(low, lanes, dtype))
    if high != float("inf"):
        value = tirx.Min(value, splat(high, lanes, dtype))
    return value
