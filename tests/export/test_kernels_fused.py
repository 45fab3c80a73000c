"""Fused inverted residuals compute what expand, depthwise and project compute one after the other in numpy."""
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")

from tsm_edge.export import program, targets  # noqa: E402
from tsm_edge.export.kernels import inverted_residual  # noqa: E402
from tsm_edge.export.kernels.evaluate import evaluate  # noqa: E402

HOST = targets.get_target("host")
NARROW = replace(HOST, vector_bits=128, fma_by_element=True)
TARGETS = pytest.mark.parametrize("target", [HOST, NARROW], ids=["wide", "narrow"])
RELU6 = (0.0, 6.0)
Form = inverted_residual.Form


def block(height, width, ic, mid, oc, *, stride=1, splice=None, residual=False, expand=True, padding=(1, 1, 1, 1),
          clips=(RELU6, RELU6, None), kernel=3, seed=5):
    """(op, shapes, tensors, wanted results), the wanted ones in float64."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype("float32")

    x = normal(height, width, ic)
    mid = mid if expand else ic
    oh = (height + padding[0] + padding[2] - kernel) // stride + 1
    ow = (width + padding[1] + padding[3] - kernel) // stride + 1
    shapes = {"x": x.shape, "e": (height, width, mid), "d": (oh, ow, mid), "out": (oh, ow, oc), "r": (oh, ow, oc)}
    tensors, wanted, cut = {"x": x}, {}, None
    source = x.astype(np.float64)
    if splice:
        cut = program.Splice("cache", "next", *splice)
        shapes["cache"] = shapes["next"] = (height, width, splice[1] - splice[0])
        tensors["cache"] = normal(*shapes["cache"])
        wanted["next"] = x[:, :, splice[0]:splice[1]]
        source[:, :, splice[0]:splice[1]] = tensors["cache"]
    first = None
    if expand:
        first = program.Conv("e", "x", "e", normal(mid, ic, 1, 1, scale=2 / np.sqrt(ic)), normal(mid), clip=clips[0],
                             splice=cut)
        source = clip(source @ first.weight[:, :, 0, 0].T.astype(np.float64) + first.bias, clips[0])
    middle = program.Conv("d", "e" if expand else "x", "d", normal(mid, 1, kernel, kernel), normal(mid, scale=2.0),
                          (stride, stride), padding, mid, clips[1])
    padded = np.pad(source, ((padding[0], padding[2]), (padding[1], padding[3]), (0, 0)))
    sums = np.zeros((oh, ow, mid)) + middle.bias
    for y in range(oh):
        for column in range(ow):
            window = padded[y * stride:y * stride + kernel, column * stride:column * stride + kernel]
            sums[y, column] += (window * middle.weight[:, 0].transpose(1, 2, 0)).sum((0, 1))
    last = program.Conv("p", "d", "out", normal(oc, mid, 1, 1, scale=1 / np.sqrt(mid)), normal(oc), clip=clips[2],
                        residual="r" if residual else None)
    out = clip(sums, clips[1]) @ last.weight[:, :, 0, 0].T.astype(np.float64) + last.bias
    if residual:
        tensors["r"] = normal(oh, ow, oc)
        out += tensors["r"]
    wanted["out"] = clip(out, clips[2])
    return program.InvertedResidual("block", first, middle, last), shapes, tensors, wanted


def clip(values, ends):
    return values if ends is None else np.clip(values, *ends)


def check(case, target, form):
    op, shapes, tensors, wanted = case
    built = inverted_residual.build(op, shapes, target, form=form)
    got = evaluate(built, tensors, target)
    assert set(got) == set(wanted)
    for name, want in wanted.items():
        np.testing.assert_allclose(got[name].reshape(want.shape), want, atol=3e-5, err_msg=name)
    return built


FORMS = [Form(99, 3, 1), Form(99, 7, 3), Form(2, 2, 1), Form(4, 2, 2), Form(3, 1, 3)]


@TARGETS
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_expand_depthwise_project(stride, form, target):
    check(block(7, 5, 12, 36, 20, stride=stride), target, form)


@TARGETS
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_splice_and_residual(form, target):
    check(block(9, 10, 24, 64, 24, splice=(0, 3), residual=True), target, form)


@TARGETS
@pytest.mark.parametrize("splice", [(3, 6), (2, 9), (0, 40), (15, 33)])
def test_any_slice_is_spliced(splice, target):
    check(block(6, 7, 40, 48, 40, splice=splice), target, Form(2, 1, 2))


@TARGETS
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_without_expand(stride, form, target):
    check(block(8, 9, 32, 0, 16, stride=stride, expand=False), target, form)


@TARGETS
@pytest.mark.parametrize("channels", [(3, 7, 5), (17, 50, 33), (1, 1, 1), (5, 21, 2)])
def test_channel_counts_that_divide_nothing(channels, target):
    check(block(5, 6, *channels), target, Form(2, 2, 1))
    check(block(5, 6, *channels, expand=False), target, Form(2, 2, 1))
    check(block(5, 6, *channels, residual=True), target, Form(5, 3, 1))


@TARGETS
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 0, 1, 1), (1, 0, 0, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_padding(stride, padding, target):
    for form in (Form(2, 1, 2), Form(9, 2, 2)):
        check(block(9, 8, 8, 16, 8, stride=stride, padding=padding), target, form)


@TARGETS
@pytest.mark.parametrize("clips", [(None, None, None), ((0.0, np.inf), (0.0, np.inf), RELU6), (RELU6, None, None),
                                   (None, (-np.inf, 0.5), (-1.0, 1.0))])
def test_any_clip(clips, target):
    check(block(6, 6, 8, 16, 8, clips=clips, residual=True), target, Form(3, 3, 1))


@TARGETS
def test_bigger_windows(target):
    for form in (Form(2, 1, 2), Form(9, 2, 2)):
        check(block(9, 9, 8, 16, 8, kernel=5, padding=(2, 2, 2, 2)), target, form)
        check(block(9, 9, 8, 16, 8, kernel=5, padding=(2, 2, 2, 2), stride=2), target, form)


@TARGETS
@pytest.mark.parametrize("size", [(60, 80, 16, 48, 24), (20, 15, 24, 72, 24)])
def test_the_cost_models_own_choice(size, target):
    small = replace(target, l1_bytes=16 * 1024, l2_bytes=128 * 1024, threads=3)
    for each in (target, small):
        check(block(*size, stride=2), each, None)
        check(block(*size), each, None)
