"""3x3 convolutions by Winograd's way compute what the definition says, whatever the sizes, borders and threads."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.export import kernels, program, targets  # noqa: E402
from tsm_edge.export.kernels import winograd  # noqa: E402
from tsm_edge.export.kernels.evaluate import evaluate  # noqa: E402

HOST = targets.get_target("host")
FITS = HOST.arch == "x86_64" and HOST.lanes >= 8
needs_wide_vectors = pytest.mark.skipif(not FITS, reason="this machine has no 256-bit vectors")


def case(height, width, ic, oc, padding, residual=False, clip=None):
    """(op, shapes, tensors, wanted), wanted in float64."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((height, width, ic)).astype("float32")
    weight = (rng.standard_normal((oc, ic, 3, 3)) / np.sqrt(9 * ic)).astype("float32")
    bias = rng.standard_normal(oc).astype("float32")
    padded = np.pad(x.astype(np.float64), ((padding[0], padding[2]), (padding[1], padding[3]), (0, 0)))
    oh, ow = padded.shape[0] - 2, padded.shape[1] - 2
    want = bias + sum(padded[i:i + oh, j:j + ow] @ weight[:, :, i, j].T.astype(np.float64)
                      for i in range(3) for j in range(3))
    tensors = {"x": x}
    if residual:
        tensors["r"] = rng.standard_normal(want.shape).astype("float32")
        want = want + tensors["r"]
    if clip:
        want = np.clip(want, *clip)
    op = program.Conv("c", "x", "out", weight, bias, (1, 1), padding, 1, clip, "r" if residual else None)
    return op, {"x": x.shape, "out": want.shape, "r": want.shape}, tensors, want


CASES = {"even": ((14, 14, 32, 64, (1, 1, 1, 1)), {"clip": (0.0, np.inf)}),
         "odd, residual, clip": ((11, 15, 48, 80, (1, 0, 2, 1)), {"residual": True, "clip": (-0.5, 0.75)}),
         "no border": ((12, 13, 32, 32, (0, 0, 0, 0)), {})}


@needs_wide_vectors
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition_and_threads_change_no_bit(name):
    arguments, more = CASES[name]
    op, shapes, tensors, want = case(*arguments, **more)
    results = []
    for threads in (1, 2, 5):  # strips of half the image and less
        target = replace(HOST, threads=threads, l2_bytes=1 << 18)
        kernel = kernels.build(op, shapes, target)
        assert kernel.kind == "winograd"
        results.append(evaluate(kernel, tensors, target)["out"])
        np.testing.assert_allclose(results[-1].reshape(want.shape), want, atol=1e-5)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_only_what_it_computes_is_taken():
    op, shapes, _, _ = case(14, 14, 32, 64, (1, 1, 1, 1))
    wide = replace(HOST, triple="x86_64-linux-gnu", vector_bits=512)
    assert winograd.pays(op, shapes, wide)
    assert not winograd.pays(op, shapes, targets.get_target("jetson-nano"))
    assert not winograd.pays(replace(op, stride=(2, 2)), shapes, wide)
    assert not winograd.pays(replace(op, splice=program.Splice("a", "b", 0, 4)), shapes, wide)
    assert not winograd.pays(replace(op, weight=np.zeros((64, 32, 5, 5), "float32")), shapes, wide)
    assert not winograd.pays(op, {**shapes, "out": (7, 7, 64)}, wide)  # too few tiles for so many weights


def test_transformed_weights_are_those_of_the_definition():
    """Against the outer products written out, for one output channel of a panel in the middle."""
    weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype("float32")
    groups = winograd.tile.split_channels(64, 16, 2)
    packed = winograd.transformed(weight, groups).reshape(2, 16, 32, 32)  # panel, product, input channel, channel
    rows = [lambda g: g[0], lambda g: (g[0] + g[1] + g[2]) / 2, lambda g: (g[0] - g[1] + g[2]) / 2, lambda g: g[2]]
    for a in range(4):
        for b in range(4):
            want = rows[b]([rows[a](list(weight[37, 5, :, j])) for j in range(3)])
            assert abs(packed[1, a * 4 + b, 5, 37 - 32] - want) < 1e-6
