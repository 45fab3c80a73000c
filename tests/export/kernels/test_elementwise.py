"""Additions, splices and layout changes equal numpy's."""
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
BOTH = pytest.mark.parametrize("target", [HOST, NARROW], ids=["wide", "narrow"])


@BOTH
@pytest.mark.parametrize("shape", [(7, 5, 13), (8, 8, 16), (3,), (1000,)])
@pytest.mark.parametrize("clip", [None, (0.0, float("inf")), (-0.5, 0.5)])
def test_add(shape, clip, target):
    a, b = np.random.default_rng(1).standard_normal((2, *shape)).astype("float32")
    built = kernels.build(ops.Add("add", "a", "b", "out", clip), {"a": shape, "b": shape, "out": shape}, target)
    want = a + b if clip is None else np.clip(a + b, *clip)
    np.testing.assert_array_equal(evaluate(built, {"a": a, "b": b}, target)["out"].reshape(shape), want)


@BOTH
@pytest.mark.parametrize("channels,start,stop", [(24, 0, 3), (24, 3, 6), (17, 15, 17), (5, 0, 5)])
def test_splice_takes_the_cache_and_keeps_its_own(channels, start, stop, target):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 5, channels)).astype("float32")
    cache = rng.standard_normal((6, 5, stop - start)).astype("float32")
    op = ops.ApplySplice("s", "x", "out", ops.Splice("cache", "next", start, stop))
    shapes = {"x": x.shape, "out": x.shape, "cache": cache.shape, "next": cache.shape}
    got = evaluate(kernels.build(op, shapes, target), {"x": x, "cache": cache}, target)
    want = x.copy()
    want[:, :, start:stop] = cache
    np.testing.assert_array_equal(got["out"].reshape(x.shape), want)
    np.testing.assert_array_equal(got["next"].reshape(cache.shape), x[:, :, start:stop])


@BOTH
@pytest.mark.parametrize("shape", [(7, 5, 3), (8, 8, 16), (1, 1, 9), (4, 3, 1)])
def test_layout_there_and_back(shape, target):
    x = np.random.default_rng(3).standard_normal(shape).astype("float32")
    chw = (shape[2], *shape[:2])
    there = kernels.build(ops.Layout("l", "x", "out", "chw"), {"x": shape, "out": chw}, target)
    first = evaluate(there, {"x": x}, target)["out"].reshape(chw)
    np.testing.assert_array_equal(first, x.transpose(2, 0, 1))
    back = kernels.build(ops.Layout("l", "x", "out", "hwc"), {"x": chw, "out": shape}, target)
    np.testing.assert_array_equal(evaluate(back, {"x": first}, target)["out"].reshape(shape), x)
