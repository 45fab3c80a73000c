"""Depthwise kernels compute what plain numpy loops compute, whatever the size."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.targets import boards  # noqa: E402

HOST = boards.get_target("host")
NARROW = replace(HOST, vector_bits=128, fma_by_element=True)  # the code shape of ARM, on this machine
INF = float("inf")


def depthwise_reference(x, weight, bias, stride, padding, clip=None, residual=None):
    """Windows of a zero-padded float64 copy, tap by tap."""
    top, left, bottom, right = padding
    padded = np.pad(x.astype(np.float64), ((top, bottom), (left, right), (0, 0)))
    kh, kw = weight.shape[2:]
    oh = (padded.shape[0] - kh) // stride[0] + 1
    ow = (padded.shape[1] - kw) // stride[1] + 1
    out = np.zeros((oh, ow, x.shape[2])) + bias
    for ky in range(kh):
        for kx in range(kw):
            rows, columns = slice(ky, ky + stride[0] * oh, stride[0]), slice(kx, kx + stride[1] * ow, stride[1])
            out += padded[rows, columns][:oh, :ow] * weight[:, 0, ky, kx]
    if residual is not None:
        out += residual
    return out if clip is None else np.clip(out, *clip)


def check(height, width, channels, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), clip=(0.0, 6.0), residual=False,
          target=HOST):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((height, width, channels)).astype("float32")
    weight = rng.standard_normal((channels, 1, *kernel)).astype("float32")
    bias = rng.standard_normal(channels).astype("float32")
    oh = (height + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    ow = (width + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    tensors = {"x": x}
    if residual:
        tensors["r"] = rng.standard_normal((oh, ow, channels)).astype("float32")
    op = ops.Conv("d", "x", "out", weight, bias, stride, padding, channels, clip, "r" if residual else None)
    shapes = {"x": x.shape, "r": (oh, ow, channels), "out": (oh, ow, channels)}
    built = kernels.build(op, shapes, target)
    got = evaluate(built, tensors, target)["out"].reshape(oh, ow, channels)
    want = depthwise_reference(x, weight, bias, stride, padding, clip, tensors.get("r"))
    np.testing.assert_allclose(got, want, atol=2e-5)
    return built


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=["s1", "s2"])
@pytest.mark.parametrize("size", [(7, 5, 19), (14, 14, 96), (1, 1, 33), (2, 9, 8), (20, 15, 37), (3, 2, 4)])
def test_3x3_of_any_size_equals_numpy(size, stride, target):
    check(*size, stride=stride, target=target)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=["s1", "s2"])
def test_3x3_without_clip_and_with_a_residual(stride):
    check(9, 11, 21, stride=stride, clip=None, residual=True)
    check(9, 11, 21, stride=stride, clip=(0.0, INF), residual=True, target=NARROW)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 0, 1, 1), (1, 0, 1, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
def test_3x3_with_any_padding(padding, stride):
    check(10, 13, 18, padding=padding, stride=stride, target=NARROW)


@pytest.mark.parametrize("kernel,padding", [((5, 5), (2, 2, 2, 2)), ((1, 7), (0, 3, 0, 3)), ((7, 7), (3, 3, 3, 3)),
                                            ((2, 2), (0, 0, 0, 0))])
def test_other_windows(kernel, padding):
    check(12, 9, 17, kernel=kernel, padding=padding)
    check(12, 9, 17, kernel=kernel, padding=padding, stride=(3, 2))


def test_code_is_shared_between_layers_of_one_form():
    """The symbol names the form, so weights and tensor names are not in it."""
    first, second = check(7, 5, 19), check(7, 5, 19, clip=(0.0, 6.0))
    assert first.symbol == second.symbol
    assert check(7, 5, 19, stride=(2, 2)).symbol != first.symbol
    assert check(7, 5, 19, clip=None).symbol != first.symbol


def test_several_outputs_of_a_channel_are_left_to_others():
    op = ops.Conv("d", "x", "out", np.zeros((8, 1, 3, 3), "float32"), np.zeros(8, "float32"), groups=4)
    assert kernels.build(op, {"x": (5, 5, 4), "out": (3, 3, 8)}, HOST) is None
