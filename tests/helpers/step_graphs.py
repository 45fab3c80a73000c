"""Small step graphs of every odd kind."""
import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Graph:
    """Builds an ONNX step graph; methods return tensor names, random weights come from a fixed seed."""

    def __init__(self, height=9, width=7, seed=0, opset=17):
        self.size, self.random, self.opset = (height, width), np.random.default_rng(seed), opset
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []
        self.inputs.append(helper.make_tensor_value_info("frame", FLOAT, [1, 3, height, width]))

    def constant(self, value, dtype=np.float32):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind, *inputs, out=None, outputs=1, **attrs):
        names = [out or f"t{len(self.nodes)}"] if outputs == 1 else [f"t{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x, ic, oc, k=1, bias=True, groups=1, **attrs):
        kh, kw = (k, k) if isinstance(k, int) else k
        weight = self.random.normal(size=(oc, ic // groups, kh, kw)) / np.sqrt(ic // groups * kh * kw)
        more = [self.constant(self.random.normal(size=oc) * 0.1)] if bias else []
        attrs.setdefault("pads", [kh // 2, kw // 2, kh // 2, kw // 2])
        if "auto_pad" in attrs:
            del attrs["pads"]
        return self.op("Conv", x, self.constant(weight), *more, group=groups, **attrs)

    def norm(self, x, c):
        r = self.random
        return self.op("BatchNormalization", x, self.constant(r.uniform(0.5, 1.5, c)), self.constant(r.normal(size=c)),
                       self.constant(r.normal(size=c)), self.constant(r.uniform(0.5, 2, c)), epsilon=1e-3)

    def cache(self, name, shape):
        self.inputs.append(helper.make_tensor_value_info(f"cache.{name}", FLOAT, [1, *shape]))
        self.outputs.append(helper.make_tensor_value_info(f"next_cache.{name}", FLOAT, [1, *shape]))
        return f"cache.{name}"

    def slice(self, x, start, stop, out=None):
        return self.op("Slice", x, *(self.constant([v], np.int64) for v in (start, stop, 1)), out=out)

    def splice(self, x, name, channels, start, stop, size):
        """The usual way: next_cache = x[start:stop]; x[:start], cache, x[stop:] side by side."""
        cache = self.cache(name, (stop - start, *size))
        self.slice(x, start, stop, out="next_" + cache)
        parts = ([self.slice(x, 0, start)] if start else []) + [cache]
        parts += [self.slice(x, stop, channels)] if stop < channels else []
        return self.op("Concat", *parts, axis=1)

    def head(self, x, c, classes=5):
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        self.dense(pooled, c, classes)

    def dense(self, x, c, classes=5, out="logits"):
        weight = self.constant(self.random.normal(size=(classes, c)))
        self.op("Gemm", x, weight, self.constant(self.random.normal(size=classes)), transB=1, out=out)

    def model(self, classes=5):
        outputs = [helper.make_tensor_value_info("logits", FLOAT, [1, classes]), *self.outputs]
        graph = helper.make_graph(self.nodes, "step", self.inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


# --- graphs: name -> function that returns (model, operations expected to fall back) ------------------------------------


def residual_splice():
    """MobileNet's block: shift, expand, depthwise, project, un-shifted residual."""
    g = Graph()
    x = g.op("Relu", g.norm(g.conv("frame", 3, 16, 3, bias=False), 16))
    y = g.splice(x, "a", 16, 0, 2, (9, 7))
    y = g.op("Clip", g.norm(g.conv(y, 16, 48, bias=False), 48), g.constant(0.0), g.constant(6.0))
    y = g.op("Clip", g.norm(g.conv(y, 48, 48, 3, groups=48, bias=False), 48), g.constant(0.0), g.constant(6.0))
    x = g.op("Add", g.norm(g.conv(y, 48, 16, bias=False), 16), x)
    g.head(x, 16)
    return g.model(), ()


def middle_and_last_channels():
    """Slices from the middle and from the end; sizes that no vector divides."""
    g = Graph(5, 11)
    x = g.conv("frame", 3, 13, 3)
    x = g.conv(g.splice(x, "middle", 13, 3, 6, (5, 11)), 13, 13, 3, strides=[2, 2])
    x = g.conv(g.splice(x, "last", 13, 10, 13, (3, 6)), 13, 13)
    g.head(x, 13)
    return g.model(), ()


def several_shifts_in_a_block():
    """Two splices, one after the other, before one convolution."""
    g = Graph()
    x = g.conv("frame", 3, 12, 3)
    y = g.splice(x, "one", 12, 0, 3, (9, 7))
    y = g.splice(y, "two", 12, 3, 6, (9, 7))
    g.head(g.op("Relu", g.op("Add", g.conv(y, 12, 12, 3), x)), 12)
    return g.model(), ()


def overlapping_shifts():
    """The second splice takes channels that the first has put in: two frames of delay."""
    g = Graph()
    x = g.conv("frame", 3, 12, 3)
    y = g.splice(g.splice(x, "one", 12, 0, 4, (9, 7)), "two", 12, 2, 6, (9, 7))
    g.head(g.conv(y, 12, 12), 12)
    return g.model(), ()


def inplace_shift():
    """The shifted tensor feeds the branch and the residual path."""
    g = Graph()
    x = g.conv("frame", 3, 16, 3)
    y = g.splice(x, "a", 16, 0, 4, (9, 7))
    g.head(g.op("Add", g.conv(y, 16, 16, 3), y), 16)
    return g.model(), ()


def split_instead_of_slices():
    g = Graph()
    x = g.conv("frame", 3, 10, 3)
    cache = g.cache("a", (3, 9, 7))
    sizes = g.constant([3, 7], np.int64)
    g.nodes.append(helper.make_node("Split", [x, sizes], ["next_cache.a", "rest"], axis=1))
    g.head(g.conv(g.op("Concat", cache, "rest", axis=1), 10, 8), 8)
    return g.model(), ()


def whole_tensor_cached():
    g = Graph()
    x = g.conv("frame", 3, 6, 3)
    g.head(g.conv(g.splice(x, "a", 6, 0, 6, (9, 7)), 6, 8), 8)
    return g.model(), ()


def one_pixel():
    """Spatial size one: layouts coincide."""
    g = Graph(4, 4)
    x = g.conv("frame", 3, 8, 4, pads=[0, 0, 0, 0])
    x = g.op("Sigmoid", g.conv(g.splice(x, "a", 8, 0, 2, (1, 1)), 8, 8))
    g.head(x, 8)
    return g.model(), ("Sigmoid",)


def splice_before_depthwise():
    g = Graph()
    x = g.conv("frame", 3, 16, 3)
    g.head(g.conv(g.splice(x, "a", 16, 0, 4, (9, 7)), 16, 16, 3, groups=16, strides=[2, 2]), 16)
    return g.model(), ()


def swapped_next_caches():
    """next_cache.a keeps what cache.b splices, and the other way round: no splice of ours, yet to be computed right."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    a, b = g.cache("a", (2, 9, 7)), g.cache("b", (2, 9, 7))
    g.slice(x, 0, 2, out="next_cache.b")
    y = g.conv(g.op("Concat", a, g.slice(x, 2, 8), axis=1), 8, 8)
    g.slice(y, 0, 2, out="next_cache.a")
    g.head(g.conv(g.op("Concat", b, g.slice(y, 2, 8), axis=1), 8, 8), 8)
    return g.model(), ("Concat", "Slice")


def cache_of_other_channels():
    """The kept slice is not the spliced one."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    cache = g.cache("a", (2, 9, 7))
    g.slice(x, 6, 8, out="next_cache.a")
    g.head(g.conv(g.op("Concat", cache, g.slice(x, 2, 8), axis=1), 8, 8), 8)
    return g.model(), ("Concat", "Slice")


def recurrent_cache():
    """A running mean instead of a shift; the cache is also read directly."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    cache = g.cache("mean", (8, 9, 7))
    half = g.constant(0.5)
    mean = g.op("Add", g.op("Mul", cache, half), g.op("Mul", x, half), out="next_cache.mean")
    g.head(g.conv(mean, 8, 8), 8)
    return g.model(), ("Mul",)


def next_cache_read_again():
    """The kept slice has another reader."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    y = g.conv(g.splice(x, "a", 8, 0, 2, (9, 7)), 8, 8)
    g.head(g.op("Concat", y, g.op("Tanh", "next_cache.a"), axis=1), 10)
    return g.model(), ("Concat", "Slice", "Tanh")


def frame_kept_for_the_next_step():
    """The cache is the frame itself."""
    g = Graph()
    cache = g.cache("frame", (3, 9, 7))
    g.op("Identity", "frame", out="next_cache.frame")
    g.head(g.conv(g.op("Sub", "frame", cache), 3, 8, 3), 8)
    return g.model(), ("Identity", "Sub")


def squeeze_and_excite():
    """EfficientNet's block with HardSwish and HardSigmoid."""
    g = Graph()
    x = g.op("HardSwish", g.norm(g.conv("frame", 3, 16, 3, bias=False), 16))
    y = g.splice(x, "a", 16, 0, 2, (9, 7))
    y = g.op("HardSwish", g.conv(y, 16, 24))
    s = g.op("Relu", g.conv(g.op("GlobalAveragePool", y), 24, 6))
    s = g.op("HardSigmoid", g.conv(s, 6, 24), alpha=1 / 6, beta=0.5)
    x = g.op("Add", g.conv(g.op("Mul", y, s), 24, 16), x)
    g.head(x, 16)
    return g.model(), ("HardSigmoid", "HardSwish", "Mul")


def other_activations():
    g = Graph()
    x = g.conv("frame", 3, 12, 3)
    x = g.op("Mul", x, g.op("Sigmoid", x))
    x = g.op("LeakyRelu", g.conv(x, 12, 12), alpha=0.1)
    x = g.op("PRelu", g.conv(x, 12, 12), g.constant(g.random.uniform(0, 0.5, (12, 1, 1))))
    g.head(g.op("Elu", x), 12)
    return g.model(), ("Elu", "LeakyRelu", "Mul", "PRelu", "Sigmoid")


def grouped_and_dilated():
    g = Graph()
    x = g.op("Relu", g.conv("frame", 3, 12, 3))
    x = g.op("Relu", g.conv(x, 12, 18, 3, groups=3))
    x = g.conv(x, 18, 8, 3, dilations=[2, 1], pads=[2, 1, 2, 1])
    x = g.conv(x, 8, 8, 2, dilations=[6, 6], pads=[3, 3, 3, 3])
    x = g.conv(g.conv(x, 8, 16, 3, groups=8), 16, 40, (1, 5))
    g.head(g.conv(x, 40, 20, 3, groups=10), 20)
    return g.model(), ("Conv",)


def loose_norms_and_scales():
    """A norm before a convolution, by-channel arithmetic after one, and bounds that meet."""
    g = Graph()
    x = g.norm("frame", 3)
    x = g.op("Mul", g.conv(x, 3, 8, 3), g.constant(g.random.normal(size=(1, 8, 1, 1))))
    x = g.op("Div", g.op("Sub", x, g.constant(0.25)), g.constant(g.random.uniform(1, 2, (8, 1, 1))))
    x = g.op("Clip", g.op("Relu", x), g.constant(-1.0), g.constant(1.1))
    x = g.op("Add", g.constant([[[[0.5]]]]), g.conv(x, 8, 8, 3))
    x = g.op("Mul", x, g.constant(g.random.normal(size=(1, 1, 1, 7))))
    g.head(x, 8)
    return g.model(), ("BatchNormalization", "Mul")


def adds_of_all_kinds():
    """A tensor added to itself; a clipped branch; two branches; a shared convolution output; a plain sum."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    x = g.op("Relu", g.op("Add", x, x))
    y = g.op("Add", g.op("Relu", g.conv(x, 8, 8)), x)
    z = g.op("Relu", g.op("Add", g.conv(y, 8, 8, 3), g.conv(y, 8, 8)))
    c = g.conv(z, 8, 8)
    z = g.op("Add", c, g.op("Relu", g.conv(c, 8, 8)))
    g.head(g.op("Add", z, y), 8)
    return g.model(), ()


def pools():
    g = Graph(11, 14)
    x = g.op("MaxPool", g.conv("frame", 3, 8, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.op("AveragePool", g.conv(x, 8, 8), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = g.op("AveragePool", x, kernel_shape=[3, 2], strides=[1, 1], pads=[1, 0, 1, 1], count_include_pad=1)
    g.head(x, 8)
    return g.model(), ("AveragePool",)


def flattened_map():
    """A dense layer over a whole map: the order of elements matters."""
    g = Graph(6, 5)
    x = g.op("Relu", g.conv("frame", 3, 4, 3, strides=[2, 2]))
    g.dense(g.op("Flatten", x, axis=1), 4 * 3 * 3)
    return g.model(), ("Flatten",)


def branches():
    """Inception: branches side by side, of which one is spliced."""
    g = Graph()
    x = g.op("Relu", g.conv("frame", 3, 8, 3))
    a = g.conv(g.splice(x, "a", 8, 0, 1, (9, 7)), 8, 5, 3)
    b = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = g.op("Relu", g.op("Concat", a, b, g.conv(x, 8, 3), axis=1))
    g.head(g.conv(x, 16, 8), 8)
    return g.model(), ("Concat", "Relu")


def dense_layers():
    """MatMul with bias, a hidden layer with ReLU, softmax at the end, mean written as ReduceMean."""
    g = Graph(opset=17)
    x = g.op("ReduceMean", g.conv("frame", 3, 8, 3), axes=[2, 3], keepdims=0)
    x = g.op("MatMul", x, g.constant(g.random.normal(size=(8, 9))))
    x = g.op("Relu", g.op("Add", x, g.constant(g.random.normal(size=9))))
    g.dense(g.op("Dropout", x), 9, out="raw")
    g.op("Softmax", "raw", axis=1, out="logits")
    return g.model(), ("Softmax",)


def same_padding():
    """auto_pad as TensorFlow's exporters write it; a mean that keeps its dimensions; reshape before the classifier."""
    g = Graph(9, 8, opset=18)
    x = g.conv("frame", 3, 8, 3, strides=[2, 2], auto_pad="SAME_UPPER")
    x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER")
    x = g.op("ReduceMean", x, g.constant([-2, -1], np.int64), keepdims=1)
    shape = g.op("Concat", g.op("Shape", "frame", end=1), g.constant([-1], np.int64), axis=0)
    g.dense(g.op("Reshape", x, shape), 8)
    return g.model(), ()


def upsampled():
    """Channels-first operations in a row, shared by two readers, one of them ours."""
    g = Graph(6, 8)
    x = g.conv("frame", 3, 8, 3, strides=[2, 2])
    w = g.constant(g.random.normal(size=(8, 6, 2, 2)))
    y = g.op("ConvTranspose", x, w, strides=[2, 2])
    z = g.op("Transpose", g.op("Reshape", y, g.constant([1, 3, 2, 6, 8], np.int64)), perm=[0, 2, 1, 3, 4])
    z = g.op("Reshape", z, g.constant([1, 6, 6, 8], np.int64))
    g.head(g.op("Add", g.conv(y, 6, 6), z), 6)
    return g.model(), ("ConvTranspose", "Reshape", "Transpose")


def scalar_indices():
    """Indices without a dimension, as x[:, 0] gives them; pads that are computed from constants."""
    g = Graph()
    x = g.splice(g.conv("frame", 3, 8, 3), "layer", 8, 0, 2, (9, 7))
    row = g.op("Unsqueeze", g.op("Gather", x, g.constant(3, np.int64), axis=2), g.constant([2], np.int64))
    pads = g.op("Concat", g.constant([0, 0, 1, 0], np.int64), g.op("Mul", g.constant([0, 0, 1, 1], np.int64),
                                                                  g.constant([1], np.int64)), axis=0)
    g.head(g.conv(g.op("Pad", g.op("Add", x, row), pads), 8, 6), 6)
    return g.model(), ("Add", "Gather", "Pad", "Unsqueeze")


def no_caches():
    g = Graph()
    g.head(g.op("Relu", g.conv("frame", 3, 8, 3)), 8)
    return g.model(), ()


def shared_weights():
    """One layer called twice, each call with a cache of its own."""
    g = Graph()
    x = g.conv("frame", 3, 8, 3)
    weight = g.constant(g.random.normal(size=(8, 8, 3, 3)) / 8)
    for name in ("layer", "layer.2"):
        y = g.splice(x, name, 8, 0, 2, (9, 7))
        x = g.op("Add", g.op("Conv", y, weight, pads=[1, 1, 1, 1]), x)
    g.head(x, 8)
    return g.model(), ()


CASES = {function.__name__: function for function in (
    residual_splice, middle_and_last_channels, several_shifts_in_a_block, overlapping_shifts, inplace_shift,
    split_instead_of_slices, whole_tensor_cached, one_pixel, splice_before_depthwise, swapped_next_caches,
    cache_of_other_channels, recurrent_cache, next_cache_read_again, frame_kept_for_the_next_step, squeeze_and_excite,
    other_activations, grouped_and_dilated, loose_norms_and_scales, adds_of_all_kinds, pools, flattened_map, branches,
    dense_layers, same_padding, upsampled, scalar_indices, no_caches, shared_weights)}
