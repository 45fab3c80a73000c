"""ONNX step graph -> step program: batch norms folded, channels last, clip, residual and cache splice fused.

One pass over the nodes in their order. Each node becomes an operation of the program, or melts into the operation that
made its input (when nobody else reads that), or stays as it is and is left to TVM's own legalisation.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from tsm_edge.errors import InputError

from .groups import group_fallbacks
from .ops import Add, ApplySplice, Conv, Dense, GlobalAveragePool, Pool, Program, Splice, inputs_of, outputs_of
from .read import read_graph

INF = float("inf")
MOST_DILATED = 6  # dilated kernels are filled with zeros up to this many times their taps: still faster than no kernel


def import_onnx(model, frame="frame", logits="logits"):
    """Read a step graph.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Inputs `frame` [1, 3, H, W] and `cache.<layer>` [1, fold, h, w]; outputs `logits` [1, classes] and
        `next_cache.<layer>`; float32, fixed shapes.

    Returns
    -------
    Program

    Raises
    ------
    InputError
        The graph is not such a step graph; says which tensor or operation.
    """
    graph = read_graph(model)
    caches = _check_ends(graph, frame, logits)
    importer = _Importer(graph)
    for node in graph.nodes:
        importer.visit(node)
    ops = _without_unused(importer.ops, set(graph.outputs))
    ops, shapes = group_fallbacks(ops, graph)
    splices = {op_splice.cache: op_splice for op_splice in map(_splice_of, ops) if op_splice}
    listed = []
    for name in caches:  # a cache that is used in an unknown way has no channels of its own to name
        fold = graph.shapes[name][1]
        listed.append(splices.get(name) or Splice(name, "next_" + name, 0, fold))
    return Program([_at_end(op, frame, logits) for op in ops], shapes, frame, logits, listed)


def _at_end(op, frame, logits):
    """The operation, with the type of what it has of the step's ends: the frame comes and the logits go as float32."""
    if isinstance(op, Conv) and op.x == frame:
        return replace(op, x_dtype="float32")
    if isinstance(op, Dense) and op.out == logits:
        return replace(op, out_dtype="float32")
    return op


def _splice_of(op):
    return getattr(op, "splice", None)


def _check_ends(graph, frame, logits):
    caches = [name for name in graph.inputs if name != frame]
    expected = "inputs frame, cache.<layer>...; outputs logits, next_cache.<layer>..."
    do = "write the step graph with tsm-export (or tsm_edge.export.graph.write.export_onnx)"
    if frame not in graph.inputs or logits not in graph.outputs:
        raise InputError("this is not a step graph", found=f"inputs {graph.inputs}, outputs {graph.outputs}"[:300],
                         expected=expected, do=do)
    shape = graph.shapes[frame]
    if len(shape) != 4 or shape[0] != 1 or shape[1] != 3:
        raise InputError("the frame has an unexpected shape", found=shape, expected="[1, 3, H, W]", do=do)
    wrong = [name for name in caches if "next_" + name not in graph.outputs]
    unknown = [name for name in graph.outputs if name != logits and name.replace("next_", "", 1) not in caches]
    if wrong or unknown:
        raise InputError("caches and next caches do not pair", found=f"unpaired: {', '.join((wrong + unknown)[:5])}",
                         expected="one next_cache.<layer> for each cache.<layer>", do=do)
    for name in caches:
        shape, after = graph.shapes[name], graph.shapes["next_" + name]
        if shape != after or len(shape) != 4 or shape[0] != 1:
            raise InputError(f"{name} and its successor differ in shape", found=f"{shape} and {after}",
                             expected="[1, fold, h, w], the same for both", do=do)
    if len(graph.shapes[logits]) != 2 or graph.shapes[logits][0] != 1:
        raise InputError("the logits have an unexpected shape", found=graph.shapes[logits], expected="[1, classes]",
                         do=do)
    for name in [*graph.inputs, *graph.outputs]:
        if graph.dtypes[name] != np.float32:
            raise InputError(f"{name} is not float32", found=graph.dtypes[name], expected="float32", do=do)
    return caches


def _without_unused(ops, needed):
    kept = []
    for op in reversed(ops):
        if any(name in needed for name in outputs_of(op)):
            kept.append(op)
            needed.update(inputs_of(op))
    return kept[::-1]


class _Importer:
    """Holds the operations made so far; `take` hands back one that may still be changed."""

    def __init__(self, graph):
        self.graph = graph
        self.uses = graph.uses()
        self.producers = graph.producers()
        self.ops = []

    # --- helpers ---

    def shape(self, name):
        return self.graph.shapes[name]

    def constant(self, name):
        return self.graph.constants.get(name) if name else None

    def is_map(self, name):
        """A float activation [1, c, h, w] that is not a constant."""
        shape = self.shape(name)
        return len(shape) == 4 and shape[0] == 1 and self.is_float(name)

    def is_vector(self, name):
        shape = self.shape(name)
        return len(shape) == 2 and shape[0] == 1 and self.is_float(name)

    def is_float(self, name):
        return self.graph.dtypes.get(name) == np.float32 and name not in self.graph.constants

    def find(self, name, kinds):
        """The operation that makes `name`, if it is one of `kinds` and nobody else reads `name`."""
        if self.uses[name] != 1:
            return None
        for op in reversed(self.ops):
            if isinstance(op, kinds) and op.out == name:
                return op
        return None

    def put(self, op, instead_of=None):
        if instead_of is not None:
            self.ops.remove(instead_of)
        self.ops.append(op)

    def visit(self, node):
        handler = getattr(self, "do_" + node.op, None) if node.domain in ("", "ai.onnx") else None
        if handler is None or not handler(node):
            self.ops.append(node)

    # --- convolution and what melts into it ---

    def do_Conv(self, node):
        x, weight, bias = node.input(0), self.constant(node.input(1)), self.constant(node.input(2))
        if weight is None or weight.ndim != 4 or (node.input(2) and bias is None) or not self.is_map(x):
            return False
        weight = _dilated(weight, node.attrs.get("dilations", [1, 1]))
        if weight is None:
            return False
        stride = tuple(node.attrs.get("strides", (1, 1)))
        padding = _padding(node, self.shape(x)[2:], weight.shape[2:], stride)
        if padding is None:
            return False
        groups = node.attrs.get("group", 1)
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        name = _name(node, 1)
        splice = None
        made = self.find(x, ApplySplice) if groups == 1 else None
        if made is not None:
            x, splice = made.x, made.splice
        self.put(Conv(name, x, node.out, _f32(weight), _f32(bias), stride, padding, groups, splice=splice), made)
        return True

    def do_BatchNormalization(self, node):
        scale, shift, mean, var = (self.constant(node.input(i)) for i in (1, 2, 3, 4))
        if any(v is None for v in (scale, shift, mean, var)) or node.attrs.get("training_mode", 0):
            return False
        factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + node.attrs.get("epsilon", 1e-5))
        return self.fold_affine(node, node.input(0), factor, shift - mean * factor)

    def fold_affine(self, node, x, factor, shift):
        """x * factor + shift by channel, melted into the convolution or dense layer that makes x."""
        op = self.find(x, (Conv, Dense))
        if op is None or op.clip is not None or getattr(op, "residual", None):
            return False
        if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
            return False
        shape = (-1,) + (1,) * (op.weight.ndim - 1)
        weight = op.weight.astype(np.float64) * np.broadcast_to(factor, op.bias.shape).reshape(shape)
        bias = op.bias.astype(np.float64) * factor + shift
        self.put(replace(op, out=node.out, weight=_f32(weight), bias=_f32(np.broadcast_to(bias, op.bias.shape))), op)
        return True

    def by_channel(self, name, x):
        """A constant operand as one value for each channel of x (or one for all), else None."""
        value, shape = self.constant(name), self.shape(x)
        if value is None or value.dtype != np.float32 or value.ndim > len(shape):
            return None
        full = (1,) * (len(shape) - value.ndim) + value.shape
        if full[1] not in (1, shape[1]) or any(d != 1 for i, d in enumerate(full) if i != 1):
            return None
        return value.astype(np.float64).reshape(-1)

    def do_Mul(self, node):
        return self.affine(node, lambda v: (v, 0.0 * v), commutes=True)

    def do_Div(self, node):
        return self.affine(node, lambda v: (1.0 / np.where(v == 0, np.nan, v), 0.0 * v))

    def do_Sub(self, node):
        return self.affine(node, lambda v: (np.ones_like(v), -v))

    def affine(self, node, make, commutes=False):
        pairs = [(node.input(0), node.input(1))] + ([(node.input(1), node.input(0))] if commutes else [])
        for x, other in pairs:
            if x in self.graph.constants or len(self.shape(x)) not in (2, 4):
                continue
            value = self.by_channel(other, x)
            if value is not None and self.shape(node.out) == self.shape(x) and self.fold_affine(node, x, *make(value)):
                return True
        return False

    def do_Add(self, node):
        if self.affine(node, lambda v: (np.ones_like(v), v), commutes=True):
            return True
        a, b = node.input(0), node.input(1)
        same = self.shape(a) == self.shape(b)
        if not same or not all(self.is_map(n) or self.is_vector(n) for n in (a, b)):
            return False
        # the later of two candidates: the other's result is then surely there
        for op in reversed(self.ops):
            if isinstance(op, Conv) and op.out in (a, b) and self.uses[op.out] == 1 and not op.clip and not op.residual:
                self.put(replace(op, out=node.out, residual=b if op.out == a else a), op)
                return True
        self.put(Add(_name(node), a, b, node.out))
        return True

    def do_Relu(self, node):
        return self.clip(node, 0.0, INF)

    def do_Clip(self, node):
        low, high = node.attrs.get("min", -INF), node.attrs.get("max", INF)
        for index in (1, 2):
            if node.input(index):
                value = self.constant(node.input(index))
                if value is None or value.size != 1:
                    return False
                low, high = (value.item(), high) if index == 1 else (low, value.item())
        return self.clip(node, low, high)

    def clip(self, node, low, high):
        op = self.find(node.input(0), (Conv, Dense, Add))
        if op is None or low > high:
            return False
        if op.clip is not None:
            low, high = max(low, op.clip[0]), min(high, op.clip[1])
            if low > high:
                return False
        # float32 limits, as the graph has them: 1.1 in double is not 1.1 in float
        self.put(replace(op, out=node.out, clip=(float(np.float32(low)), float(np.float32(high)))), op)
        return True

    # --- the cache splice ---

    def sliced(self, name):
        """(source, start, stop) when `name` is channels [start, stop) of a map, else None. Through Slice or Split."""
        node = self.producers.get(name)
        if node is None or not self.is_map(node.input(0)):
            return None
        source, channels = node.input(0), self.shape(node.input(0))[1]
        if node.op == "Split" and node.attrs.get("axis", 0) in (1, -3):
            sizes = [self.shape(out)[1] for out in node.outputs]
            index = node.outputs.index(name)
            return source, sum(sizes[:index]), sum(sizes[:index + 1])
        if node.op != "Slice" or "starts" in node.attrs:
            return None
        starts, ends, axes, steps = (self.constant(node.input(i)) for i in (1, 2, 3, 4))
        if starts is None or ends is None or starts.size != 1 or axes is None or int(axes[0]) not in (1, -3):
            return None
        if node.input(4) and (steps is None or int(steps[0]) != 1):
            return None
        start, stop = (min(max(v + channels if v < 0 else v, 0), channels) for v in (int(starts[0]), int(ends[0])))
        return (source, start, stop) if start < stop else None

    def do_Concat(self, node):
        """x[:start], cache, x[stop:] side by side, where next_cache is x[start:stop]: a splice."""
        if node.attrs.get("axis") not in (1, -3):
            return False
        ends = set(self.graph.outputs)
        caches = [name for name in node.inputs if name in self.graph.inputs and "next_" + name in ends]
        if len(caches) != 1 or not self.is_map(node.out):
            return False
        cache, next_cache = caches[0], "next_" + caches[0]
        kept = self.sliced(next_cache)
        if kept is None or self.uses[next_cache] != 1:
            return False
        x, start, stop = kept
        channels, position = self.shape(x)[1], 0
        for name in node.inputs:
            width = self.shape(name)[1]
            if name == cache:
                good = (position, position + width) == (start, stop)
            else:
                good = self.sliced(name) == (x, position, position + width)
            if not good:
                return False
            position += width
        if position != channels or self.shape(node.out) != self.shape(x):
            return False
        # the splice writes next_cache from now on; the Slice's (or Split's) own output is no longer read by anybody
        maker, unread = self.producers[next_cache], next_cache + ":unread"
        maker.outputs = [unread if name == next_cache else name for name in maker.outputs]
        self.graph.shapes[unread], self.graph.dtypes[unread] = self.shape(next_cache), self.graph.dtypes[next_cache]
        self.put(ApplySplice(_name(node), x, node.out, Splice(cache, next_cache, start, stop)))
        return True

    # --- pooling, dense, shapes ---

    def do_GlobalAveragePool(self, node):
        if not self.is_map(node.input(0)):
            return False
        self.put(GlobalAveragePool(_name(node), node.input(0), node.out))
        return True

    def do_ReduceMean(self, node):
        axes = node.attrs.get("axes")
        if axes is None:
            axes = self.constant(node.input(1))
        if axes is None or not self.is_map(node.input(0)) or sorted(int(a) % 4 for a in axes) != [2, 3]:
            return False
        self.put(GlobalAveragePool(_name(node), node.input(0), node.out))
        return True

    def reshape(self, node):
        """(c, 1, 1) -> (c,): only another view of what a global pooling or a dense layer makes."""
        op = self.find(node.input(0), (GlobalAveragePool, Dense))
        if op is None or not (self.is_map(node.out) or self.is_vector(node.out)):
            return False
        if len(self.shape(node.out)) == 4 and self.shape(node.out)[2:] != (1, 1):
            return False
        self.put(replace(op, out=node.out), op)
        return True

    do_Flatten = do_Reshape = do_Squeeze = do_Unsqueeze = reshape

    def do_MaxPool(self, node):
        if node.attrs.get("storage_order", 0) or len([o for o in node.outputs if o]) > 1:
            return False
        return self.pool(node, "max")

    def do_AveragePool(self, node):
        return self.pool(node, "average")

    def pool(self, node, kind):
        x = node.input(0)
        if not self.is_map(x) or any(d != 1 for d in node.attrs.get("dilations", [1, 1])):
            return False
        kernel, stride = tuple(node.attrs["kernel_shape"]), tuple(node.attrs.get("strides", (1, 1)))
        padding = _padding(node, self.shape(x)[2:], kernel, stride)
        if padding is None or len(kernel) != 2:
            return False
        if kind == "average" and any(padding) and node.attrs.get("count_include_pad", 0):
            return False
        # ceil_mode: the last windows hang over; the overhang is padding
        out, size = self.shape(node.out)[2:], self.shape(x)[2:]
        over = [max(0, (o - 1) * s + k - n - p) for o, s, k, n, p in zip(out, stride, kernel, size, padding[:2])]
        if node.attrs.get("ceil_mode", 0):
            padding = (*padding[:2], over[0], over[1])
        if any(p >= k for p, k in zip(padding, kernel * 2)):
            return False  # windows without a single pixel
        self.put(Pool(_name(node), kind, x, node.out, kernel, stride, padding))
        return True

    def do_Gemm(self, node):
        weight, bias = self.constant(node.input(1)), self.constant(node.input(2))
        if weight is None or weight.ndim != 2 or not self.is_vector(node.input(0)) or node.attrs.get("transA", 0) or \
                (node.input(2) and bias is None):
            return False
        weight = weight if node.attrs.get("transB", 0) else weight.T
        weight = weight * np.float32(node.attrs.get("alpha", 1.0))
        bias = np.zeros(len(weight), np.float32) if bias is None else bias * np.float32(node.attrs.get("beta", 1.0))
        if bias.size not in (1, len(weight)):
            return False
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        self.put(Dense(_name(node, 1), node.input(0), node.out, _f32(weight), _f32(bias)))
        return True

    def do_MatMul(self, node):
        weight = self.constant(node.input(1))
        if weight is None or weight.ndim != 2 or not self.is_vector(node.input(0)):
            return False
        self.put(Dense(_name(node, 1), node.input(0), node.out, _f32(weight.T), np.zeros(weight.shape[1], np.float32)))
        return True


def _dilated(weight, dilations):
    """The kernel with zeros between its taps, so that it needs no dilation; None where that would be mostly zeros."""
    kh, kw = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations))
    if kh * kw > MOST_DILATED * weight.shape[2] * weight.shape[3]:
        return None
    full = np.zeros((*weight.shape[:2], kh, kw), weight.dtype)
    full[:, :, ::dilations[0], ::dilations[1]] = weight
    return full


def _padding(node, size, kernel, stride):
    """(top, left, bottom, right) of a convolution or pooling node; None where it cannot be said."""
    mode = node.attrs.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("NOTSET", ""):
        padding = tuple(int(p) for p in node.attrs.get("pads", (0, 0, 0, 0)))
        return padding if len(padding) == 4 and min(padding) >= 0 else None
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    total = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, kernel, stride)]
    small = [t // 2 for t in total]
    first = small if mode == "SAME_UPPER" else [t - s for t, s in zip(total, small)]
    return (first[0], first[1], total[0] - first[0], total[1] - first[1])


def _name(node, weight=None):
    """The layer's name: the module path its weight has, else the node's, else its output's."""
    name = node.input(weight) if weight is not None else ""
    if name.endswith(".weight") and "::" not in name:
        return name[:-len(".weight")]
    return node.name or node.out


def _f32(array):
    return np.ascontiguousarray(array, np.float32)

