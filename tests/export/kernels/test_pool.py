"""Pooling kernels compute what plain numpy computes, padding excluded."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.targets import boards  # noqa: E402

HOST = boards.get_target("host")
NARROW = replace(HOST, vector_bits=128, fma_by_element=True)


def pool_reference(x, kind, kernel, stride, padding, oh, ow):
    """One window at a time, cut to the image."""
    out = np.zeros((oh, ow, x.shape[2]))
    for y in range(oh):
        for column in range(ow):
            top, left = y * stride[0] - padding[0], column * stride[1] - padding[1]
            part = x[max(top, 0):top + kernel[0], max(left, 0):left + kernel[1]].astype(np.float64)
            out[y, column] = part.max((0, 1)) if kind == "max" else part.mean((0, 1))
    return out


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size,kernel,stride,padding", [
    ((12, 9, 35), (3, 3), (2, 2), (1, 1, 1, 1)),
    ((7, 5, 3), (2, 2), (2, 2), (0, 0, 0, 0)),
    ((9, 10, 16), (3, 2), (1, 2), (1, 0, 1, 1)),
])
def test_windows_equal_numpy(kind, size, kernel, stride, padding, target):
    x = np.random.default_rng(3).standard_normal(size).astype("float32") - 5  # all negative: a zero border would show
    oh = (size[0] + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    ow = (size[1] + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    op = ops.Pool("p", kind, "x", "out", kernel, stride, padding)
    built = kernels.build(op, {"x": size, "out": (oh, ow, size[2])}, target)
    got = evaluate(built, {"x": x}, target)["out"].reshape(oh, ow, size[2])
    np.testing.assert_allclose(got, pool_reference(x, kind, kernel, stride, padding, oh, ow), atol=1e-5)


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("size", [(7, 7, 1280), (5, 3, 37), (1, 1, 2)])
def test_global_average_equals_numpy(size, target):
    x = np.random.default_rng(3).standard_normal(size).astype("float32")
    built = kernels.build(ops.GlobalAveragePool("g", "x", "out"), {"x": size, "out": size[2:]}, target)
    np.testing.assert_allclose(evaluate(built, {"x": x}, target)["out"], x.mean((0, 1)), atol=1e-5)
