"""An ONNX step graph as plain Python: constants folded, shapes known, nothing that is not needed for the outputs."""
from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tsm_edge.errors import InputError


@dataclass(eq=False)
class Node:
    """One ONNX node. attrs holds plain Python values; inputs left out are ""."""

    op: str
    name: str
    inputs: list
    outputs: list
    attrs: dict
    domain: str = ""

    @property
    def out(self):
        return self.outputs[0]

    def input(self, index):
        """Name of input `index`, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass
class Graph:
    """nodes in topological order; shapes and dtypes (numpy) of every tensor; constants by name."""

    nodes: list
    shapes: dict
    dtypes: dict
    constants: dict
    inputs: list
    outputs: list
    opsets: list = field(default_factory=list)
    ir_version: int = 8

    def uses(self):
        """How often each tensor is read; being an output of the graph counts as one reading."""
        counts = Counter(name for node in self.nodes for name in node.inputs if name)
        counts.update(self.outputs)
        return counts

    def producers(self):
        """Tensor -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def constant(self, name):
        """The value of a constant, else None."""
        return self.constants.get(name)


def read_graph(model):
    """Read a model with fixed shapes into a Graph.

    Parameters
    ----------
    model : onnx.ModelProto or path

    Returns
    -------
    Graph

    Raises
    ------
    InputError
        Not an ONNX file, control flow, or a tensor whose shape is not fixed.
    """
    import onnx
    from onnx import helper, numpy_helper, shape_inference

    if isinstance(model, (str, os.PathLike)):
        try:
            model = onnx.load(os.fspath(model))
        except Exception as error:
            raise InputError(f"{os.fspath(model)} cannot be read as ONNX", found=f"{type(error).__name__}: {error}",
                             expected="a step graph written by tsm-export", do="export the network again") from error
    try:
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise InputError("the ONNX graph's shapes do not fit together", found=str(error).strip().splitlines()[0],
                         expected="a graph that passes ONNX shape inference", do="export the network again") from error
    proto = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in proto.initializer}
    inputs = [i.name for i in proto.input if i.name not in constants]
    nodes = []
    for node in proto.node:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if any(isinstance(v, onnx.GraphProto) for v in attrs.values()):
            raise InputError(f"the network decides at run time: {node.op_type} {node.name!r}", found=node.op_type,
                             expected="a graph that computes the same operations for every frame",
                             do="take the condition or loop out of the network's forward")
        attrs = {k: numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for k, v in attrs.items()}
        nodes.append(Node(node.op_type, node.name, list(node.input), list(node.output), attrs, node.domain))
    graph = Graph(nodes, {}, {}, constants, inputs, [o.name for o in proto.output],
                  [(o.domain, o.version) for o in model.opset_import], model.ir_version)
    _note_types(graph, [*proto.value_info, *proto.input, *proto.output])
    for name in inputs:
        if name not in graph.shapes:
            raise InputError(f"the input {name!r} has no fixed shape", found="a symbolic dimension",
                             expected="fixed shapes, batch size 1", do="export the network with a fixed input size")
    _fold_constants(graph)
    while _infer_shapes(graph):  # a shape may follow from constants that were only folded now, and more constants from it
        _fold_constants(graph)
    _drop_copies(graph)
    drop_unused(graph)
    _check_shapes(graph)
    return graph


def _fold_constants(graph):
    """Evaluate every node whose inputs are constants (ONNX's own reference evaluator)."""
    kept = []
    for node in graph.nodes:
        value = None
        if node.op == "Constant":
            value = [_constant_value(node.attrs)]
        elif node.op == "Shape" and node.input(0) in graph.shapes:
            value = [np.array(graph.shapes[node.input(0)][slice(node.attrs.get("start", 0), node.attrs.get("end"))],
                              np.int64)]
        elif node.op not in ("RandomNormal", "RandomUniform") and \
                all(name in graph.constants for name in node.inputs if name):
            value = _evaluate(graph, node)
        if value is None or any(v is None for v in value):
            kept.append(node)
            continue
        for name, array in zip(node.outputs, value):
            array = np.asarray(array)
            graph.constants[name], graph.shapes[name], graph.dtypes[name] = array, array.shape, array.dtype
    # an output that is a constant must still be written: an Identity of it stays
    made = {name for node in kept for name in node.outputs}
    for name in graph.outputs:
        if name in graph.constants and name not in made:
            graph.constants[name + ":constant"] = graph.constants.pop(name)
            kept.append(Node("Identity", name, [name + ":constant"], [name], {}))
    graph.nodes = kept


def _infer_shapes(graph):
    """Look again for shapes that are not known yet; returns whether one was found."""
    from onnx import helper, numpy_helper, shape_inference

    unknown = {name for node in graph.nodes for name in node.outputs if name and name not in graph.shapes}
    if not unknown:
        return False

    def info(name):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(graph.dtypes[name]), graph.shapes[name])

    used = {name for node in graph.nodes for name in node.inputs}
    constants = [numpy_helper.from_array(np.asarray(value, order="C"), name)
                 for name, value in graph.constants.items() if name in used]
    model = helper.make_model(
        helper.make_graph([node_proto(node) for node in graph.nodes], "shapes", [info(name) for name in graph.inputs],
                          [info(name) for name in graph.outputs if name in graph.shapes], constants),
        opset_imports=[helper.make_opsetid(*opset) for opset in graph.opsets], ir_version=graph.ir_version)
    _note_types(graph, shape_inference.infer_shapes(model, data_prop=True).graph.value_info)
    return any(name in graph.shapes for name in unknown)


def _note_types(graph, infos):
    """Shapes (where they are fixed) and dtypes of tensors."""
    from onnx import helper

    for info in infos:
        tensor = info.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if tensor.HasField("shape") and None not in dims:
            graph.shapes[info.name] = tuple(dims)
        if tensor.elem_type:
            graph.dtypes[info.name] = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _constant_value(attrs):
    for key, value in attrs.items():
        if key in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            kind = {"value_float": np.float32, "value_floats": np.float32,
                    "value_int": np.int64, "value_ints": np.int64}.get(key)
            return np.asarray(value, kind)
    return None


def node_proto(node):
    """The node as ONNX writes it."""
    from onnx import helper, numpy_helper

    attrs = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in node.attrs.items()}
    return helper.make_node(node.op, node.inputs, node.outputs, name=node.name, domain=node.domain, **attrs)


def _evaluate(graph, node):
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    try:
        names = sorted({name for name in node.inputs if name})
        infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(graph.constants[n].dtype),
                                               graph.constants[n].shape) for n in names]
        outs = [helper.make_empty_tensor_value_info(n) for n in node.outputs]
        model = helper.make_model(helper.make_graph([node_proto(node)], "fold", infos, outs),
                                  opset_imports=[helper.make_opsetid(*o) for o in graph.opsets],
                                  ir_version=graph.ir_version)
        return ReferenceEvaluator(model).run(None, {n: graph.constants[n] for n in names})
    except Exception:
        return None  # not foldable here: the operation stays and is computed on the device


def _drop_copies(graph):
    """Take out Identity, Dropout (inference) and Casts to the same type, by renaming."""
    renamed = {}

    def final(name):
        while name in renamed:
            name = renamed[name]
        return name

    ends = set(graph.inputs) | set(graph.constants)
    kept = []
    for node in graph.nodes:
        node.inputs = [final(name) for name in node.inputs]
        source = node.input(0)
        copy = node.op in ("Identity", "Dropout") or (
            node.op == "Cast" and graph.dtypes.get(source) is not None
            and graph.dtypes.get(source) == graph.dtypes.get(node.out))
        if not copy:
            kept.append(node)
        elif node.out not in graph.outputs:
            renamed[node.out] = source
        elif source not in ends and source not in graph.outputs:
            # the output's name must stay: whoever makes the source now makes the output
            for other in kept:
                other.inputs = [node.out if name == source else name for name in other.inputs]
                other.outputs = [node.out if name == source else name for name in other.outputs]
            renamed[source] = node.out
        else:
            kept.append(Node("Identity", node.name, [source], [node.out], {}))
    graph.nodes = kept


def drop_unused(graph):
    """Take out nodes that no output needs, and constants that no node reads."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            kept.append(node)
            needed.update(name for name in node.inputs if name)
    graph.nodes = kept[::-1]
    graph.constants = {name: value for name, value in graph.constants.items() if name in needed}


def _check_shapes(graph):
    for name, value in graph.constants.items():
        graph.shapes.setdefault(name, value.shape)
        graph.dtypes.setdefault(name, value.dtype)
    for node in graph.nodes:
        for name in node.outputs:
            if name and name not in graph.shapes:
                raise InputError(f"the shape of {name!r} is not fixed", found=f"made by {node.op} {node.name!r}",
                                 expected="shapes that do not depend on the data",
                                 do="take the data-dependent operation out of the network, or after its logits")
