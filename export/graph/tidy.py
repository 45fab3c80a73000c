"""What is taken out of and written over in the ONNX file that torch makes."""
from __future__ import annotations

import re

import numpy as np

from tsm_edge import __version__

OPSET, IR_VERSION = 17, 8  # read by onnxruntime >= 1.13 and by every other engine in use


def end_names(step_net):
    """(input names, output names) of the graph."""
    caches = [spec.name for spec in step_net.cache_specs]
    return ["frame", *caches], ["logits", *("next_" + name for name in caches)]


def _layer(node_name):
    """"/net/features/features.2/conv/conv.0/Conv" -> "features.2.conv.0": the exporter's scopes repeat their parent's name."""
    path = []
    for scope in [part for part in node_name.split("/") if part][1 if node_name.startswith("/net/") else 0:-1]:
        parts = re.sub(r"_\d+$", "", scope).split(".") if "." in scope else [scope]
        known = range(len(parts) - 1, 0, -1) if len(parts) > 1 else ()
        path += parts[next((k for k in known if path[-k:] == parts[:k]), 0):]
    return ".".join(path)


# what the inputs of a node are called, by their place
_ROLES = {"Conv": ("", "weight", "bias"), "Gemm": ("", "weight", "bias"), "Clip": ("", "low", "high"),
          "Slice": ("", "starts", "ends", "axes", "steps"), "BatchNormalization": ("", "scale", "bias", "mean", "var")}


def tidy(model, step_net):
    """Constants as initializers, no copies, readable names, nothing of the machine that wrote it."""
    from onnx import numpy_helper

    graph, ends = model.graph, {name for names in end_names(step_net) for name in names}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        else:
            nodes.append(node)
    nodes = _without_copies(nodes, ends, values)
    names = _Names(ends, values)
    for index, node in enumerate(nodes):
        names.rename(index, node)
        node.doc_string = ""
        del node.metadata_props[:]
        attributes = sorted(node.attribute, key=lambda a: a.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in names.kept.items())
    _sign(model, step_net)


class _Names:
    """New names for a graph's nodes and tensors. kept : {name: value} of the constants that the nodes read."""

    def __init__(self, ends, values):
        self.ends, self.values = ends, values
        self.renamed, self.kept, self.taken = {}, {}, set(ends)

    def rename(self, index, node):
        layer, kind, roles = _layer(node.name) or "net", node.op_type.lower(), _ROLES.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in self.values:
                role = roles[i] if i < len(roles) else f"constant{i}"
                small = node.op_type in ("Clip", "Slice")
                node.input[i] = self.constant(name, f"{kind}.{role}" if small else f"{layer}.{role}")
            elif name:
                node.input[i] = self.renamed.get(name, name)
        node.name = f"{index:03d}.{layer}.{kind}"
        for i, name in enumerate(node.output):
            if name and name not in self.ends:
                node.output[i] = self.renamed[name] = self.unique(f"{layer}.{kind}")

    def unique(self, name):
        candidate, number = name, 2
        while candidate in self.taken:
            candidate, number = f"{name}.{number}", number + 1
        self.taken.add(candidate)
        return candidate

    def constant(self, name, wish):
        """The new name of a constant; small ones of the same value share one."""
        if name not in self.renamed:
            value = self.values[name]
            same = next((k for k, v in self.kept.items() if value.size <= 8 and v.size <= 8 and v.dtype == value.dtype
                         and v.shape == value.shape and (v == value).all()), None)
            self.renamed[name] = same or self.unique(wish)
            self.kept[self.renamed[name]] = value
        return self.renamed[name]


def _sign(model, step_net):
    """Who wrote it, in which version of ONNX; and the graph's ends, with their shapes."""
    from onnx import helper

    graph = model.graph
    graph.name, graph.doc_string = "step", ""
    model.producer_name, model.producer_version, model.doc_string, model.domain = "tsm-edge", __version__, "", ""
    model.ir_version = IR_VERSION
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    del graph.input[:], graph.output[:]
    width, height = step_net.input_size
    shapes = {"frame": (1, 3, height, width), "logits": (1, step_net.num_classes)}
    for spec in step_net.cache_specs:
        shapes[spec.name] = shapes["next_" + spec.name] = spec.shape
    inputs, outputs = end_names(step_net)
    float32 = 1
    graph.input.extend(helper.make_tensor_value_info(name, float32, shapes[name]) for name in inputs)
    graph.output.extend(helper.make_tensor_value_info(name, float32, shapes[name]) for name in outputs)


def _without_copies(nodes, ends, values):
    """Take out Identity nodes by renaming; one between an input and an output stays."""
    source = {}
    kept = []
    for node in nodes:
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in ends:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    result = []
    for node in kept:
        made = next((other for other in result if node.op_type == "Identity" and node.input[0] in other.output), None)
        if made is None or node.input[0] in ends:
            result.append(node)
            continue
        # the output's name must stay: whoever makes the source makes the output now
        old, new = node.input[0], node.output[0]
        for other in kept:
            other.input[:] = [new if name == old else name for name in other.input]
            other.output[:] = [new if name == old else name for name in other.output]
    return result
