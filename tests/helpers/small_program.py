"""A program of one fused block and one convolution, and its kernels."""
import step_graphs

from tsm_edge.export import kernels
from tsm_edge.export.graph.to_ops import import_onnx
from tsm_edge.export.kernels.calls import make_kernel
from tsm_edge.export.kernels.choose import choices


def network():
    """(ONNX model, Program)."""
    model = step_graphs.residual_splice()[0]
    return model, import_onnx(model)


def kernels_of(step, target):
    """{symbol: kernel} of the kernels that have something to choose."""
    found = [make_kernel(op, step.shapes, target) for op in kernels.fuse(step).ops]
    return {kernel.symbol: kernel for kernel in found if kernel is not None and kernel.kind in choices.OF_KIND}
