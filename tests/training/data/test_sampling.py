"""Frames are taken from where the sampling says, in order, and never from outside the clip."""
import numpy as np
import pytest

from tsm_edge.errors import InputError
from tsm_edge.training.data.sampling import Sampler, dense_window, fixed_rate, uniform_segments


@pytest.mark.parametrize("n_frames", [1, 3, 7, 8, 9, 37, 300])
@pytest.mark.parametrize("kind", Sampler.KINDS)
@pytest.mark.parametrize("n_segment", [1, 8, 16])
def test_frames_are_in_order_and_inside(n_frames, kind, n_segment):
    sampler = Sampler(kind, n_segment, stride=5, fps=12)
    for rng in (None, *(np.random.default_rng(s) for s in range(20))):
        at = sampler(n_frames, rng, 30.0)
        assert at.shape == (n_segment,) and at.dtype == np.int64
        assert at.min() >= 0 and at.max() < n_frames and (np.diff(at) >= 0).all()


def test_uniform_takes_one_frame_from_each_segment():
    for seed in range(50):
        at = uniform_segments(83, 8, np.random.default_rng(seed))
        for k, frame in enumerate(at):
            assert int(k * 83 / 8) <= frame < (k + 1) * 83 / 8
    assert uniform_segments(16, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert uniform_segments(8, 8).tolist() == list(range(8))
    assert uniform_segments(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_uniform_reaches_every_frame():
    seen = {int(f) for s in range(300) for f in uniform_segments(20, 4, np.random.default_rng(s))}
    assert seen == set(range(20))


def test_dense_keeps_its_stride_and_reaches_both_ends():
    windows = np.stack([dense_window(40, 4, 8, np.random.default_rng(s)) for s in range(300)])
    assert (np.diff(windows) == 8).all()
    assert windows.min() == 0 and windows.max() == 39
    assert dense_window(40, 4, 8).tolist() == [8, 16, 24, 32]
    assert dense_window(10, 4, 8).tolist() == [0, 8, 9, 9]


def test_fixed_rate_takes_frames_at_the_times_a_slower_camera_would():
    at = fixed_rate(90, 10, clip_fps=30, fps=12)
    assert np.allclose(np.diff(at) / 30, 1 / 12, atol=1 / 30 + 1e-9)
    assert at[-1] - at[0] == int(9 * 2.5) or at[-1] - at[0] == int(9 * 2.5) + 1
    assert fixed_rate(100, 5, clip_fps=12, fps=12).tolist() == [47, 48, 49, 50, 51]
    with pytest.raises(InputError, match="frame rate"):
        fixed_rate(10, 2, clip_fps=0)


def test_an_empty_clip_is_refused():
    with pytest.raises(InputError):
        uniform_segments(0, 8)
    with pytest.raises(InputError, match="uniform"):
        Sampler("unifrom")
