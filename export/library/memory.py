"""Where everything lies: one arena for activations and scratch, one block of caches, one of weights."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tsm_edge.export.graph.ops import outputs_of
from tsm_edge.export.kernels.write.base import ScratchArg, TensorArg, WeightArg

ALIGNMENT = 64
SLACK = 64  # bytes after the end of each block that a vector load may touch


@dataclass(frozen=True)
class Operand:
    """One argument of one kernel call. space: "frame", "logits", "cache", "next_cache", "arena" or "weights"."""

    space: str
    offset: int
    dtype: str
    shape: tuple


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call. bytes: all operands but scratch, each once."""

    name: str
    kernel: object
    operands: tuple
    bytes: int


@dataclass(frozen=True)
class CachePlace:
    """One cache in the cache block, channels last. channels, height, width in elements; offset in bytes."""

    name: str
    height: int
    width: int
    channels: int
    dtype: str
    offset: int

    @property
    def bytes(self):
        return self.height * self.width * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """The calls of a step with the place of every operand; sizes of the blocks in bytes (slack included)."""

    calls: tuple
    caches: tuple
    arena_bytes: int
    cache_bytes: int
    weights: bytes

    @property
    def weight_bytes(self):
        return len(self.weights)


def round_up(count, to=ALIGNMENT):
    return -(-count // to) * to


def arg_bytes(arg):
    """Size of a kernel argument in bytes."""
    if isinstance(arg, WeightArg):
        return arg.array.nbytes
    return int(np.prod(arg.shape, dtype=np.int64)) * np.dtype(arg.dtype).itemsize


def make_plan(calls, program, placing=None):
    """Give every tensor its place.

    Parameters
    ----------
    calls : list of (operation, Kernel)
        In execution order; an operation may take several kernels.
    program : Program
        Names the ends: frame, logits, caches and their successors.
    placing : callable or None
        Divides the arena, as `place` does.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    ValueError
        A kernel reads what nobody wrote, or disagrees with another about a tensor's size.
    """
    cache_of = {splice.cache: splice.cache for splice in program.caches}
    cache_of.update({splice.next_cache: splice.cache for splice in program.caches})
    sizes, dtypes = _tensor_sizes(calls, cache_of)
    caches, cache_bytes = _place_caches(program, dtypes)
    cache_offset = {cache.name: cache.offset for cache in caches}
    weights = _Weights()
    outside = {program.frame, program.logits, *cache_of}
    spans = _lifetimes(calls, sizes, program, outside)
    spans, home = _share(calls, spans)
    offsets, arena_bytes = (placing or place)(spans)

    planned = []
    for index, (op, kernel) in enumerate(calls):
        operands, touched = [], {}
        for position, arg in enumerate(kernel.args):
            if isinstance(arg, WeightArg):
                space, offset = "weights", weights.place(arg.array)
                dtype, shape = str(arg.array.dtype), tuple(arg.array.shape)
                touched["weights", offset] = arg.array.nbytes
            else:
                dtype, shape = arg.dtype, tuple(arg.shape)
                if isinstance(arg, ScratchArg):
                    space, offset = "arena", offsets[index, position]
                else:
                    touched[arg.name] = arg_bytes(arg)
                    if arg.name == program.frame:
                        space, offset = "frame", 0
                    elif arg.name == program.logits:
                        space, offset = "logits", 0
                    elif arg.name in cache_of:
                        space = "cache" if cache_of[arg.name] == arg.name else "next_cache"
                        offset = cache_offset[cache_of[arg.name]]
                    else:
                        space, offset = "arena", offsets[home.get(arg.name, arg.name)]
            operands.append(Operand(space, offset, dtype, shape))
        planned.append(Call(op.name, kernel, tuple(operands), sum(touched.values())))
    return MemoryPlan(tuple(planned), caches, arena_bytes, cache_bytes, weights.block())


def _tensor_sizes(calls, cache_of):
    sizes, dtypes = {}, {}
    for op, kernel in calls:
        for arg in kernel.args:
            if isinstance(arg, TensorArg):
                size = arg_bytes(arg)
                if sizes.setdefault(arg.name, size) != size:
                    raise ValueError(f"{op.name}: {arg.name} has {size} bytes here and {sizes[arg.name]} elsewhere")
                dtypes.setdefault(cache_of.get(arg.name, arg.name), arg.dtype)
    return sizes, dtypes


def _place_caches(program, dtypes):
    places, offset = [], 0
    for splice in program.caches:
        height, width, channels = program.shapes[splice.cache]
        place = CachePlace(splice.cache, height, width, channels, dtypes.get(splice.cache, "float32"), offset)
        places.append(place)
        offset = round_up(offset + place.bytes)
    return tuple(places), offset + SLACK if places else 0


def _lifetimes(calls, sizes, program, outside):
    """(key, size, first call, last call) of what lies in the arena; key: tensor name, or (call, position) of scratch."""
    first, last, spans = {}, {}, []
    known = {program.frame, *(splice.cache for splice in program.caches)}
    for index, (op, kernel) in enumerate(calls):
        writes = set(outputs_of(op))
        for position, arg in enumerate(kernel.args):
            if isinstance(arg, ScratchArg):
                spans.append(((index, position), arg_bytes(arg), index, index))
            elif isinstance(arg, TensorArg):
                inner = arg.name.startswith(op.name + ":")  # between two kernels of one operation
                if arg.name not in known and arg.name not in writes and not inner:
                    raise ValueError(f"{op.name} ({kernel.symbol}) reads {arg.name}, which nothing before it writes")
                if arg.name not in outside:
                    first.setdefault(arg.name, index)
                    last[arg.name] = index
        known.update(a.name for a in kernel.args if isinstance(a, TensorArg))
    missing = [name for name in (program.logits, *(s.next_cache for s in program.caches)) if name not in known]
    if missing:
        raise ValueError(f"no kernel writes {', '.join(missing)}")
    return spans + [(key, sizes[key], first[key], last[key]) for key in first]


def _share(calls, spans):
    """Put an output over an input that ends with the call, where the kernel can work in place.

    Returns
    -------
    (spans, dict)
        With the two lives joined; tensor -> the tensor whose place it has.
    """
    lives = {key: (size, first, last) for key, size, first, last in spans}
    home = {}
    for index, (_, kernel) in enumerate(calls):
        born = [a.name for a in kernel.args if isinstance(a, TensorArg) and lives.get(a.name, (0, -1, 0))[1] == index]
        for name in kernel.in_place:
            owner = home.get(name, name)
            if not born or owner not in lives or lives[owner][2] != index:
                continue
            heir = next((b for b in born if lives[b][0] == lives[owner][0]), None)
            if heir is not None:
                size, first, _ = lives[owner]
                lives[owner] = size, first, lives.pop(heir)[2]
                home[heir] = owner
                break
    return [(key, *life) for key, life in lives.items()], home


def place(spans):
    """Offsets in one arena for buffers that live from one call to another; those alive together do not overlap.

    Parameters
    ----------
    spans : list of (key, bytes, first, last)

    Returns
    -------
    (dict, int)
        Offset of each key, a multiple of 64; size of the arena with its slack (0 when nothing is in it).
    """
    orders = (
        lambda s: (-s[1], s[2], str(s[0])),  # largest first
        lambda s: (-(s[3] - s[2]), -s[1], s[2], str(s[0])),  # longest-lived first
        lambda s: (s[2], -s[1], str(s[0])),  # in the order of execution
    )
    return min((_place_in_order(sorted(spans, key=order)) for order in orders), key=lambda result: result[1])


def _place_in_order(spans):
    placed, offsets, total = [], {}, 0
    for key, size, first, last in spans:
        size = round_up(max(size, 1))
        beside = sorted((o, s) for o, s, f, until in placed if f <= last and first <= until)
        # the smallest gap it fits into, else after the last neighbour
        best, end = None, 0
        for offset, other in beside:
            if offset - end >= size and (best is None or offset - end < best[0]):
                best = (offset - end, end)
            end = max(end, offset + other)
        at = best[1] if best else end
        placed.append((at, size, first, last))
        offsets[key] = at
        total = max(total, at + size)
    return offsets, total + SLACK if total else 0


class _Weights:
    """The weights block: equal arrays are kept once."""

    def __init__(self):
        self.parts, self.size, self.seen = [], 0, {}

    def place(self, array):
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(data).digest(), len(data)
        if key not in self.seen:
            start = round_up(self.size)
            self.parts += [bytes(start - self.size), data]
            self.size = start + len(data)
            self.seen[key] = start
        return self.seen[key]

    def block(self):
        return b"".join([*self.parts, bytes(round_up(self.size) - self.size + SLACK)])
