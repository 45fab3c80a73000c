"""Half precision on an emulated ARM core, against numpy in double precision on the same rounded inputs and weights."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from spliced import spliced_input  # noqa: E402

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.errors import InputError, MissingComponentError  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.kernels.choose.choices import Choices  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

TARGET = get_target("raspberry-pi-5")
# height, width, in, out, kernel, stride, clip, residual, fold
CASES = [
    (7, 7, 16, 32, 1, 1, None, False, 0),
    (5, 7, 13, 27, 1, 1, (0, 6), False, 0),
    (14, 14, 24, 24, 1, 1, None, True, 3),
    (9, 5, 72, 64, 1, 1, (0.3, 7.77), True, 9),
    (7, 7, 160, 96, 1, 1, (0, 6), False, 20),
    (9, 9, 1027, 16, 1, 1, None, False, 0),
    (33, 31, 3, 32, 3, 2, (0, 6), False, 0),
    (9, 7, 40, 24, 3, 1, None, True, 5),
]


def half(array):
    return np.asarray(array).astype("float16").astype("float64")


def make(case):
    height, width, ic, oc, size, stride, clip, residual, fold = case
    rng = np.random.default_rng(3)
    pad = size // 2
    oh, ow = (height + 2 * pad - size) // stride + 1, (width + 2 * pad - size) // stride + 1
    tensors, source, splice, kept = spliced_input(rng, (height, width, ic), (0, fold) if fold else None, half)
    shapes = {"x": (height, width, ic), "out": (oh, ow, oc)}
    weight = half(rng.standard_normal((oc, ic, size, size)) / np.sqrt(ic * size * size))
    bias = half(rng.standard_normal(oc))
    padded = np.pad(source, ((pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((oh, ow, oc)) + bias
    for ky in range(size):
        for kx in range(size):
            expected += padded[ky::stride, kx::stride][:oh, :ow] @ weight[:, :, ky, kx].T
    if residual:
        tensors["residual"] = half(rng.standard_normal((oh, ow, oc)))
        expected = expected + tensors["residual"]
    if clip:
        expected = np.clip(expected, *clip)
    op = ops.Conv("layer", "x", "out", weight.astype("float32"), bias.astype("float32"), (stride, stride),
                      (pad,) * 4, clip=clip, residual="residual" if residual else None, splice=splice)
    return op, shapes, tensors, expected, kept


def emulate(cases, target=TARGET):
    try:
        return evaluate_emulated(cases, target)
    except MissingComponentError as error:
        pytest.skip(str(error))


def test_convolutions_stay_within_a_few_roundings_and_caches_are_exact():
    made = [make(case) for case in CASES]
    results = emulate([(kernels.build(op, shapes, TARGET, "fp16"), tensors) for op, shapes, tensors, _, _ in made])
    for case, (_, _, _, expected, kept), result in zip(CASES, made, results):
        out = result["out"].reshape(expected.shape)
        assert out.dtype == np.float16
        error = np.sqrt(np.mean((out.astype(float) - expected) ** 2)) / expected.std()
        assert error < 4 * 2.0 ** -11, case  # one long float16 sum over the 1027 channels has 8 of them
        if kept is not None:
            np.testing.assert_array_equal(result["next"].reshape(kept.shape), kept)


def test_averages_of_whole_images_are_summed_in_single_precision():
    """6912 values near 1: float16 has steps of 4 where their sum is."""
    rng = np.random.default_rng(4)
    x = half(1 + 0.1 * rng.standard_normal((96, 72, 21)))
    globally = ops.GlobalAveragePool("g", "x", "out")
    windows = ops.Pool("p", "average", "x", "out", (48, 36), (48, 36), (0, 0, 0, 0))
    results = emulate([(kernels.build(globally, {"x": x.shape, "out": (21,)}, TARGET, "fp16"), {"x": x}),
                       (kernels.build(windows, {"x": x.shape, "out": (2, 2, 21)}, TARGET, "fp16"), {"x": x})])
    np.testing.assert_allclose(results[0]["out"], x.mean((0, 1)), rtol=2.0 ** -11)
    np.testing.assert_allclose(results[1]["out"].reshape(2, 2, 21), x.reshape(2, 48, 2, 36, 21).mean((1, 3)), rtol=2.0 ** -11)


def convolved(x, conv):
    """A ops.Conv without splice and residual, in double precision."""
    top, left, bottom, right = conv.padding
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    kh, kw = conv.weight.shape[2:]
    oh, ow = ((size - k) // s + 1 for size, k, s in zip(padded.shape, (kh, kw), conv.stride))
    out = np.zeros((oh, ow, conv.weight.shape[0])) + conv.bias
    for ky in range(kh):
        for kx in range(kw):
            taps = padded[ky::conv.stride[0], kx::conv.stride[1]][:oh, :ow]
            weight = conv.weight[:, :, ky, kx].astype(float)
            out += taps * weight[:, 0] if conv.groups > 1 else taps @ weight.T
    return np.clip(out, *conv.clip) if conv.clip else out


def conv_of(rng, name, x, out, ic, oc, size=1, stride=1, clip=(0, 6), groups=1):
    weight = (rng.standard_normal((oc, ic // groups, size, size)) / np.sqrt(ic // groups * size * size)).astype("float32")
    return ops.Conv(name, x, out, weight, (rng.standard_normal(oc) / 4).astype("float32"), (stride, stride),
                        (size // 2,) * 4, groups=groups, clip=clip)


def smooth_frame(rng, height, width):
    """Neighbours are alike, far from zero: what a convolution that looks for edges is left with are small differences."""
    y, x = np.mgrid[0:height, 0:width, ][..., None] / 40
    return (2 + 0.1 * np.sin(x + y + np.arange(3)) + 0.001 * rng.standard_normal((height, width, 3))).astype("float32")


def test_the_first_convolution_keeps_the_small_differences_of_a_smooth_frame():
    rng = np.random.default_rng(5)
    frame = smooth_frame(rng, 21, 19)
    cases, expected = [], []
    for size, oc in ((3, 32), (7, 24), (3, 40)):
        conv = conv_of(rng, "stem", "frame", "out", 3, oc, size, 2, None)
        weight = conv.weight - conv.weight.mean((1, 2, 3), keepdims=True)  # edges only
        conv = replace(conv, weight=weight * 100, bias=conv.bias * 0, x_dtype="float32")
        out = convolved(frame.astype(float), conv)
        kernel = kernels.build(conv, {"frame": frame.shape, "out": out.shape}, TARGET, "fp16")
        assert {arg.name: arg.dtype for arg in kernel.args if hasattr(arg, "name")} == {"frame": "float32", "out": "float16"}
        cases.append((kernel, {"frame": frame}))
        expected.append(out)
    for want, got in zip(expected, emulate(cases)):
        got = got["out"].reshape(want.shape)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(float), want, rtol=2.0 ** -11, atol=1e-4)  # one rounding


def test_the_first_block_takes_the_frame_in_float32_and_hands_on_float16():
    rng = np.random.default_rng(6)
    frame = smooth_frame(rng, 23, 18)
    stem = conv_of(rng, "stem", "frame", "a", 3, 32, 3, 2)
    stem = replace(stem, weight=(stem.weight - stem.weight.mean((1, 2, 3), keepdims=True)) * 50, x_dtype="float32")
    depthwise = conv_of(rng, "dw", "a", "b", 32, 32, 3, groups=32)
    project = conv_of(rng, "project", "b", "out", 32, 16, clip=None)
    a = convolved(frame.astype(float), stem)
    expected = convolved(convolved(a, depthwise), project)
    assert 0.2 < (a > 0).mean() < 0.9
    shapes = {"frame": frame.shape, "a": a.shape, "b": a.shape, "out": expected.shape}
    block = ops.InvertedResidual("block", stem, depthwise, project)
    for options in ({}, {"choices": Choices(panel=(8, 4), strip=4, group=2)}):  # a panel too wide for float32 is cut
        kernel = kernels.build(block, shapes, TARGET, "fp16", **options)
        assert kernel.args[0].dtype == "float32" and kernel.args[-1].dtype == "float16"
        out = emulate([(kernel, {"frame": frame})])[0]["out"].reshape(expected.shape)
        error = np.sqrt(np.mean((out.astype(float) - expected) ** 2)) / expected.std()
        assert error < 2 * 2.0 ** -11, error


def test_the_last_layer_sums_in_float32():
    rng = np.random.default_rng(4)
    x = np.abs(half(rng.standard_normal(1280)))
    weight = (rng.standard_normal((27, 1280)) / 30).astype("float32")
    bias = rng.standard_normal(27).astype("float32")
    shapes, cases = {"x": (1280,), "logits": (27,), "inner": (27,)}, []
    for name, dtype in (("logits", "float32"), ("inner", None)):
        op = ops.Dense("fc", "x", name, weight, bias, out_dtype=dtype)
        cases.append((kernels.build(op, shapes, TARGET, "fp16"), {"x": x}))
    logits, inner = emulate(cases)
    expected = weight.astype(float) @ x + bias
    assert logits["logits"].dtype == np.float32 and inner["inner"].dtype == np.float16
    np.testing.assert_allclose(logits["logits"], expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(inner["inner"], logits["logits"].astype("float16"))


def test_a_target_without_half_precision_has_no_such_kernel():
    op, shapes, *_ = make(CASES[0])
    assert kernels.build(op, shapes, get_target("jetson-nano"), "fp16") is None


def test_a_weight_beyond_float16_is_refused():
    op, shapes, *_ = make(CASES[0])
    with pytest.raises(InputError, match="layer") as raised:
        kernels.build(replace(op, weight=op.weight * 1e6), shapes, TARGET, "fp16")
    assert "65504" in str(raised.value)
