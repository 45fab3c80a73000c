"""Operations of a program as small ONNX models, so that an operation without a kernel of ours can still be compiled."""
from __future__ import annotations

import numpy as np

from tsm_edge.export.graph.ops import (
    Add,
    ApplySplice,
    Conv,
    Dense,
    Fallback,
    GlobalAveragePool,
    InvertedResidual,
    Layout,
    Pool,
    inputs_of,
    outputs_of,
)

OPSET, IR_VERSION = 18, 8


def as_fallback(op, shapes):
    """An operation of ours as a Fallback on the same tensors, in their own (channels-last) layout.

    Parameters
    ----------
    op : operation of a program, not a Fallback
    shapes : dict
        The program's.

    Returns
    -------
    Fallback
    """
    builder = _Builder(shapes)
    inputs, outputs = list(dict.fromkeys(inputs_of(op))), outputs_of(op)
    builder.write(op)
    return Fallback(op.name, tuple(inputs), tuple(outputs), builder.model(inputs, outputs), (type(op).__name__,))


class _Builder:
    def __init__(self, shapes):
        self.shapes = shapes
        self.nodes, self.constants, self.count = [], [], 0

    def node(self, kind, inputs, out=None, **attrs):
        from onnx import helper

        if out is None:
            self.count += 1
            out = f":{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attrs))
        return out

    def constant(self, value, kind=np.float32):
        from onnx import numpy_helper

        name = f":constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, kind), name))
        return name

    def write(self, op):
        if isinstance(op, InvertedResidual):
            for stage in (op.expand, op.depthwise, op.project):
                if stage is not None:
                    self.write(stage)
        else:
            getattr(self, type(op).__name__)(op)

    def model(self, inputs, outputs):
        from onnx import TensorProto, helper

        def info(name):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])

        graph = helper.make_graph(self.nodes, "fallback", [info(n) for n in inputs], [info(n) for n in outputs],
                                  self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    # --- parts ---

    def chw(self, name):
        """(h, w, c) -> [1, c, h, w]."""
        h, w, c = self.shapes[name]
        batched = self.node("Reshape", [name, self.constant((1, h, w, c), np.int64)])
        return self.node("Transpose", [batched], perm=[0, 3, 1, 2])

    def hwc(self, x, out):
        """[1, c, h, w] -> the program's tensor `out` (h, w, c)."""
        moved = self.node("Transpose", [x], perm=[0, 2, 3, 1])
        self.node("Reshape", [moved, self.constant(self.shapes[out], np.int64)], out)

    def clip(self, x, clip):
        if clip is None:
            return x
        low, high = clip
        if high == float("inf"):
            return self.node("Relu", [x]) if low == 0 else self.node("Clip", [x, self.constant(low)])
        return self.node("Clip", [x, self.constant(low), self.constant(high)])

    def channels(self, x, start, stop, out=None):
        ends = [self.constant([v], np.int64) for v in (start, stop, 2)]
        return self.node("Slice", [x, *ends], out)

    def spliced(self, x, splice, out=None):
        """x (h, w, c) with the cache's channels; writes the next cache."""
        self.channels(x, splice.start, splice.stop, splice.next_cache)
        channels = self.shapes[x][2]
        parts = [self.channels(x, 0, splice.start)] if splice.start else []
        parts.append(splice.cache)
        parts += [self.channels(x, splice.stop, channels)] if splice.stop < channels else []
        return self.node("Concat", parts, out, axis=2)

    # --- operations ---

    def Conv(self, op: Conv):
        x = op.x
        if op.splice is not None:
            h, w, c = self.shapes[x]
            joined = self.spliced(x, op.splice)
            batched = self.node("Reshape", [joined, self.constant((1, h, w, c), np.int64)])
            x = self.node("Transpose", [batched], perm=[0, 3, 1, 2])
        else:
            x = self.chw(x)
        y = self.node("Conv", [x, self.constant(op.weight), self.constant(op.bias)], strides=list(op.stride),
                      pads=list(op.padding), group=op.groups, kernel_shape=list(op.weight.shape[2:]))
        if op.residual is not None:
            y = self.node("Add", [y, self.chw(op.residual)])
        self.hwc(self.clip(y, op.clip), op.out)

    def ApplySplice(self, op: ApplySplice):
        self.spliced(op.x, op.splice, op.out)

    def Dense(self, op: Dense):
        row = self.node("Reshape", [op.x, self.constant((1, op.weight.shape[1]), np.int64)])
        y = self.node("Gemm", [row, self.constant(op.weight), self.constant(op.bias)], transB=1)
        self.node("Reshape", [self.clip(y, op.clip), self.constant(self.shapes[op.out], np.int64)], op.out)

    def Pool(self, op: Pool):
        kind = {"max": "MaxPool", "average": "AveragePool"}[op.kind]
        y = self.node(kind, [self.chw(op.x)], kernel_shape=list(op.kernel), strides=list(op.stride),
                      pads=list(op.padding))
        self.hwc(y, op.out)

    def GlobalAveragePool(self, op: GlobalAveragePool):
        mean = self.node("ReduceMean", [op.x, self.constant((0, 1), np.int64)], keepdims=0)
        self.node("Reshape", [mean, self.constant(self.shapes[op.out], np.int64)], op.out)

    def Add(self, op: Add):
        y = self.node("Add", [op.a, op.b])
        self.node("Identity", [self.clip(y, op.clip)], op.out)

    def Layout(self, op: Layout):
        self.node("Transpose", [op.x], op.out, perm=[2, 0, 1] if op.to == "chw" else [1, 2, 0])
