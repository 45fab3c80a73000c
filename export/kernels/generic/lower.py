"""What no kernel of ours covers: TVM's own legalisation, operation by operation.

Any operation of a program can go this way (operations of ours are first written as a small ONNX model), so that every
network compiles; it is correct but slow, and the report names it.
"""
from __future__ import annotations

import hashlib
import re

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.export.graph.groups import ELEMENTWISE
from tsm_edge.export.graph.ops import Fallback
from tsm_edge.export.kernels.write.base import Kernel, TensorArg, WeightArg

from .models import as_fallback
from .schedule import is_one_loop_nest, schedule


def lower(op, shapes, target):
    """Compile one operation by TVM's legalisation.

    Parameters
    ----------
    op : operation of a program
    shapes : dict
        The program's.
    target : Target

    Returns
    -------
    list of Kernel
        In execution order; tensors between them are called `<op name>:<n>`.

    Raises
    ------
    InputError
        TVM cannot compile it; names the ONNX operation and the layer.
    """
    if not isinstance(op, Fallback):
        op = as_fallback(op, shapes)
    try:
        module = _legalise(op, target)
        return _Calls(op, module).kernels()
    except InputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise InputError(
            f"{op.name} cannot be compiled: {', '.join(dict.fromkeys(op.ops))}",
            found=f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:400],
            expected="operations that our kernels or TVM's ONNX importer know",
            do="replace that layer in the network, or run it on the model.onnx with engine='onnxruntime'") from error


def _legalise(op, target):
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(_plainly_named(op.model), keep_params_in_input=False)
    with target.tvm_target():
        for step in (relax.transform.DecomposeOpsForInference, relax.transform.FoldConstant,
                     relax.transform.LegalizeOps, relax.transform.FoldConstant,
                     relax.transform.AnnotateTIROpPattern, relax.transform.FuseOps, relax.transform.FuseTIR):
            module = step()(module)
        return relax.transform.DeadCodeElimination(["main"])(module)


def _plainly_named(model):
    """A copy whose tensors are called x0, x1, ...: the code, and so its symbol, shall not depend on layers' names."""
    import onnx

    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, names = model.graph, {"": ""}
    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = names.setdefault(value.name, f"x{len(names)}")
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.setdefault(name, f"x{len(names)}") for name in field]
        node.name = ""
    del graph.value_info[:]
    return model


class _Calls:
    """Walks the legalised main function: a list of calls of TensorIR functions."""

    def __init__(self, op, module):
        self.op, self.module = op, module
        self.tensors = {}  # relax variable -> TensorArg, WeightArg or a list of them
        self.out = []

    def kernels(self):
        main = self.module["main"]
        if len(main.params) != len(self.op.inputs):
            raise ValueError(f"{len(main.params)} inputs after the import, {len(self.op.inputs)} before")
        for parameter, name in zip(main.params, self.op.inputs):
            self.tensors[parameter] = self.tensor(name, parameter)
        for block in main.body.blocks:
            for binding in block.bindings:
                self.bind(binding.var, binding.value)
        results = self.value(main.body.body)
        self.finish(results if isinstance(results, list) else [results])
        return self.out

    def tensor(self, name, expression):
        info = expression.ty
        return TensorArg(name, tuple(int(d) for d in info.shape.values), str(info.dtype))

    def value(self, expression):
        """TensorArg or WeightArg (or a list) that an expression stands for."""
        from tvm import ir, relax

        if isinstance(expression, ir.GenericConst):
            return WeightArg(np.asarray(expression.value.numpy(), order="C"))
        if isinstance(expression, relax.TupleGetItem):
            return self.value(expression.tuple_value)[expression.index]
        if isinstance(expression, relax.Tuple):
            return [self.value(field) for field in expression.fields]
        return self.tensors[expression]

    def bind(self, variable, value):
        from tvm import relax

        if not isinstance(value, relax.Call):
            self.tensors[variable] = self.value(value)
            return
        if getattr(value.op, "name", "") != "relax.call_tir":
            raise ValueError(f"{getattr(value.op, 'name', value.op)} needs TVM's runtime")
        outputs = self.results(variable)
        arguments = [self.value(a) for a in value.args[1].fields]
        many = isinstance(outputs, list)
        self.tensors[variable] = outputs
        self.call(self.module[value.args[0]], str(value.args[0].name_hint), arguments, outputs if many else [outputs])

    def results(self, variable):
        """New tensors for what a call gives."""
        info = variable.ty
        fields = getattr(info, "fields", None)
        if fields is None:
            return self.new(info)
        return [self.new(field) for field in fields]

    def new(self, info):
        self.count = getattr(self, "count", 0) + 1
        return TensorArg(f"{self.op.name}:{self.count}", tuple(int(d) for d in info.shape.values), str(info.dtype))

    def call(self, func, title, arguments, outputs):
        func = schedule(func.without_attr("op_pattern") if "op_pattern" in (func.attrs or {}) else func)
        symbol = f"tvm_{re.sub('[^a-z0-9_]', '', title.lower())[:40]}_{_digest(func)}"
        self.out.append(Kernel(symbol, "fallback", func.with_attr("global_symbol", symbol),
                               tuple(arguments) + tuple(outputs), 0))

    def finish(self, results):
        """Give the results the names that the program expects; copy what is an input, a constant or given twice."""
        from dataclasses import replace

        renamed, inputs = {}, set(self.op.inputs)
        copies = []
        for name, result in zip(self.op.outputs, results):
            if isinstance(result, TensorArg) and result.name not in inputs and result.name not in renamed:
                renamed[result.name] = name
            else:
                copies.append((name, result))
        for i, kernel in enumerate(self.out):
            args = tuple(replace(a, name=renamed.get(a.name, a.name)) if isinstance(a, TensorArg) else a
                         for a in kernel.args)
            self.out[i] = replace(kernel, args=args)
        for name, source in copies:
            if isinstance(source, TensorArg):
                source = replace(source, name=renamed.get(source.name, source.name))
            shape = source.shape if isinstance(source, TensorArg) else source.array.shape
            dtype = source.dtype if isinstance(source, TensorArg) else str(source.array.dtype)
            self.call(_copy(shape, dtype), "copy", [source], [TensorArg(name, tuple(shape), dtype)])
        if self.out:
            self.out[0] = replace(self.out[0], macs=model_macs(self.op.model))
        elementwise = all(node.op_type in ELEMENTWISE for node in self.op.model.graph.node)
        if elementwise and len(self.out) == len(results) == 1 and is_one_loop_nest(self.out[0].func):
            self.out[0] = replace(self.out[0], in_place=tuple(self.op.inputs))


def _digest(func):
    """Name for a function's code: the same function gives the same name, in every process."""
    text = func.with_attr("global_symbol", "main").script(show_meta=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _copy(shape, dtype):
    from tvm import te

    source = te.placeholder(shape, dtype, name="x")
    return te.create_prim_func([source, te.compute(shape, lambda *i: source(*i), name="y")])


def model_macs(model):
    """Multiply-accumulates of the convolutions and matrix products in a small ONNX model."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        shapes[info.name] = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
    macs = 0
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in shapes and node.output[0] in shapes:
            macs += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type in ("MatMul", "Gemm") and node.input[0] in shapes and node.output[0] in shapes:
            inner = shapes[node.input[0]][-1]
            macs += int(np.prod(shapes[node.output[0]])) * int(inner)
    return macs
