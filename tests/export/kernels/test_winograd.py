"""3x3 convolutions by Winograd's way compute what the definition says, whatever the sizes, borders and threads."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export import kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.kernels.blocks import winograd  # noqa: E402
from tsm_edge.export.targets import boards  # noqa: E402

HOST = boards.get_target("host")
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
    op = ops.Conv("c", "x", "out", weight, bias, (1, 1), padding, 1, clip, "r" if residual else None)
    return op, {"x": x.shape, "out": want.shape, "r": want.shape}, tensors, want


CASES = {"even": ((14, 14, 32, 64, (1, 1, 1, 1)), {"clip": (0.0, np.inf)}),
         "odd, residual, clip": ((11, 15, 48, 80, (1, 0, 2, 1)), {"residual": True, "clip": (-0.5, 0.75)}),
         "no border": ((12, 13, 32, 32, (0, 0, 0, 0)), {})}
ERROR = {2: 3e-6, 4: 1.5e-5}  # outputs of size 1 to 4


@needs_wide_vectors
@pytest.mark.parametrize("m", (2, 4))
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition_and_threads_change_no_bit(name, m):
    arguments, more = CASES[name]
    op, shapes, tensors, want = case(*arguments, **more)
    results = []
    for threads in (1, 2, 5):  # strips of half the image and less
        target = replace(HOST, threads=threads, l2_bytes=1 << 18)
        results.append(evaluate(winograd.build(op, shapes, target, m), tensors, target)["out"])
        np.testing.assert_allclose(results[-1].reshape(want.shape), want, atol=ERROR[m])
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@pytest.mark.parametrize("threads", (1, 3))
def test_equals_the_definition_on_arm(threads):
    """In strips too: what these images need does not fit the L2 that is said to be there."""
    target = replace(boards.get_target("jetson-nano"), threads=threads, l2_bytes=1 << 16)
    made = [(m, *case(*arguments, **more)) for arguments, more in CASES.values() for m in (2, 4)]
    built = [winograd.build(op, shapes, target, m) for m, op, shapes, _, _ in made]
    assert any("_1_t" not in kernel.symbol for kernel in built) and len({kernel.symbol for kernel in built}) == len(built)
    try:
        results = evaluate_emulated([(kernel, tensors) for kernel, (_, _, _, tensors, _) in zip(built, made)], target, threads)
    except MissingComponentError as error:
        pytest.skip(str(error))
    for result, (m, _, _, _, want) in zip(results, made):
        np.testing.assert_allclose(result["out"].reshape(want.shape), want, atol=ERROR[m])


def test_only_what_it_computes_is_taken():
    op, shapes, _, _ = case(14, 14, 32, 64, (1, 1, 1, 1))
    wide, nano = replace(HOST, triple="x86_64-linux-gnu", vector_bits=512), boards.get_target("jetson-nano")
    for target in (wide, nano):
        assert winograd.way(op, shapes, target) in (2, 4)
        assert kernels.build(op, shapes, target).kind == "winograd"
        assert not winograd.way(replace(op, stride=(2, 2)), shapes, target)
        assert not winograd.way(replace(op, splice=ops.Splice("a", "b", 0, 4)), shapes, target)
        assert not winograd.way(replace(op, weight=np.zeros((64, 32, 5, 5), "float32")), shapes, target)
        assert not winograd.way(op, {**shapes, "out": (2, 2, 64)}, target)  # too few tiles for so many weights
    assert not winograd.way(op, shapes, boards.get_target("raspberry-pi-32bit"))
    assert kernels.build(op, shapes, boards.get_target("raspberry-pi-5"), "fp16").kind == "conv"


def test_many_outputs_for_each_weight_take_large_tiles():
    """ResNet-50's layers: the smaller the image, the more the transformed weights weigh."""
    layers = [case(side, side, channels, channels, (1, 1, 1, 1))[:2] for side, channels in ((56, 64), (28, 128), (14, 256), (7, 512))]
    wide, nano = replace(HOST, triple="x86_64-linux-gnu", vector_bits=512), boards.get_target("jetson-nano")
    assert [winograd.way(op, shapes, nano) for op, shapes in layers] == [4, 4, 2, 2]
    assert [winograd.way(op, shapes, wide) for op, shapes in layers] == [4, 4, 2, None]


@pytest.mark.parametrize("m", (2, 4))
def test_transformed_weights_are_those_of_the_definition(m):
    """Against Lagrange's interpolation at the points that the module names, for one output channel in the middle."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32, 3, 3)).astype("float32")
    groups = winograd.tile.split_channels(64, 16, 2)
    packed = winograd.transformed(weight, groups, m).reshape(2, m + 2, m + 2, 32, 32)  # panel, products, input channel, channel
    points = {2: [0, 1, -1], 4: [0, 0.5 ** 0.5, -0.5 ** 0.5, 2 ** 0.5, -2 ** 0.5]}[m]
    values = [np.array([1, p, p * p]) / np.prod([p - q for q in points if q != p]) for p in points] + [np.array([0, 0, 1.0])]
    for a, row in enumerate(values):
        for b, column in enumerate(values):
            want = row @ weight[37, 5].astype(np.float64) @ column
            assert abs(abs(packed[1, a, b, 5, 37 - 32]) - abs(want)) < 1e-6  # signs are the transform's business
