"""3x3, 7x7 and other dense convolutions against numpy in double precision."""
import numpy as np
import pytest

pytest.importorskip("tvm")

from spliced import spliced_input  # noqa: E402

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

INF = float("inf")
# height, width, in, out, kernel, stride, padding (top, left, bottom, right), clip, residual, splice
CASES = [
    (33, 31, 3, 32, (3, 3), (2, 2), (1, 1, 1, 1), (0, 6), False, None),
    (32, 48, 3, 32, (3, 3), (2, 2), (0, 0, 1, 1), (0, 6), False, None),  # padded at the end only
    (30, 40, 3, 64, (7, 7), (2, 2), (3, 3, 3, 3), (0, INF), False, None),
    (7, 7, 24, 32, (3, 3), (1, 1), (1, 1, 1, 1), (0, INF), True, (0, 3)),
    (9, 5, 13, 27, (3, 3), (1, 1), (1, 1, 1, 1), None, True, (5, 9)),
    (12, 10, 16, 20, (3, 3), (2, 2), (1, 1, 1, 1), None, False, (0, 2)),
    (11, 13, 8, 8, (3, 3), (1, 1), (0, 0, 0, 0), None, False, None),  # no border: nothing is copied
    (10, 9, 5, 7, (1, 3), (2, 1), (0, 1, 0, 1), None, False, None),
    (3, 3, 4, 4, (5, 5), (1, 1), (2, 2, 2, 2), (0, 6), False, None),
    (6, 6, 12, 16, (1, 1), (1, 1), (1, 1, 1, 1), None, False, None),  # 1x1 with a border
]


def make(case):
    height, width, ic, oc, (kh, kw), (sy, sx), padding, clip, residual, fold = case
    rng = np.random.default_rng(1)
    top, left, bottom, right = padding
    oh, ow = (height + top + bottom - kh) // sy + 1, (width + left + right - kw) // sx + 1
    tensors, source, splice, kept = spliced_input(rng, (height, width, ic), fold)
    shapes = {"x": (height, width, ic), "out": (oh, ow, oc)}
    weight = (rng.standard_normal((oc, ic, kh, kw)) / np.sqrt(ic * kh * kw)).astype("float32")
    bias = rng.standard_normal(oc).astype("float32")
    padded = np.pad(source, ((top, bottom), (left, right), (0, 0)))
    expected = np.zeros((oh, ow, oc)) + bias
    for y in range(oh):
        for x in range(ow):
            window = padded[y * sy:y * sy + kh, x * sx:x * sx + kw]
            expected[y, x] += np.einsum("yxc,ocyx->o", window, weight.astype(float))
    if residual:
        tensors["residual"] = rng.standard_normal((oh, ow, oc)).astype("float32")
        expected = expected + tensors["residual"]
    if clip:
        expected = np.clip(expected, *clip)
    op = ops.Conv("layer", "x", "out", weight, bias, (sy, sx), padding, clip=clip,
                      residual="residual" if residual else None, splice=splice)
    return op, shapes, tensors, expected, kept


def check(results, expected, kept):
    np.testing.assert_allclose(results["out"].reshape(expected.shape), expected, rtol=0,
                               atol=1e-5 * max(1, np.abs(expected).max()))
    if kept is not None:
        np.testing.assert_array_equal(results["next"].reshape(kept.shape), kept)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_equals_numpy(case):
    target = get_target("host")
    op, shapes, tensors, expected, kept = make(case)
    check(evaluate(kernels.build(op, shapes, target), tensors, target), expected, kept)


@pytest.mark.parametrize("board, tasks", [("jetson-nano", 1), ("jetson-nano", 3), ("raspberry-pi-32bit", 2)])
def test_conv_equals_numpy_on_arm_without_reading_outside_its_tensors(board, tasks):
    target = get_target(board)
    made = [make(case) for case in CASES]
    cases = [(kernels.build(op, shapes, target), tensors) for op, shapes, tensors, _, _ in made]
    try:
        results = evaluate_emulated(cases, target, tasks)
    except MissingComponentError as error:
        pytest.skip(str(error))
    for (_, _, _, expected, kept), result in zip(made, results):
        check(result, expected, kept)


def test_groups_that_are_not_depthwise_have_no_kernel():
    weight = np.zeros((8, 4, 3, 3), "float32")
    op = ops.Conv("layer", "x", "out", weight, np.zeros(8, "float32"), padding=(1, 1, 1, 1), groups=2)
    assert kernels.build(op, {"x": (5, 5, 8), "out": (5, 5, 8)}, get_target("host")) is None
