"""Fully connected layers against numpy in double precision."""
import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

CASES = [(27, 1280, None), (1000, 512, None), (3, 5, (0, 1)), (1, 1, None), (64, 33, (0, float("inf")))]


def make(case):
    oc, ic, clip = case
    rng = np.random.default_rng(2)
    weight = (rng.standard_normal((oc, ic)) / np.sqrt(ic)).astype("float32")
    bias, x = rng.standard_normal(oc).astype("float32"), rng.standard_normal(ic).astype("float32")
    expected = weight.astype(float) @ x + bias
    op = ops.Dense("fc", "x", "out", weight, bias, clip)
    return op, {"x": (ic,), "out": (oc,)}, {"x": x}, np.clip(expected, *clip) if clip else expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dense_equals_numpy(case):
    target = get_target("host")
    op, shapes, tensors, expected = make(case)
    kernel = kernels.build(op, shapes, target)
    assert kernel.macs == op.weight.size
    np.testing.assert_allclose(evaluate(kernel, tensors, target)["out"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("board", ["jetson-nano", "raspberry-pi-32bit"])
def test_dense_equals_numpy_on_arm(board):
    target = get_target(board)
    made = [make(case) for case in CASES]
    try:
        results = evaluate_emulated([(kernels.build(op, shapes, target), x) for op, shapes, x, _ in made], target)
    except MissingComponentError as error:
        pytest.skip(str(error))
    for (*_, expected), result in zip(made, results):
        np.testing.assert_allclose(result["out"], expected, rtol=0, atol=1e-5)
