"""Fused inverted residuals compute what expand, depthwise and project compute one after the other in numpy."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.benchmarks.kernel_emulated import evaluate_emulated  # noqa: E402
from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.kernels import fusion  # noqa: E402
from tsm_edge.export.kernels.blocks import inverted_residual  # noqa: E402
from tsm_edge.export.kernels.choose import strip_cost  # noqa: E402
from tsm_edge.export.kernels.choose.strip_cost import StripForm  # noqa: E402
from tsm_edge.export.targets import boards  # noqa: E402

HOST = boards.get_target("host")
NARROW = replace(HOST, vector_bits=128, fma_by_element=True)
RELU6 = (0.0, 6.0)


def block(height, width, ic, mid, oc, *, stride=1, splice=None, residual=False, expand=True, padding=(1, 1, 1, 1),
          clips=(RELU6, RELU6, None), kernel=3, front=None, seed=5):
    """(op, shapes, tensors, wanted results), the wanted ones in float64.

    front : (kernel, stride, padding) of a first convolution that is not 1x1; height and width are its output's.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype("float32")

    front = front or (1, 1, 0)
    in_height, in_width = ((size - 1) * front[1] + front[0] - 2 * front[2] for size in (height, width))
    if front[1] > 1:
        in_height += 1  # a last row that no window looks at
    x = normal(in_height, in_width, ic)
    mid = mid if expand else ic
    oh = (height + padding[0] + padding[2] - kernel) // stride + 1
    ow = (width + padding[1] + padding[3] - kernel) // stride + 1
    shapes = {"x": x.shape, "e": (height, width, mid), "d": (oh, ow, mid), "out": (oh, ow, oc), "r": (oh, ow, oc)}
    tensors, wanted, cut = {"x": x}, {}, None
    source = x.astype(np.float64)
    if splice:
        cut = ops.Splice("cache", "next", *splice)
        shapes["cache"] = shapes["next"] = (height, width, splice[1] - splice[0])
        tensors["cache"] = normal(*shapes["cache"])
        wanted["next"] = x[:, :, splice[0]:splice[1]]
        source[:, :, splice[0]:splice[1]] = tensors["cache"]
    first = None
    if expand:
        taps, step, pad = front
        weight = normal(mid, ic, taps, taps, scale=2 / np.sqrt(ic * taps * taps))
        first = ops.Conv("e", "x", "e", weight, normal(mid), (step, step), (pad,) * 4, clip=clips[0], splice=cut)
        source = windows(source, height, width, taps, step, (pad,) * 4).reshape(height, width, -1)
        source = clip(source @ weight.transpose(2, 3, 1, 0).reshape(-1, mid).astype(np.float64) + first.bias, clips[0])
    middle = ops.Conv("d", "e" if expand else "x", "d", normal(mid, 1, kernel, kernel), normal(mid, scale=2.0),
                          (stride, stride), padding, mid, clips[1])
    taps = middle.weight[:, 0].transpose(1, 2, 0).astype(np.float64)
    sums = (windows(source, oh, ow, kernel, stride, padding) * taps).sum((2, 3)) + middle.bias
    last = ops.Conv("p", "d", "out", normal(oc, mid, 1, 1, scale=1 / np.sqrt(mid)), normal(oc), clip=clips[2],
                        residual="r" if residual else None)
    out = clip(sums, clips[1]) @ last.weight[:, :, 0, 0].T.astype(np.float64) + last.bias
    if residual:
        tensors["r"] = normal(oh, ow, oc)
        out += tensors["r"]
    wanted["out"] = clip(out, clips[2])
    return ops.InvertedResidual("block", first, middle, last), shapes, tensors, wanted


def windows(x, oh, ow, kernel, stride, padding):
    """[oh, ow, kernel, kernel, c]: what each output looks at."""
    padded = np.pad(x, ((padding[0], padding[2]), (padding[1], padding[3]), (0, 0)))
    return np.array([[padded[y * stride:y * stride + kernel, z * stride:z * stride + kernel] for z in range(ow)]
                     for y in range(oh)])


def clip(values, ends):
    return values if ends is None else np.clip(values, *ends)


def compare(got, wanted):
    assert set(got) == set(wanted)
    for name, want in wanted.items():
        np.testing.assert_allclose(got[name].reshape(want.shape), want, atol=5e-5, err_msg=name)


def check(case, target, form):
    op, shapes, tensors, wanted = case
    compare(evaluate(inverted_residual.build(op, shapes, target, form=form), tensors, target), wanted)


WHOLE, STRIPS, SHARED = StripForm(99, 3, 3), StripForm(4, 2, 1), StripForm(2, 1, 3)
CASES = {
    "stride 1": (block(7, 5, 12, 36, 20), WHOLE),
    "seven rows at once": (block(16, 6, 12, 36, 20), StripForm(99, 7, 1)),
    "seven rows at once, stride 2": (block(15, 6, 12, 36, 20, stride=2), StripForm(99, 7, 1)),
    "stride 2": (block(9, 10, 12, 36, 20, stride=2), STRIPS),
    "splice and residual": (block(9, 10, 24, 64, 24, splice=(0, 3), residual=True), SHARED),
    "slice across vectors": (block(6, 7, 40, 48, 40, splice=(15, 33)), WHOLE),
    "no expansion": (block(8, 9, 32, 0, 16, expand=False), SHARED),
    "no expansion, stride 2": (block(9, 9, 20, 0, 16, expand=False, stride=2), WHOLE),
    "odd channels": (block(5, 6, 5, 21, 2, residual=True), STRIPS),
    "one channel": (block(3, 4, 1, 1, 1), STRIPS),
    "padding below only": (block(9, 8, 8, 16, 8, stride=2, padding=(0, 0, 1, 1)), SHARED),
    "no padding, no clip": (block(9, 8, 8, 16, 8, padding=(0, 0, 0, 0), clips=(None, None, None)), STRIPS),
    "other clips": (block(6, 6, 8, 16, 8, clips=((0.0, np.inf), (-np.inf, 0.5), (-1.0, 1.0)), residual=True), WHOLE),
    "5x5": (block(9, 9, 8, 16, 8, kernel=5, padding=(2, 2, 2, 2), stride=2), STRIPS),
    "first convolution 3x3": (block(8, 7, 3, 32, 16, front=(3, 2, 1)), SHARED),
    "first convolution 5x5 unpadded": (block(6, 9, 3, 24, 16, front=(5, 1, 0), stride=2), WHOLE),
}
NARROW_TOO = ("stride 2", "splice and residual", "odd channels", "first convolution 3x3")


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name):
    case, form = CASES[name]
    check(case, HOST, form)
    if name in NARROW_TOO:
        check(case, NARROW, form)


@pytest.mark.parametrize("size", [(30, 40, 16, 48, 24), (10, 8, 24, 72, 24)])
def test_the_cost_models_own_choice(size):
    small = replace(HOST, l1_bytes=16 * 1024, l2_bytes=128 * 1024, threads=3)
    check(block(*size, stride=2), small, None)
    check(block(*size), replace(small, threads=1), None)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_on_arm_whatever_the_number_of_threads(tasks):
    """The code for 64-bit ARM under the emulator, each tensor between pages that may not be touched."""
    target = boards.get_target("jetson-nano")
    built = [(inverted_residual.build(op, shapes, target, form=form), tensors)
             for (op, shapes, tensors, _), form in CASES.values()]
    try:
        results = evaluate_emulated(built, target, tasks)
    except MissingComponentError as error:
        pytest.skip(str(error))
    for got, ((_, _, _, wanted), _) in zip(results, CASES.values()):
        compare(got, wanted)


@pytest.mark.parametrize("name", ["splice and residual", "no expansion, stride 2"])
def test_threads_change_no_bit(name):
    """Whole images and strips, in as many tasks as threads, in more, and in one."""
    op, shapes, tensors, _ = CASES[name][0]
    for rows, group in ((99, 3), (2, 1)):
        alone, *shared = (evaluate(inverted_residual.build(op, shapes, HOST, form=StripForm(rows, group, tasks)), tensors, HOST)
                          for tasks in (1, 2, 5))
        for got in shared:
            assert all(np.array_equal(got[key], alone[key]) for key in alone)


@pytest.mark.parametrize("threads", [2, 4])
def test_strips_share_out_evenly_where_threads_have_their_own_caches(threads):
    target = replace(HOST, triple="x86_64-linux-gnu", vector_bits=512, vector_registers=32, fma_by_element=False, l1_bytes=32 * 1024,
                     l2_bytes=1024 * 1024, threads=threads)
    for size, ic, mid, oc, stride in ((112, 16, 96, 24, 2), (56, 24, 144, 24, 1)):
        op, _, _, _ = block(4, 4, ic, mid, oc, stride=stride)
        shapes = {"x": (size, size, ic), "e": (size, size, mid), "d": (56, 56, mid), "out": (56, 56, oc)}
        assert -(-56 // strip_cost.choose(op, shapes, target).rows) % threads == 0


def test_only_what_it_computes_is_taken():
    op, shapes, _, _ = block(9, 10, 24, 64, 24, splice=(0, 3))
    assert inverted_residual.matches(op, shapes)
    strided = replace(op, depthwise=replace(op.depthwise, stride=(2, 2)))  # rows may be left out of the next cache
    assert not inverted_residual.matches(strided, shapes)
    grouped = replace(op, project=replace(op.project, groups=2))
    assert not inverted_residual.matches(grouped, shapes)


def step(*parts, shapes):
    return ops.Program(list(parts), shapes, logits=parts[-1].out)


def test_fuse_replaces_three_convolutions_by_one_block():
    op, shapes, _, _ = block(7, 5, 12, 36, 20)
    fused = fusion.fuse(step(op.expand, op.depthwise, op.project, shapes=shapes))
    assert [type(each) for each in fused.ops] == [ops.InvertedResidual]
    assert (fused.ops[0].x, fused.ops[0].out) == ("x", "out")


def test_fuse_leaves_a_tensor_that_others_read():
    op, shapes, _, _ = block(7, 5, 12, 36, 20)
    other = ops.GlobalAveragePool("g", "e", "pooled")
    fused = fusion.fuse(step(op.expand, other, op.depthwise, op.project, shapes={**shapes, "pooled": (36,)}))
    assert [type(each) for each in fused.ops] == [ops.Conv, ops.GlobalAveragePool, ops.InvertedResidual]
    assert fused.ops[2].expand is None
    other = ops.GlobalAveragePool("g", "d", "pooled")
    whole = step(op.expand, op.depthwise, other, op.project, shapes={**shapes, "pooled": (36,)})
    assert fusion.fuse(whole).ops == whole.ops
