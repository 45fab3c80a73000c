"""Half precision on an emulated ARM core, against numpy in double precision on the same rounded inputs and weights."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.errors import InputError, MissingComponentError  # noqa: E402
from tsm_edge.export import kernels, program  # noqa: E402
from tsm_edge.export.kernels.emulate import evaluate_emulated  # noqa: E402
from tsm_edge.export.targets import get_target  # noqa: E402

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
    tensors = {"x": half(rng.standard_normal((height, width, ic)))}
    shapes = {"x": (height, width, ic), "out": (oh, ow, oc)}
    splice, source, kept = None, tensors["x"].copy(), None
    if fold:
        splice = program.Splice("cache", "next", 0, fold)
        tensors["cache"] = half(rng.standard_normal((height, width, fold)))
        kept, source[:, :, :fold] = tensors["x"][:, :, :fold], tensors["cache"]
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
    op = program.Conv("layer", "x", "out", weight.astype("float32"), bias.astype("float32"), (stride, stride),
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


def test_the_last_layer_sums_in_float32():
    rng = np.random.default_rng(4)
    x = np.abs(half(rng.standard_normal(1280)))
    weight = (rng.standard_normal((27, 1280)) / 30).astype("float32")
    bias = rng.standard_normal(27).astype("float32")
    shapes, cases = {"x": (1280,), "logits": (27,), "inner": (27,)}, []
    for name in ("logits", "inner"):
        op = program.Dense("fc", "x", name, weight, bias)
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
