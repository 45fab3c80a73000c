"""Which tensors an operation of the program (or an ONNX node) reads and writes."""
from __future__ import annotations


def inputs_of(op):
    """Names of the tensors an operation (or an ONNX node) reads, caches included."""
    if hasattr(op, "inputs"):
        return [name for name in op.inputs if name]
    if hasattr(op, "project"):
        stages = [s for s in (op.expand, op.depthwise, op.project) if s is not None]
        made = {s.out for s in stages}
        return [name for s in stages for name in inputs_of(s) if name not in made]
    if hasattr(op, "b"):
        return [op.a, op.b]
    names = [op.x]
    if getattr(op, "splice", None):
        names.append(op.splice.cache)
    if getattr(op, "residual", None):
        names.append(op.residual)
    return names


def outputs_of(op):
    """Names of the tensors an operation (or an ONNX node) writes, next caches included."""
    if hasattr(op, "outputs"):
        return [name for name in op.outputs if name]
    if hasattr(op, "project"):
        stages = [s for s in (op.expand, op.depthwise, op.project) if s is not None]
        return [s.splice.next_cache for s in stages if s.splice] + [op.out]
    return [op.out] + ([op.splice.next_cache] if getattr(op, "splice", None) else [])
