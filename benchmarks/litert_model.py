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

    def op(self, kind, inputs, outputs, options_type=None, options=None, version=1):
        number = getattr(self.s.BuiltinOperator, kind)
        if (number, version) not in self.codes:
            self.codes.append((number, version))
        operator = self.s.OperatorT()
        operator.opcodeIndex = self.codes.index((number, version))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptionsType = getattr(self.s.BuiltinOptions, options_type)
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
    raise InputError("a LiteRT file cannot be written for this network", found=f"a clip to {clip}",
                     expected="ReLU or ReLU6", do="leave litert out of --against")


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
    w = _Writer(s)
    shape = {name: (1, *dims) for name, dims in program.shapes.items()}

    def get(name):
        return w.index[name] if name in w.index else w.tensor(name, shape[name])

    def piece(x, start, stop, out=None):
        full = shape[x]
        dims = (*full[:3], stop - start)
        out_index = w.tensor(out or f"{x}[{start}:{stop}]@{len(w.tensors)}", dims)
        begin, size = np.array([0, 0, 0, start], np.int32), np.array(dims, np.int32)
        w.op("SLICE", [get(x), w.constant(begin), w.constant(size)], [out_index], "SliceOptions", s.SliceOptionsT())
        return out_index

    def spliced(x, splice, out):
        channels = shape[x][3]
        parts = [get(splice.cache)]
        if splice.start:
            parts.insert(0, piece(x, 0, splice.start))
        if splice.stop < channels:
            parts.append(piece(x, splice.stop, channels))
        piece(x, splice.start, splice.stop, splice.next_cache)
        joined = w.tensor(out, shape[x])
        options = s.ConcatenationOptionsT()
        options.axis = 3
        w.op("CONCATENATION", parts, [joined], "ConcatenationOptions", options)
        return joined

    def padded(x_index, dims, op, window, name):
        """Index of the input and the padding kind; an explicit PAD where LiteRT's SAME differs from the network's."""
        top, left, bottom, right = op.padding
        if not any(op.padding):
            return x_index, s.Padding.VALID
        same = all(
            (before, after) == ((total := max((-(-n // st) - 1) * st + k - n, 0)) // 2, total - total // 2)
            for n, st, k, before, after in zip(dims[1:3], op.stride, window, (top, left), (bottom, right)))
        if same:
            return x_index, s.Padding.SAME
        wide = (1, dims[1] + top + bottom, dims[2] + left + right, dims[3])
        out = w.tensor(f"{name}.padded", wide)
        pads = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        w.op("PAD", [x_index, w.constant(pads)], [out], "PadOptions", s.PadOptionsT())
        return out, s.Padding.VALID

    def add(a, b, out, clip):
        options = s.AddOptionsT()
        options.fusedActivationFunction = _activation(s, clip)
        w.op("ADD", [a, b], [out], "AddOptions", options)

    get(program.frame)
    for splice in program.caches:
        get(splice.cache)
    for op in program.ops:
        if isinstance(op, Conv):
            x = spliced(op.x, op.splice, f"{op.name}.spliced") if op.splice else get(op.x)
            kernel = op.weight.shape[2:]
            x, padding = padded(x, shape[op.x], op, kernel, op.name)
            depthwise = op.groups == shape[op.x][3] > 1
            if depthwise:
                weight, options = op.weight.transpose(1, 2, 3, 0), s.DepthwiseConv2DOptionsT()
                options.depthMultiplier = op.weight.shape[0] // op.groups
            elif op.groups == 1:
                weight, options = op.weight.transpose(0, 2, 3, 1), s.Conv2DOptionsT()
            else:
                raise InputError("a LiteRT file cannot be written for this network", found=f"a grouped convolution ({op.name})",
                                 expected="dense and depthwise convolutions", do="leave litert out of --against")
            options.padding, options.strideH, options.strideW = padding, *op.stride
            options.dilationHFactor = options.dilationWFactor = 1
            options.fusedActivationFunction = _activation(s, None if op.residual else op.clip)
            out = get(op.out) if not op.residual else w.tensor(f"{op.name}.sum", shape[op.out])
            kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
            weight = np.ascontiguousarray(weight, np.float32)
            w.op(kind[0], [x, w.constant(weight), w.constant(op.bias.astype(np.float32))], [out], kind[1], options)
            if op.residual:
                add(out, get(op.residual), get(op.out), op.clip)
        elif isinstance(op, Dense):
            options = s.FullyConnectedOptionsT()
            options.fusedActivationFunction = _activation(s, op.clip)
            weight, bias = (np.ascontiguousarray(v, np.float32) for v in (op.weight, op.bias))
            w.op("FULLY_CONNECTED", [get(op.x), w.constant(weight), w.constant(bias)], [get(op.out)],
                 "FullyConnectedOptions", options)
        elif isinstance(op, GlobalAveragePool):
            options = s.ReducerOptionsT()
            options.keepDims = False
            w.op("MEAN", [get(op.x), w.constant(np.array([1, 2], np.int32))], [get(op.out)], "ReducerOptions", options)
        elif isinstance(op, Pool):
            options = s.Pool2DOptionsT()
            x, options.padding = padded(get(op.x), shape[op.x], op, op.kernel, op.name)  # after a ReLU zero padding is neutral
            (options.filterHeight, options.filterWidth), (options.strideH, options.strideW) = op.kernel, op.stride
            w.op("MAX_POOL_2D" if op.kind == "max" else "AVERAGE_POOL_2D", [x], [get(op.out)], "Pool2DOptions", options)
        elif isinstance(op, Add):
            add(get(op.a), get(op.b), get(op.out), op.clip)
        elif isinstance(op, ApplySplice):
            spliced(op.x, op.splice, op.out)
        else:
            raise InputError("a LiteRT file cannot be written for this network", found=f"{type(op).__name__} ({op.name})",
                             expected="convolutions, pooling, additions and linear layers", do="leave litert out of --against")
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
