import numpy as np
import pytest
import torch
from torch import nn

from tsm_edge import create_model
from tsm_edge.errors import InputError
from tsm_edge.sensitive import image_like_frames, make_sensitive
from tsm_edge.shift import find_shifts, set_segments


def test_frames_are_smooth_moving_and_of_the_promised_form():
    frames = image_like_frames(6, (96, 64), seed=1)
    assert frames.shape == (6, 3, 64, 96) and frames.dtype == np.float32
    bytes_ = image_like_frames(6, (96, 64), seed=1, dtype="uint8")
    assert bytes_.shape == (6, 64, 96, 3) and bytes_.dtype == np.uint8
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    normalised = (bytes_ / np.float32(255) - mean) / std
    assert np.abs(normalised.transpose(0, 3, 1, 2) - frames).max() < 0.5 / 255 / 0.22 + 1e-5
    grey = bytes_.astype(float)
    step, spread = np.abs(np.diff(grey, axis=2)).mean(), grey.std()
    moved = np.abs(np.diff(grey, axis=0)).mean()
    assert step < 0.25 * spread and spread > 20 and moved > 5  # neither noise nor flat nor still
    assert np.array_equal(frames, image_like_frames(6, (96, 64), seed=1))
    assert not np.array_equal(frames, image_like_frames(6, (96, 64), seed=2))


def test_ordinary_random_weights_prove_nothing_and_sensitive_ones_do():
    size = 96
    x = torch.from_numpy(image_like_frames(16, size))
    for name in ("mobilenet_v2", "resnet18"):
        net = set_segments(create_model(name, 27, input_size=size), 16).eval()
        with torch.no_grad():
            plain = float(torch.std(net(x), 0).mean())
            make_sensitive(net, 0, x)
            logits = net(x)
        tolerance = 1e-4 * max(1, float(logits.abs().max()))
        assert float((logits.max(0).values - logits.min(0).values).max()) >= 1000 * tolerance
        assert abs(float(logits.std(0).mean()) - 1.5) < 0.2, name
        if name == "mobilenet_v2":
            assert plain < 1e-2


def test_the_same_seed_gives_the_same_weights_and_nothing_else_is_changed():
    x = image_like_frames(4, 64)
    one, two, other = (create_model("resnet18", 5, input_size=64) for _ in range(3))
    one.card = one.card.but(trained=True)
    state = torch.random.get_rng_state()
    make_sensitive(one, 3, x)
    assert torch.equal(state, torch.random.get_rng_state())
    make_sensitive(two, 3, torch.from_numpy(x))
    make_sensitive(other, 4, x)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert one.card.trained is False and not one.training
    assert {shift.n_segment for _, shift in find_shifts(one)} == {8} and one.bn1.momentum == 0.1


@pytest.mark.parametrize("seed", [-1, 2 ** 80, 0.5, "0", None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed cannot be used"):
        image_like_frames(1, 8, seed)
    with pytest.raises(InputError, match="seed cannot be used"):
        make_sensitive(nn.Linear(2, 2), seed, np.zeros((1, 2), np.float32))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3))), x


def test_a_network_with_two_outputs_is_refused():
    with pytest.raises(InputError, match="output cannot be used") as error:
        make_sensitive(TwoOutputs(), 0, np.zeros((2, 3, 8, 8), np.float32))
    assert error.value.found == "tuple"
