"""The step program as a LiteRT (.tflite) file, so that LiteRT with XNNPACK runs the very same network."""
from __future__ import annotations

import math

import numpy as np

from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.export.graph.ops import Add, ApplySplice, Conv, Dense, GlobalAveragePool, Pool, Program


class _Writer:
    """Collects tensors, buffers and operators of one subgraph through LiteRT's own flatbuffer schema."""

    def __init__(self, schema):
        self.s = schema
        self.buffers = [schema.BufferT()]
        self.tensors, self.operators, self.codes = [], [], []
        self.index = {}

    def tensor(self, name, shape, array=None):
        tensor = self.s.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        tensor.type = self.s.TensorType.FLOAT32
        if array is not None:
            if array.dtype == np.int32:
                tensor.type = self.s.TensorType.INT32
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        self.index[name] = len(self.tensors) - 1
        return self.index[name]

    def constant(self, array):
        return self.tensor(f"constant_{len(self.tensors)}", array.shape, array)

    def op(self, kind, inputs, outputs, options, version=1):
        number = getattr(self.s.BuiltinOperator, kind)
        if (number, version) not in self.codes:
            self.codes.append((number, version))
        operator = self.s.OperatorT()
        operator.opcodeIndex = self.codes.index((number, version))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.builtinOptionsType = getattr(self.s.BuiltinOptions, type(options).__name__.removesuffix("T"))
        operator.builtinOptions = options
        self.operators.append(operator)


def _activation(schema, clip):
    kinds = schema.ActivationFunctionType
    if clip is None:
        return kinds.NONE
    if clip == (0, 6):
        return kinds.RELU6
    if clip[0] == 0 and math.isinf(clip[1]):
        return kinds.RELU
    raise _refusal(f"a clip to {clip}", "ReLU or ReLU6")


def _refusal(found, expected):
    return InputError("a LiteRT file cannot be written for this network", found=found, expected=expected,
                      do="leave litert out of --against")


class _Operators(_Writer):
    """The operations of a program as LiteRT's, by the name of their class."""

    def __init__(self, schema, shapes):
        super().__init__(schema)
        self.shape = {name: (1, *dims) for name, dims in shapes.items()}

    # --- parts ---

    def get(self, name):
        return self.index[name] if name in self.index else self.tensor(name, self.shape[name])

    def piece(self, x, start, stop, out=None):
        dims = (*self.shape[x][:3], stop - start)
        out_index = self.tensor(out or f"{x}[{start}:{stop}]@{len(self.tensors)}", dims)
        begin, size = np.array([0, 0, 0, start], np.int32), np.array(dims, np.int32)
        self.op("SLICE", [self.get(x), self.constant(begin), self.constant(size)], [out_index], self.s.SliceOptionsT())
        return out_index

    def spliced(self, x, splice, out):
        channels = self.shape[x][3]
        parts = [self.get(splice.cache)]
        if splice.start:
            parts.insert(0, self.piece(x, 0, splice.start))
        if splice.stop < channels:
            parts.append(self.piece(x, splice.stop, channels))
        self.piece(x, splice.start, splice.stop, splice.next_cache)
        joined = self.tensor(out, self.shape[x])
        options = self.s.ConcatenationOptionsT()
        options.axis = 3
        self.op("CONCATENATION", parts, [joined], options)
        return joined

    def padded(self, x_index, op, window):
        """Index of the input and the padding kind; an explicit PAD where LiteRT's SAME differs from the network's."""
        (top, left, bottom, right), dims = op.padding, self.shape[op.x]
        if not any(op.padding):
            return x_index, self.s.Padding.VALID
        same = all(
            (before, after) == ((total := max((-(-n // st) - 1) * st + k - n, 0)) // 2, total - total // 2)
            for n, st, k, before, after in zip(dims[1:3], op.stride, window, (top, left), (bottom, right)))
        if same:
            return x_index, self.s.Padding.SAME
        out = self.tensor(f"{op.name}.padded", (1, dims[1] + top + bottom, dims[2] + left + right, dims[3]))
        pads = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        self.op("PAD", [x_index, self.constant(pads)], [out], self.s.PadOptionsT())
        return out, self.s.Padding.VALID

    def sum(self, a, b, out, clip):
        options = self.s.AddOptionsT()
        options.fusedActivationFunction = _activation(self.s, clip)
        self.op("ADD", [a, b], [out], options)

    # --- operations ---

    def write(self, op):
        method = getattr(self, type(op).__name__, None)
        if method is None:
            raise _refusal(f"{type(op).__name__} ({op.name})", "convolutions, pooling, additions and linear layers")
        method(op)

    def Conv(self, op: Conv):
        x = self.spliced(op.x, op.splice, f"{op.name}.spliced") if op.splice else self.get(op.x)
        x, padding = self.padded(x, op, op.weight.shape[2:])
        if op.groups == self.shape[op.x][3] > 1:
            kind, weight, options = "DEPTHWISE_CONV_2D", op.weight.transpose(1, 2, 3, 0), self.s.DepthwiseConv2DOptionsT()
            options.depthMultiplier = op.weight.shape[0] // op.groups
        elif op.groups == 1:
            kind, weight, options = "CONV_2D", op.weight.transpose(0, 2, 3, 1), self.s.Conv2DOptionsT()
        else:
            raise _refusal(f"a grouped convolution ({op.name})", "dense and depthwise convolutions")
        options.padding, options.strideH, options.strideW = padding, *op.stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = _activation(self.s, None if op.residual else op.clip)
        out = self.get(op.out) if not op.residual else self.tensor(f"{op.name}.sum", self.shape[op.out])
        weight, bias = np.ascontiguousarray(weight, np.float32), op.bias.astype(np.float32)
        self.op(kind, [x, self.constant(weight), self.constant(bias)], [out], options)
        if op.residual:
            self.sum(out, self.get(op.residual), self.get(op.out), op.clip)

    def Dense(self, op: Dense):
        options = self.s.FullyConnectedOptionsT()
        options.fusedActivationFunction = _activation(self.s, op.clip)
        weight, bias = (np.ascontiguousarray(v, np.float32) for v in (op.weight, op.bias))
        self.op("FULLY_CONNECTED", [self.get(op.x), self.constant(weight), self.constant(bias)], [self.get(op.out)], options)

    def GlobalAveragePool(self, op: GlobalAveragePool):
        options = self.s.ReducerOptionsT()
        options.keepDims = False
        self.op("MEAN", [self.get(op.x), self.constant(np.array([1, 2], np.int32))], [self.get(op.out)], options)

    def Pool(self, op: Pool):
        options = self.s.Pool2DOptionsT()
        x, options.padding = self.padded(self.get(op.x), op, op.kernel)  # after a ReLU zero padding is neutral
        (options.filterHeight, options.filterWidth), (options.strideH, options.strideW) = op.kernel, op.stride
        self.op("MAX_POOL_2D" if op.kind == "max" else "AVERAGE_POOL_2D", [x], [self.get(op.out)], options)

    def Add(self, op: Add):
        self.sum(self.get(op.a), self.get(op.b), self.get(op.out), op.clip)

    def ApplySplice(self, op: ApplySplice):
        self.spliced(op.x, op.splice, op.out)


def write_litert(program: Program) -> bytes:
    """Return the .tflite file of `program`: inputs `frame` [1,h,w,3] and caches [1,h,w,fold], outputs logits and next caches.

    Raises
    ------
    MissingComponentError
        ai-edge-litert is not installed.
    InputError
        The program has an operation that this writer does not know.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as s
    except ImportError as error:
        raise MissingComponentError("LiteRT is not installed", found=str(error), expected="ai-edge-litert",
                                    do="pip install 'tsm-edge[bench]'") from None
    w = _Operators(s, program.shapes)
    w.get(program.frame)
    for splice in program.caches:
        w.get(splice.cache)
    for op in program.ops:
        w.write(op)
    graph = s.SubGraphT()
    graph.tensors, graph.operators, graph.name = w.tensors, w.operators, "step"
    graph.inputs = [w.index[program.frame]] + [w.index[c.cache] for c in program.caches]
    graph.outputs = [w.index[program.logits]] + [w.index[c.next_cache] for c in program.caches]
    model = s.ModelT()
    model.version, model.subgraphs, model.buffers = 3, [graph], w.buffers
    model.operatorCodes = []
    for number, version in w.codes:
        code = s.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
        model.operatorCodes.append(code)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
