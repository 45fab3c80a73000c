import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tsm_edge.errors import InputError
from tsm_edge.shift import TemporalShift, find_shifts, insert_shifts, set_segments, temporal_shift


def by_hand(x, segments, fold_div, past, future):
    """Channel by channel and frame by frame, in numpy."""
    out, fold = x.copy(), x.shape[1] // fold_div
    for n in range(len(x) // segments):
        for t in range(segments):
            for c in range(x.shape[1]):
                here = n * segments + t
                if past and past[0] * fold <= c < past[1] * fold:
                    out[here, c] = x[here - 1, c] if t > 0 else 0
                if future and future[0] * fold <= c < future[1] * fold:
                    out[here, c] = x[here + 1, c] if t < segments - 1 else 0
    return out


@pytest.mark.parametrize("channels", [16, 21, 24, 8, 5])
@pytest.mark.parametrize("past, future, fold_div", [((0, 1), None, 8), ((1, 2), (0, 1), 8), ((0, 2), None, 8), ((1, 2), None, 8),
                                                    ((1, 3), (0, 1), 4), (None, (2, 3), 3), ((0, 1), None, 1)])
def test_shift_moves_exactly_the_given_folds(channels, past, future, fold_div):
    x = np.random.default_rng(0).normal(size=(6, channels, 3, 2)).astype(np.float32)
    before = x.copy()
    got = temporal_shift(torch.from_numpy(x), 3, fold_div=fold_div, past=past, future=future).numpy()
    np.testing.assert_array_equal(got, by_hand(x, 3, fold_div, past, future))
    np.testing.assert_array_equal(x, before)


def test_shift_keeps_channels_last_and_lets_gradients_through():
    x = torch.randn(4, 16, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = temporal_shift(x, 4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    expected = torch.ones(4, 16)
    expected[3, :2] = 0  # the last frame's slice goes nowhere
    torch.testing.assert_close(x.grad[:, :, 0, 0], expected)


@pytest.mark.parametrize("options, found", [
    ({"past": (0, 9)}, "past=(0, 9)"), ({"past": (1, 1)}, "past=(1, 1)"), ({"past": 3}, "past=3"), ({"past": (0.5, 1)}, "0.5"),
    ({"past": (0, 2), "future": (1, 3)}, "past=(0, 2), future=(1, 3)"), ({"fold_div": 0}, "fold_div=0")])
def test_slices_that_make_no_sense_are_refused(options, found):
    with pytest.raises(InputError) as error:
        TemporalShift(**options)
    assert found in error.value.found and error.value.expected and error.value.do


def test_half_a_clip_is_refused_with_the_way_out():
    with pytest.raises(InputError) as error:
        temporal_shift(torch.zeros(5, 8, 2, 2), 4)
    assert "5 frames, n_segment=4" in error.value.found and "set_segments" in error.value.do


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


def is_block(name, block):
    return isinstance(block, Block)


@pytest.mark.parametrize("placement", ["residual", "inplace"])
def test_inserted_shifts_compute_what_was_promised(placement):
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block())
    plain = copy.deepcopy(net)
    layers = insert_shifts(net, is_block, n_segment=3, placement=placement)
    x = torch.randn(6, 8, 4, 4)
    expected = x
    for block in plain:
        shifted = torch.from_numpy(by_hand(expected.detach().numpy(), 3, 8, (0, 1), None))
        identity = expected if placement == "residual" else shifted
        expected = identity + block.b(block.a(shifted).relu())
    torch.testing.assert_close(net(x), expected)
    assert layers == (["0.a", "1.a"] if placement == "residual" else ["0", "1"])
    assert [layer for layer, _ in find_shifts(net)] == layers


def test_shifts_add_no_parameters_and_rename_nothing():
    net, plain = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())
    insert_shifts(net, is_block, n_segment=2)
    assert list(net.state_dict()) == list(plain.state_dict())
    net.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(net.state_dict(), strict=True)
    assert len(list(net.parameters())) == len(list(plain.parameters()))


def test_copies_and_pickles_shift_on_their_own():
    net = nn.Sequential(Block())
    insert_shifts(net, is_block, n_segment=2)
    x = torch.randn(4, 8, 4, 4)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x), net(x))
        set_segments(other, 4)
        assert not torch.allclose(other(x), net(x)) and find_shifts(net)[0][1].n_segment == 2


def test_the_predicate_may_name_modules_and_keyword_inputs_are_shifted_too():
    class Named(Block):
        def forward(self, x):
            return self.b(input=self.a(input=x))

    net = nn.Sequential(Named())
    layers = insert_shifts(net, lambda name, b: [b.b, b.a] if isinstance(b, Named) else None, n_segment=2)
    assert sorted(layers) == ["0.a", "0.b"]
    x = torch.randn(4, 8, 4, 4)
    block = net[0]
    with torch.no_grad():
        inner = nn.functional.conv2d(temporal_shift(x, 2), block.a.weight, block.a.bias, padding=1)
        torch.testing.assert_close(net(x), nn.functional.conv2d(temporal_shift(inner, 2), block.b.weight, block.b.bias))


@pytest.mark.parametrize("where, found", [
    (lambda n, b: False, "`where` was False for"), (lambda n, b: nn.Conv2d(1, 1, 1), "Conv2d"), (lambda n, b: "conv", "str")])
def test_useless_predicates_are_refused(where, found):
    with pytest.raises(InputError) as error:
        insert_shifts(nn.Sequential(Block()), where, n_segment=2)
    assert found in error.value.found and error.value.do


def test_a_second_shift_of_a_layer_and_a_block_without_convolution_are_refused():
    net = nn.Sequential(Block())
    insert_shifts(net, is_block, n_segment=2)
    with pytest.raises(InputError, match="already has a temporal shift") as error:
        insert_shifts(net, is_block, n_segment=2)
    assert error.value.found == "0.a"
    with pytest.raises(InputError, match="no convolution"):
        insert_shifts(nn.Sequential(nn.Linear(2, 2)), lambda n, b: isinstance(b, nn.Linear), n_segment=2)
    with pytest.raises(InputError, match="unknown placement"):
        insert_shifts(nn.Sequential(Block()), is_block, placement="behind")
