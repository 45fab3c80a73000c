"""1x1 convolutions against numpy in double precision, on this machine and under ARM emulators."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from spliced import spliced_input  # noqa: E402

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.benchmarks.kernel_here import compile_kernel, evaluate  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

INF = float("inf")
# height, width, in, out, stride, clip, residual, splice
CASES = [
    (7, 7, 16, 32, 1, None, False, None),
    (5, 7, 13, 27, 1, (0, 6), False, None),  # nothing divides
    (14, 14, 24, 24, 1, None, True, (0, 3)),  # the first shift of the reference network
    (9, 5, 21, 19, 1, (0, INF), True, (2, 5)),  # spliced in the middle
    (9, 5, 72, 64, 1, (0.3, 7.77), True, (8, 17)),
    (56, 56, 36, 24, 1, None, False, (33, 36)),  # spliced at the end
    (40, 61, 33, 40, 1, None, False, (0, 33)),  # all of it spliced
    (9, 11, 20, 24, 2, (-1, 1), False, None),
    (8, 6, 12, 16, 2, None, False, (0, 3)),
    (1, 1, 10, 5, 1, None, False, None),
    (1, 1, 3, 4, 1, None, False, (0, 1)),
    (1, 2, 7, 8, 1, None, False, (3, 6)),
    (1, 3, 2, 72, 1, (0, 6), True, (1, 2)),
    (7, 7, 160, 96, 1, (0, 6), False, (0, 20)),
    (130, 97, 8, 12, 1, (0, 6), False, (0, 1)),  # more than L2 holds: by rows, with a last run that is shorter
]


def make(case, seed=0):
    """(op, shapes, tensors, expected out, expected next cache)."""
    height, width, ic, oc, stride, clip, residual, fold = case
    rng = np.random.default_rng(seed)
    oh, ow = -(-height // stride), -(-width // stride)
    tensors, source, splice, kept = spliced_input(rng, (height, width, ic), fold)
    shapes = {"x": (height, width, ic), "out": (oh, ow, oc)}
    weight = (rng.standard_normal((oc, ic, 1, 1)) / np.sqrt(ic)).astype("float32")
    bias = rng.standard_normal(oc).astype("float32")
    expected = source[::stride, ::stride] @ weight[:, :, 0, 0].T.astype(float) + bias
    if residual:
        tensors["residual"] = rng.standard_normal((oh, ow, oc)).astype("float32")
        expected = expected + tensors["residual"]
    if clip:
        expected = np.clip(expected, *clip)
    op = ops.Conv("layer", "x", "out", weight, bias, (stride, stride), clip=clip,
                      residual="residual" if residual else None, splice=splice)
    return op, shapes, tensors, expected, kept


def check(results, expected, kept):
    np.testing.assert_allclose(results["out"].reshape(expected.shape), expected, rtol=0,
                               atol=1e-5 * max(1, np.abs(expected).max()))
    if kept is not None:
        np.testing.assert_array_equal(results["next"].reshape(kept.shape), kept)


def variants():
    """This machine's target, and narrower ones that it can run too."""
    host = get_target("host")
    yield "host", host
    if host.arch == "x86_64":
        yield "avx2", replace(host, cpu="x86-64-v3", features=(), vector_bits=256, vector_registers=16)
        yield "sse", replace(host, cpu="x86-64-v2", features=(), vector_bits=128, vector_registers=16)
        yield "lanes", replace(host, vector_bits=128, vector_registers=32, fma_by_element=True)


@pytest.mark.parametrize("name, target", list(variants()), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pointwise_equals_numpy(case, name, target):
    if name == "avx2" and not {"+avx2", "x86-64-v3", "x86-64-v4"} & {*get_target("host").features,
                                                                      get_target("host").cpu}:
        pytest.skip("this machine has no AVX2")
    op, shapes, tensors, expected, kept = make(case)
    check(evaluate(kernels.build(op, shapes, target), tensors, target), expected, kept)


def emulate(cases, target, tasks):
    try:
        return evaluate_emulated(cases, target, tasks)
    except MissingComponentError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("board, tasks", [("jetson-nano", 1), ("jetson-nano", 3), ("raspberry-pi-32bit", 1)])
def test_pointwise_equals_numpy_on_arm_without_reading_outside_its_tensors(board, tasks):
    target = get_target(board)
    made = [make(case) for case in CASES]
    results = emulate([(kernels.build(op, shapes, target), tensors) for op, shapes, tensors, _, _ in made], target, tasks)
    for (_, _, _, expected, kept), result in zip(made, results):
        check(result, expected, kept)


@pytest.mark.parametrize("board", ["jetson-nano", "raspberry-pi-32bit", "host"])
def test_a_call_allocates_nothing(board):
    target = get_target(board)
    op, shapes, *_ = make(CASES[3])
    text = compile_kernel(kernels.build(op, shapes, target), target).inspect_source("asm")
    assert "AllocWorkspace" not in text


def test_equal_shapes_share_their_code_and_others_do_not():
    target = get_target("jetson-nano")
    first, shapes, *_ = make(CASES[3], seed=1)
    second, *_ = make(CASES[3], seed=2)
    assert kernels.build(first, shapes, target).symbol == kernels.build(second, shapes, target).symbol
    symbols = {kernels.build(op, shapes, target).symbol for op, shapes, *_ in (make(case) for case in CASES)}
    assert len(symbols) == len(CASES)


def test_multiply_accumulates_are_counted():
    op, shapes, *_ = make((7, 5, 11, 13, 1, None, False, None))
    assert kernels.build(op, shapes, get_target("host")).macs == 7 * 5 * 11 * 13
