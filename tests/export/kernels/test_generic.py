"""What has no kernel of ours is computed by TVM's legalisation: same values, shared code, no needless tensors."""
import importlib.util

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "tvm"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} (extra [export]) is not installed", allow_module_level=True)

import step_runs as runs  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.export.graph.ops import Conv, Fallback, Layout, Pool, Splice  # noqa: E402
from tsm_edge.export.kernels.generic import lower  # noqa: E402
from tsm_edge.export.kernels.generic.models import as_fallback  # noqa: E402
from tsm_edge.export.kernels.write.base import TensorArg, WeightArg  # noqa: E402
from tsm_edge.export.library.objects import compile_functions, functions_of  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

HOST = get_target("host")


def evaluate(kernels, inputs):
    """Run kernels through TVM's own runtime. inputs: {name: array}; returns all tensors."""
    import tvm

    built = compile_functions(functions_of([(None, kernel) for kernel in kernels]), HOST.tvm_target())
    values = {}
    for kernel in kernels:
        args = []
        for arg in kernel.args:
            if isinstance(arg, WeightArg):
                args.append(tvm.runtime.tensor(arg.array))
                continue
            if arg.name not in values:
                start = inputs.get(arg.name, np.full(arg.shape, np.nan if "float" in arg.dtype else 0))
                values[arg.name] = tvm.runtime.tensor(np.ascontiguousarray(start, arg.dtype).reshape(arg.shape))
            args.append(values[arg.name])
        built[kernel.symbol](*args)
    return {name: value.numpy() for name, value in values.items()}


def onnx_fallback(nodes, inputs, outputs, constants=()):
    """A Fallback of ONNX nodes; inputs and outputs are {name: shape}."""
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends.items()] for ends in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, [numpy_helper.from_array(v, n) for n, v in constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Fallback("op", tuple(inputs), tuple(outputs), model, tuple(n.op_type for n in nodes))


def test_chain_of_elementwise_operations_is_one_kernel_without_intermediate_tensors():
    shape = [1, 6, 5, 8]
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["m"]),
             helper.make_node("Tanh", ["m"], ["y"])]
    kernels = lower.lower(onnx_fallback(nodes, {"x": shape}, {"y": shape}), {}, HOST)
    assert len(kernels) == 1 and "sblock_alloc_buffer" not in kernels[0].func.script()
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.tanh(x / (1 + np.exp(-x)))
    assert np.abs(evaluate(kernels, {"x": x})["y"] - expected).max() < 1e-6
    assert kernels[0].in_place == ("x",)


def test_only_elementwise_operations_work_in_place():
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])]
    kernels = lower.lower(onnx_fallback(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 2, 4, 4]}), {}, HOST)
    assert kernels[0].in_place == ()
    assert all(k.in_place == () for k in lower.lower(conv("plain"), SHAPES, HOST))


def test_inputs_constants_and_repeated_results_are_copied_to_their_outputs():
    shape = [1, 4]
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Neg", ["x"], ["y"]),
             helper.make_node("Identity", ["y"], ["again"]), helper.make_node("Identity", ["c"], ["fixed"])]
    op = onnx_fallback(nodes, {"x": shape}, {n: shape for n in ("same", "y", "again", "fixed")},
                       [("c", np.arange(4, dtype=np.float32).reshape(1, 4))])
    x = np.array([[1, -2, 3, -4]], np.float32)
    out = evaluate(lower.lower(op, {}, HOST), {"x": x})
    assert (out["same"] == x).all() and (out["y"] == -x).all() and (out["again"] == -x).all()
    assert out["fixed"].tolist() == [[0, 1, 2, 3]]


def test_several_outputs_of_one_node_are_told_apart():
    nodes = [helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1)]
    op = onnx_fallback(nodes, {"x": [1, 5, 2, 2]}, {"b": [1, 3, 2, 2], "a": [1, 2, 2, 2]},
                       [("sizes", np.array([2, 3]))])
    x = np.arange(20, dtype=np.float32).reshape(1, 5, 2, 2)
    out = evaluate(lower.lower(op, {}, HOST), {"x": x})
    assert (out["a"] == x[:, :2]).all() and (out["b"] == x[:, 2:]).all()


def conv(name, x="x", out="y", oc=6, seed=0, **more):
    random = np.random.default_rng(seed)
    more.setdefault("padding", (1, 1, 1, 1))
    return Conv(name, x, out, random.normal(size=(oc, 8, 3, 3)).astype(np.float32),
                random.normal(size=oc).astype(np.float32), **more)


SHAPES = {"x": (7, 5, 8), "y": (7, 5, 6), "r": (7, 5, 6), "z": (4, 3, 6), "cache.a": (7, 5, 2), "next_cache.a": (7, 5, 2),
          "p": (3, 2, 8), "x:chw": (8, 7, 5)}


@pytest.mark.parametrize("op", [
    conv("plain"), conv("strided", out="z", stride=(2, 2), clip=(0.0, float("inf"))),
    conv("full", residual="r", clip=(-0.5, 1.5), splice=Splice("cache.a", "next_cache.a", 3, 5)),
    Pool("max", "max", "x", "p", (3, 3), (2, 2)), Pool("mean", "average", "x", "p", (3, 2), (2, 2), (0, 0, 0, 0)),
    Layout("layout", "x", "x:chw", "chw")], ids=lambda op: op.name)
def test_operations_of_ours_compute_the_same_without_kernels(op):
    random = np.random.default_rng(1)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()
               if name in ("x", "r", "cache.a")}
    got = evaluate(lower.lower(op, SHAPES, HOST), tensors)
    runs._RUN[type(op).__name__](op, tensors, SHAPES)
    for name in (op.out, "next_cache.a"):
        if name in tensors:
            assert np.abs(got[name].reshape(SHAPES[name]) - tensors[name]).max() < 1e-5, name


def test_layers_of_one_shape_share_their_code_and_others_do_not():
    one, two, other = (lower.lower(op, SHAPES, HOST) for op in (
        conv("layer.1"), conv("layer.2", seed=5), conv("layer.3", clip=(0.0, 6.0))))
    assert [k.symbol for k in one] == [k.symbol for k in two]
    assert [k.symbol for k in one] != [k.symbol for k in other]
    weights = [next(a.array for k in kernels for a in k.args if isinstance(a, WeightArg)) for kernels in (one, two)]
    assert np.abs(weights[0] - weights[1]).max() > 0.1


def test_a_layer_called_like_a_helper_tensor_does_not_collide():
    """Graphs may call their tensors t1, x1 or c0; so did helper names once."""
    shapes = {name: SHAPES["x"] for name in ("t1", "x1", ":1")} | {"c0": SHAPES["y"]}
    op = conv("t2", x="t1", out="c0")
    x = np.random.default_rng(2).normal(size=SHAPES["x"]).astype(np.float32)
    tensors = {"t1": x}
    got = evaluate(lower.lower(op, shapes, HOST), {"t1": x})
    runs._RUN["Conv"](op, tensors, shapes)
    assert np.abs(got["c0"].reshape(7, 5, 6) - tensors["c0"]).max() < 1e-5


def test_multiply_accumulates_are_counted_once():
    kernels = lower.lower(conv("plain"), SHAPES, HOST)
    assert sum(k.macs for k in kernels) == 7 * 5 * 6 * 8 * 9
    model = as_fallback(conv("plain"), SHAPES).model
    assert lower.model_macs(model) == 7 * 5 * 6 * 8 * 9


def test_tensors_between_kernels_are_named_after_the_operation():
    kernels = lower.lower(conv("layer"), SHAPES, HOST)
    names = {a.name for k in kernels for a in k.args if isinstance(a, TensorArg)}
    assert {"x", "y"} <= names and all(n.startswith("layer:") for n in names - {"x", "y"})


def test_unknown_operation_is_refused_by_layer_and_kind():
    op = onnx_fallback([helper.make_node("Det", ["x"], ["y"])], {"x": [1, 3, 3]}, {"y": [1]})
    with pytest.raises(InputError) as error:
        lower.lower(op, {}, HOST)
    assert "op cannot be compiled: Det" in str(error.value) and "Det" in error.value.found and error.value.do
