"""The references agree with an independent computation, and a proof that proves nothing is refused."""
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
from torch import nn  # noqa: E402

from tsm_edge.export.proof import tolerances, traces  # noqa: E402
from tsm_edge.export.proof.tolerances import FAILED, PASSED  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.shift import insert_shifts  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402

SIZE = (40, 32)


class Small(nn.Module):
    """A user's own network: two shifted convolutions with caches of one shape."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.a = nn.Conv2d(16, 16, 3, 1, 1)
        self.b = nn.Conv2d(16, 16, 3, 1, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.a(x))
        x = x + torch.relu(self.b(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    net = Small()
    insert_shifts(net, lambda name, block: name in ("a", "b"))
    inputs = image_like_frames(16, SIZE, 1)
    make_sensitive(net, 0, inputs)
    step = StepNetwork(net, SIZE)
    return net, step, inputs, traces.step_trace(step, inputs)


def test_the_clip_trace_is_the_clip_network_and_its_caches_are_the_shifts_inputs(small):
    net, step, inputs, _ = small
    trace = traces.clip_trace(net, inputs, step.cache_specs)
    with torch.no_grad():  # by hand, frame by frame, without any shift module
        last, stems, logits = {}, [], []
        for frame in torch.from_numpy(inputs):
            x = torch.relu(net.stem(frame[None]))
            stems.append(x[0, :2].numpy())
            for layer in "ab":
                conv = getattr(net, layer)
                shifted = torch.cat([last.get(layer, torch.zeros_like(x[:, :2])), x[:, 2:]], 1)
                last[layer] = x[:, :2]
                x = x + torch.relu(nn.functional.conv2d(shifted, conv.weight, conv.bias, padding=1))
            logits.append(net.fc(x.mean((2, 3)))[0].numpy())
    np.testing.assert_allclose(trace.logits, np.stack(logits), rtol=0, atol=1e-4)
    np.testing.assert_allclose(trace.caches["cache.a"], np.stack(stems), rtol=0, atol=1e-5)
    assert list(trace.caches) == ["cache.a", "cache.b"]


def test_the_clip_trace_leaves_the_network_as_it_was(small):
    net, step, inputs, _ = small
    assert net.a.temporal_shift.n_segment == 8 and not net.a.temporal_shift._forward_pre_hooks
    net.train()
    net.a.eval()
    try:
        traces.clip_trace(net, inputs[:4], step.cache_specs)
        assert net.training and net.b.training and not net.a.training
    finally:
        net.eval()


def test_stepping_equals_the_clip_network_in_logits_and_caches(small):
    net, step, inputs, reference = small
    check = tolerances.compare("c", traces.clip_trace(net, inputs, step.cache_specs), reference)
    assert check.status == PASSED and check.argmax_flips == 0, check.detail


def test_a_start_in_the_middle_continues_the_chain(small):
    _, step, inputs, reference = small
    state = [torch.from_numpy(reference.caches[s.name][4])[None] for s in step.cache_specs]
    tail = traces.step_trace(step, inputs[5:], state)
    np.testing.assert_array_equal(tail.logits, reference.logits[5:])


def test_sensitive_weights_give_proof_and_tampered_caches_are_caught(small):
    _, step, inputs, reference = small
    assert traces.check_movement(reference).status == PASSED
    check = traces.check_teeth(step, inputs, reference)
    assert check.status == PASSED and "3 of 3" in check.detail  # two zeroed, one pair swapped


def test_a_cache_that_changes_nothing_is_refused_by_name(small):
    net, _, inputs, _ = small
    dull = Small()
    insert_shifts(dull, lambda name, block: name in ("a", "b"))
    dull.load_state_dict(net.state_dict())
    with torch.no_grad():
        dull.b.weight[:, :2] = 0  # nobody looks at what comes from the past
    step = StepNetwork(dull, SIZE)
    check = traces.check_teeth(step, inputs, traces.step_trace(step, inputs))
    assert check.status == FAILED and "cache.b zeroed" in check.detail


class Fork(nn.Module):
    """Two shifts of one tensor, whose caches hold the same; and one behind a ReLU that is 0 for all but early frames."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.c, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.a(x) + self.b(x) + 3 * x.mean((1, 2, 3), keepdim=True))
        return self.fc((self.c(y) + x).mean((2, 3)))


def test_caches_of_one_tensor_are_the_same_and_cannot_be_swapped(small):
    _, _, inputs, _ = small
    torch.manual_seed(1)
    net = Fork()
    insert_shifts(net, lambda name, block: name in ("a", "b"))
    step = StepNetwork(net, SIZE)
    check = traces.check_teeth(step, inputs, traces.step_trace(step, inputs))
    assert check.status == PASSED and "2 of 2" in check.detail


def test_a_cache_is_zeroed_where_it_holds_most_and_empty_ones_are_named(small):
    _, _, inputs, _ = small
    torch.manual_seed(1)
    net = Fork()
    insert_shifts(net, lambda name, block: name == "c")
    step = StepNetwork(net, SIZE)
    faded = inputs.copy()
    faded[6:] = -20  # the ReLU is 0 from here on
    with torch.no_grad():
        net.stem.weight.abs_()
        step = StepNetwork(net, SIZE)
    trace = traces.step_trace(step, faded)
    assert trace.caches["cache.c"][:6].any() and not trace.caches["cache.c"][6:].any()
    assert traces.check_teeth(step, faded, trace).status == PASSED
    dark = np.minimum(faded, -20)
    check = traces.check_teeth(step, dark, traces.step_trace(step, dark))
    assert check.status == FAILED and "zero in all of these frames" in check.detail and "cache.c" in check.detail


def test_still_frames_are_refused_as_proof(small):
    _, step, inputs, _ = small
    still = np.repeat(inputs[:1], 16, 0)
    trace = traces.step_trace(step, still)
    assert traces.check_movement(traces.Trace(trace.logits[3:])).status == FAILED


def test_default_random_weights_are_refused_as_proof():
    torch.manual_seed(0)
    from tsm_edge.models import create_model
    net = create_model("mobilenet_v2", 27, input_size=64).eval()
    step = StepNetwork(net, (64, 64))
    assert traces.check_movement(traces.step_trace(step, image_like_frames(4, 64, 0))).status == FAILED


def test_rounding_alone_rounds_weights_and_activations(small):
    net, step, inputs, reference = small
    rounded = traces.rounding_trace(step, inputs[:6])
    assert set(rounded.caches) == {"cache.a", "cache.b"}
    scale = np.abs(reference.logits).max()
    assert 1e-5 * scale < np.abs(rounded.logits - reference.logits[:6]).max() < 1e-2 * scale
    with torch.no_grad():  # by hand, up to the first cache
        half = [module_weight.half().float() for module_weight in (net.stem.weight, net.stem.bias)]
        x = nn.functional.conv2d(torch.from_numpy(inputs[:6]).half().float(), *half, stride=2, padding=1).half().float()
        wanted = torch.relu(x)[:, :2].numpy()
    np.testing.assert_allclose(rounded.caches["cache.a"], wanted, rtol=2 ** -10, atol=2 ** -24)
    np.testing.assert_array_equal(traces.step_trace(step, inputs[:2]).logits, reference.logits[:2])  # left as it was
