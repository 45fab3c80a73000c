import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tsm_edge import create_model
from tsm_edge.errors import InputError
from tsm_edge.sensitive import image_like_frames, make_sensitive
from tsm_edge.shift import TemporalShift, insert_shifts, set_segments
from tsm_edge.step import StepNetwork, find_input_size


def clip_run(net, x):
    """Logits of the clip network over all frames at once, and the inputs of its shifts in the order in which they run."""
    seen, shifts = [], [m for m in net.modules() if isinstance(m, TemporalShift)]
    set_segments(net, len(x))
    handles = [m.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone())) for m in shifts]
    try:
        with torch.no_grad():
            return net.eval()(x), seen
    finally:
        for handle in handles:
            handle.remove()


def step_run(step, x, caches=None):
    """Logits of every frame, and the caches after every frame."""
    caches, logits, kept = caches or step.zero_caches(), [], []
    with torch.no_grad():
        for frame in x:
            out, *caches = step(frame[None], *caches)
            logits.append(out[0])
            kept.append(caches)
    return torch.stack(logits), kept


def assert_same(net, size, frames=5, seed=1):
    """The invariant: per logit and per cache, at every frame, with weights for which a wrong cache shows."""
    x = torch.from_numpy(image_like_frames(frames, size, seed))
    make_sensitive(net, seed, x)
    before = copy.deepcopy(net.state_dict())
    expected, inputs = clip_run(net, x)
    step = StepNetwork(net, size)
    logits, caches = step_run(step, x)
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    moved = float((expected.max(0).values - expected.min(0).values).max())
    assert moved >= 1000 * tolerance, f"logits move by {moved} only"
    assert float((logits - expected).abs().max()) <= tolerance
    inputs = [i for i in inputs if i.shape[1] >= 8]
    assert len(inputs) == len(step.cache_specs) == len(caches[0])
    for index, (spec, clip_input) in enumerate(zip(step.cache_specs, inputs)):
        assert clip_input.shape[1] == spec.channels
        for t in range(frames):
            wanted = clip_input[t:t + 1, spec.start:spec.stop]
            assert caches[t][index].shape == spec.shape == wanted.shape
            assert float((caches[t][index] - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max())), spec.name
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    return step, x, expected, tolerance


@pytest.mark.parametrize("name, options, size", [
    ("mobilenet_v2", {}, (96, 96)), ("mobilenet_v2", {"width": 0.5}, (128, 64)), ("mobilenet_v2", {"width": 1.4}, (64, 64)),
    ("mobilenet_v2", {"past": (1, 2)}, (64, 96)), ("mobilenet_v2", {"past": (0, 2), "placement": "inplace"}, (64, 64)),
    ("resnet18", {}, (64, 64)), ("resnet18", {"fold_div": 4, "past": (1, 2)}, (96, 64)),
    ("resnet50", {}, (64, 64)), ("resnet50", {"placement": "inplace"}, (64, 64))])
def test_stepping_equals_clip_forward(name, options, size):
    assert_same(create_model(name, 27, input_size=size, **options), size)


def test_the_reference_network_has_the_ten_caches_of_the_published_demo():
    step = StepNetwork(create_model("mobilenet_v2", 27))
    shapes = [(3, 56, 56)] + [(4, 28, 28)] * 2 + [(8, 14, 14)] * 3 + [(12, 14, 14)] * 2 + [(20, 7, 7)] * 2
    assert [spec.shape for spec in step.cache_specs] == [(1, *s) for s in shapes]
    layers = [f"features.{i}.conv.0" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert [spec.name for spec in step.cache_specs] == ["cache." + layer for layer in layers]
    assert sum(c.numel() for c in step.zero_caches()) == 27048


def test_resnet50_has_sixteen_caches_of_702464_values():
    step = StepNetwork(create_model("resnet50", 400))
    assert len(step.cache_specs) == 16 and sum(c.numel() for c in step.zero_caches()) == 702464


@pytest.mark.parametrize("damage", ["zero", "swap"])
def test_a_wrong_cache_is_noticed(damage):
    size = (64, 64)
    step, x, expected, tolerance = assert_same(create_model("mobilenet_v2", 27, input_size=size), size)
    _, caches = step_run(step, x)
    for index in range(len(step.cache_specs)):
        state = [c.clone() for c in caches[-2]]
        if damage == "zero":
            state[index].zero_()
        else:
            other = index + 1
            if other == len(state) or state[other].shape != state[index].shape:
                continue
            state[index], state[other] = state[other], state[index]
        logits, _ = step_run(step, x[-1:], state)
        assert float((logits[0] - expected[-1]).abs().max()) > 10 * tolerance, step.cache_specs[index].name


# --- networks of a user's own ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Stem, whatever `middle` is, and a classifier."""

    def __init__(self, middle, channels=24):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.middle = middle
        self.fc = nn.LazyLinear(11)

    def forward(self, x):
        return self.fc(self.middle(self.stem(x)).mean((2, 3)))


def own(middle, channels=24):
    net = Net(middle, channels)
    with torch.no_grad():
        net.eval()(torch.zeros(8, 3, 32, 32))
    return net


class Branch(nn.Module):
    def __init__(self, c, kernel=3):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(c, c, kernel, padding=kernel // 2), nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 1)

    def forward(self, x):
        return x + self.conv2(self.bn(self.conv1(x)).relu())


def first(name, block):
    return block.conv1 if hasattr(block, "conv1") else None


@pytest.mark.parametrize("channels", [24, 21, 9, 17])
def test_odd_channel_counts(channels):
    net = own(Branch(channels), channels)
    insert_shifts(net, first)
    step = assert_same(net, (48, 32))[0]
    assert step.cache_specs[0].shape == (1, channels // 8, 16, 24)


def test_fewer_channels_than_folds_need_no_cache():
    net = own(nn.Sequential(Branch(6), nn.Conv2d(6, 16, 1), Branch(16)), 6)
    insert_shifts(net, first)
    assert [spec.layer for spec in assert_same(net, (32, 32))[0].cache_specs] == ["middle.2.conv1"]


class Twice(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block = Branch(c)

    def forward(self, x):
        return self.block(nn.functional.avg_pool2d(self.block(x), 2))  # the second call sees another size


def test_a_module_called_twice_gets_two_caches():
    net = own(Twice(24))
    insert_shifts(net, first)
    step = assert_same(net, (64, 48))[0]
    assert [(s.name, s.layer, s.shape) for s in step.cache_specs] == [
        ("cache.middle.block.conv1", "middle.block.conv1", (1, 3, 24, 32)),
        ("cache.middle.block.conv1.2", "middle.block.conv1", (1, 3, 12, 16))]


class Several(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.shift = TemporalShift(past=(1, 2))

    def forward(self, x):
        return x + self.c(self.shift(self.b(self.a(x).relu()).relu())) + self.a(x)


def test_several_shifts_in_one_block_and_shifts_as_layers():
    net = own(Several(24))
    insert_shifts(net, lambda n, b: [b.a, b.b] if isinstance(b, Several) else None, past=(0, 2))
    names = [spec.name for spec in assert_same(net, (32, 32))[0].cache_specs]
    assert names == ["cache.middle.a", "cache.middle.b", "cache.middle.shift", "cache.middle.a.2"]


def test_shared_weights_and_a_shared_block():
    shared, one, two = Branch(24), Branch(24), Branch(24)
    two.conv1.weight = one.conv1.weight
    net = own(nn.Sequential(shared, one, two, shared))
    insert_shifts(net, first)
    names = [spec.name for spec in assert_same(net, (32, 32))[0].cache_specs]
    assert names == ["cache.middle.0.conv1", "cache.middle.1.conv1", "cache.middle.2.conv1", "cache.middle.0.conv1.2"]


class Overwriting(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        y = self.conv1(x)
        x.relu_()  # after the shift took its copy
        x.mul_(0.5)
        return x + y


def test_changing_the_input_in_place_later_does_not_reach_the_cache():
    net = own(nn.Sequential(nn.Conv2d(24, 24, 1), Overwriting(24)))
    insert_shifts(net, first)
    assert_same(net, (32, 32))


def test_all_channels_from_the_past():
    net = own(Branch(24))
    insert_shifts(net, first, fold_div=1, past=(0, 1))
    assert assert_same(net, (32, 32))[0].cache_specs[0].shape == (1, 24, 16, 16)


def test_a_network_without_shifts_has_no_caches():
    step = assert_same(own(Branch(24)), (32, 32))[0]
    assert step.cache_specs == [] and step.zero_caches() == []


# --- contracts and refusals ------------------------------------------------------------------------------------------


def test_the_original_network_is_untouched():
    net = create_model("resnet18", 5, input_size=64).train()
    before = copy.deepcopy(net.state_dict())
    step = StepNetwork(net)
    assert net.training and not any(m.training for m in step.modules())
    assert not any(m.training for m in step.train().modules())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    with torch.no_grad():
        step.net.fc.weight.zero_()
        assert float(net.fc.weight.abs().max()) > 0 and net(torch.zeros(8, 3, 64, 64)).shape == (8, 5)


def test_streams_in_threads_do_not_disturb_each_other():
    size = (64, 64)
    step, x, expected, tolerance = assert_same(create_model("mobilenet_v2", 27, input_size=size), size)
    results = {}

    def run(key, frames):
        results[key] = step_run(step, frames)[0]

    threads = [threading.Thread(target=run, args=(i, x if i % 2 else x.flip(0))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert float((results[1] - expected).abs().max()) <= tolerance and float((results[3] - expected).abs().max()) <= tolerance
    torch.testing.assert_close(results[0], results[2])


def test_a_bidirectional_shift_is_refused_by_layer_name_with_the_way_out():
    with pytest.raises(InputError) as error:
        StepNetwork(create_model("mobilenet_v2", 27, shift="offline"))
    assert "features.3.conv.0 and 9 more" in error.value.found and "future=(0, 1)" in error.value.found
    assert "shift='online'" in error.value.do and "past=(1, 2)" in error.value.do
    net = own(nn.Sequential(Branch(24), Branch(24)))
    insert_shifts(net, lambda n, b: b.conv1 if n == "middle.1" else None, past=None, future=(0, 1))
    with pytest.raises(InputError) as error:
        StepNetwork(net, 32)
    assert "middle.1.conv1:" in error.value.found


class Consensus(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3)).view(-1, 8, 8).mean(1)


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        x = self.conv1(x)
        return (self.conv2(x) if bool(x.mean() > 0) else x).mean((2, 3))


class Sub(TemporalShift):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("size", ["64x48", (64, 48, 3), (64,), (64.7, 48), 64.5, -5, 0, (64, 0), "64", (10 ** 6, 10 ** 6)])
def test_wrong_input_sizes_are_refused(size):
    with pytest.raises(InputError, match="input size cannot be used") as error:
        StepNetwork(create_model("mobilenet_v2", 2, width=0.25), size)
    assert repr(size) in error.value.found and "(224, 224)" in error.value.do


@pytest.mark.parametrize("size", [64, (64, 48), [64, 48], np.int64(64), np.array([64, 48]), torch.tensor([64, 48])])
def test_an_input_size_is_a_whole_number_or_two(size):
    assert find_input_size(None, size) in ((64, 64), (64, 48))


class Alone(nn.Module):
    """One layer, its input shifted."""

    def __init__(self, layer, view):
        super().__init__()
        self.layer, self.view = layer, view
        insert_shifts(self, lambda name, block: name == "layer", placement="inplace")

    def forward(self, x):
        return self.layer(self.view(x)).flatten(1)


@pytest.mark.parametrize("net, found", [
    (Alone(nn.Linear(48, 5), lambda x: x.mean(2).flatten(1)), "shape [1, 48]"),
    (Alone(nn.Conv1d(16, 5, 1), lambda x: x.mean(1)), "shape [1, 16, 16]")])
def test_a_shift_of_anything_but_maps_is_refused_by_its_layer(net, found):
    with pytest.raises(InputError, match="the shift of layer does not see the maps") as error:
        StepNetwork(net, 16)
    assert error.value.found == found


def test_a_network_that_cannot_be_copied_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied") as error:
        StepNetwork(net, 32)
    assert "lock" in error.value.found and "remove_weight_norm" in error.value.do
    with pytest.raises(InputError, match="no network"):
        StepNetwork(None, 32)


@pytest.mark.parametrize("net, problem, found", [
    (Consensus(), "does not run on a single frame", "RuntimeError"), (nn.Conv2d(3, 8, 1), "output cannot be used", "(1, 8, 32, 32)"),
    (nn.Sequential(Sub(), nn.Conv2d(3, 8, 1)), "forward of its own", "class Sub")])
def test_networks_that_cannot_step_are_refused(net, problem, found):
    with pytest.raises(InputError, match=problem) as error:
        StepNetwork(net, 32)
    assert found in error.value.found and error.value.expected and error.value.do


def test_a_path_that_depends_on_the_data_is_refused_when_it_is_taken():
    net = Deciding()
    insert_shifts(net, lambda n, b: b.conv2 if isinstance(b, Deciding) else None)
    nn.init.ones_(net.conv1.weight)
    nn.init.constant_(net.conv1.bias, 1.0)
    step = StepNetwork(net, 32)
    with pytest.raises(InputError, match="another path"):
        step(torch.full((1, 3, 32, 32), -9.0), *step.zero_caches())


@pytest.mark.filterwarnings("ignore")
def test_a_step_network_can_be_traced_and_exported():
    step = StepNetwork(create_model("mobilenet_v2", 5, width=0.5, input_size=64))
    inputs = (torch.randn(1, 3, 64, 64), *(torch.randn_like(c) for c in step.zero_caches()))
    others = (torch.randn(1, 3, 64, 64), *(torch.randn_like(c) for c in step.zero_caches()))
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(step, inputs))
        exported = torch.export.export(step, inputs).module()
        for got in (traced(*others), exported(*others)):
            torch.testing.assert_close(tuple(got), step(*others), rtol=1e-4, atol=1e-4)


def test_wrong_frames_and_caches_are_refused():
    step = StepNetwork(create_model("resnet18", 5, input_size=(64, 32)))
    with pytest.raises(InputError) as error:
        step(torch.zeros(1, 3, 64, 32), *step.zero_caches())
    assert error.value.found == "(1, 3, 64, 32)" and error.value.expected == "(1, 3, 32, 64)"
    with pytest.raises(InputError, match="needs all its caches"):
        step(torch.zeros(1, 3, 32, 64))
    caches = step.zero_caches()
    with pytest.raises(InputError, match="cache.layer1.0.conv1"):
        step(torch.zeros(1, 3, 32, 64), caches[-1], *caches[1:])
    with pytest.raises(InputError, match="input size is not known"):
        StepNetwork(nn.Conv2d(3, 8, 1))
