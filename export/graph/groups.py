"""Gathers the ONNX nodes that no operation of ours covers into fallback operations, with layout changes around them."""
from __future__ import annotations

from collections import Counter

import numpy as np

from .ops import Fallback, Layout, inputs_of, outputs_of
from .read import Node, node_proto

# Operations that treat every element alike: computed channels last as they come, no layout change needed.
ELEMENTWISE = frozenset("""Abs Add Ceil Celu Clip Cos Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    LeakyRelu Log Max Min Mish Mul Neg Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Tanh
    ThresholdedRelu""".split())


def group_fallbacks(ops, graph):
    """Turn runs of ONNX nodes among `ops` into Fallback operations.

    Parameters
    ----------
    ops : list
        Program operations and read.Node, in execution order.
    graph : read.Graph
        Shapes, types and constants.

    Returns
    -------
    (list, dict)
        Program operations only; shapes of all their tensors. A map's channels-first twin is called `<name>:chw`.
    """
    return _Groups(graph).run(ops)


class _Groups:
    def __init__(self, graph):
        self.graph = graph
        self.out = []
        self.made = set()
        self.shapes = {}

    def run(self, ops):
        groups = []  # (kind, ops): None for operations of ours
        for op in ops:
            kind = None if not isinstance(op, Node) else "hwc" if self.elementwise(op) else "chw"
            if groups and kind is not None and groups[-1][0] == kind and self.alike(groups[-1][1][-1], op, kind):
                groups[-1][1].append(op)
            else:
                groups.append((kind, [op]))
        self.made = set(self.graph.inputs)
        readers = Counter()  # how many groups still read a tensor; the ends of the graph read theirs last
        readers.update(self.graph.outputs)
        for _, members in groups:
            readers.update({name for op in members for name in inputs_of(op)})
        for kind, members in groups:
            readers.subtract({name for op in members for name in inputs_of(op)})
            if kind is None:
                self.native(members[0])
            else:
                self.fallback(members, kind, readers)
        for name in self.graph.outputs:
            self.need(name, "hwc")
        for op in self.out:
            for name in (*inputs_of(op), *outputs_of(op)):
                self.note_shape(name)
        for name in (*self.graph.inputs, *self.graph.outputs):
            self.note_shape(name)
        return self.out, self.shapes

    # --- names and shapes ---

    def twin(self, name, kind):
        """The tensor's name in this layout: maps have two, unless both layouts are the same bytes."""
        shape = self.graph.shapes[name]
        both = len(shape) == 4 and shape[0] == 1 and shape[1] > 1 and shape[2] * shape[3] > 1
        return name + ":chw" if kind == "chw" and both else name

    def note_shape(self, name):
        base = name[:-len(":chw")] if name.endswith(":chw") else name
        shape = self.graph.shapes[base]
        if name != base:
            self.shapes[name] = shape[1:]
        elif len(shape) == 4 and shape[0] == 1:
            self.shapes[name] = (shape[2], shape[3], shape[1])
        elif len(shape) == 2 and shape[0] == 1:
            self.shapes[name] = shape[1:]
        else:
            self.shapes[name] = shape

    def need(self, name, kind):
        """Make the tensor available in this layout, and return its name there."""
        want = self.twin(name, kind)
        if want not in self.made:
            have = self.twin(name, "hwc" if kind == "chw" else "chw")
            self.out.append(Layout(want, have, want, kind))
            self.made.add(want)
        return want

    # --- operations ---

    def native(self, op):
        for name in inputs_of(op):
            self.need(name, "hwc")
        self.out.append(op)
        self.made.update(outputs_of(op))

    def elementwise(self, node):
        """Can this node work on channels-last data? All operands maps, or constants that broadcast over h and w."""
        if node.op not in ELEMENTWISE or node.domain not in ("", "ai.onnx"):
            return False
        for name in [n for n in (*node.inputs, *node.outputs) if n]:
            shape = self.graph.shapes[name]
            if name in self.graph.constants:
                if np.prod(shape) != 1 and not (len(shape) in (3, 4) and np.prod(shape) == shape[-3]):
                    return False
            elif len(shape) != 4 or shape[0] != 1:
                return False
        return True

    def alike(self, node, following, kind):
        """Can two nodes be one loop? Not the gate of an attention block and its use: a sigmoid for every channel alone, not pixel."""
        return kind != "hwc" or self.graph.shapes[node.outputs[0]][2:] == self.graph.shapes[following.outputs[0]][2:]

    def fallback(self, nodes, kind, readers):
        made = {name for node in nodes for name in outputs_of(node)}
        read = list(dict.fromkeys(n for node in nodes for n in inputs_of(node)))
        inputs = [n for n in read if n not in made and n not in self.graph.constants]
        outputs = [n for n in dict.fromkeys(n for node in nodes for n in outputs_of(node)) if readers[n] > 0]
        ends = [self.need(name, kind) for name in inputs]
        name = nodes[0].name or nodes[0].out
        if len(nodes) > 1:
            name += ".." + (nodes[-1].name or nodes[-1].out)
        model = self.model(nodes, inputs, outputs, kind)
        produced = tuple(self.twin(n, kind) for n in outputs)
        self.out.append(Fallback(name, tuple(ends), produced, model, tuple(node.op for node in nodes)))
        self.made.update(produced)

    def model(self, nodes, inputs, outputs, kind):
        """The nodes as an ONNX model of their own; channels last where `kind` is "hwc"."""
        from onnx import helper, numpy_helper

        def shape_of(name):
            shape = self.graph.shapes[name]
            return (shape[0], shape[2], shape[3], shape[1]) if kind == "hwc" else shape

        def info(name):
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.graph.dtypes[name]),
                                                 shape_of(name))

        constants = {}
        for node in nodes:
            for name in inputs_of(node):
                value = self.graph.constants.get(name)
                if value is not None:
                    by_channel = kind == "hwc" and value.size > 1
                    constants[name] = value.reshape(-1) if by_channel else value
        graph = helper.make_graph([node_proto(node) for node in nodes], "fallback", [info(n) for n in inputs],
                                  [info(n) for n in outputs],
                                  [numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in constants.items()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in self.graph.opsets],
                                 ir_version=self.graph.ir_version)
