"""Which frames of a clip the network sees: uniform segments (TSN), a dense window, or a fixed rate as a camera gives.

Each sampler is called with the number of frames and a random generator (None: the fixed choice for testing) and returns
`n_segment` frame numbers in rising order. A clip that is too short repeats frames; nothing is ever read past its end.
"""
import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError


def _check(n_frames, n_segment):
    if n_frames < 1 or n_segment < 1:
        raise InputError("cannot sample a clip", found=f"{n_frames} frames, {n_segment} segments",
                         expected="at least one of each", do="leave this clip out")


def uniform_segments(n_frames, n_segment=8, rng=None):
    """One frame from each of `n_segment` equal parts: a random one with `rng`, else the middle one.

    Returns
    -------
    int64 array [n_segment], rising, each in [0, n_frames)
    """
    _check(n_frames, n_segment)
    edges = np.arange(n_segment + 1) * (n_frames / n_segment)
    if rng is None:
        at = (edges[:-1] + edges[1:]) / 2
    else:
        at = edges[:-1] + rng.random(n_segment) * (n_frames / n_segment)
    return np.minimum(at.astype(np.int64), n_frames - 1)


def dense_window(n_frames, n_segment=8, stride=8, rng=None):
    """`n_segment` frames, `stride` apart: the window begins anywhere with `rng`, else it is the middle one.

    A window longer than the clip stays on the last frame.

    Returns
    -------
    int64 array [n_segment]
    """
    _check(n_frames, n_segment)
    room = max(0, n_frames - 1 - (n_segment - 1) * stride)
    first = int(rng.integers(room + 1)) if rng is not None else round(room / 2)
    return np.minimum(first + np.arange(n_segment) * stride, n_frames - 1)


def fixed_rate(n_frames, n_segment=8, clip_fps=30.0, fps=12.0, rng=None, jitter=0.0):
    """A window of frames as a camera of `fps` would give them, from a clip of `clip_fps`.

    jitter : with `rng`, as if the clip had been played faster or slower, by up to exp(jitter).

    Returns
    -------
    int64 array [n_segment]
    """
    _check(n_frames, n_segment)
    if clip_fps <= 0 or fps <= 0:
        raise InputError("frame rate out of range", found=f"clip {clip_fps}, wanted {fps}", expected="more than 0",
                         do="state the clip's frame rate")
    step = clip_fps / fps * (np.exp(rng.uniform(-jitter, jitter)) if rng is not None and jitter else 1.0)
    room = max(0.0, n_frames - 1 - (n_segment - 1) * step)
    first = rng.uniform(0, room) if rng is not None else room / 2
    return np.minimum(np.floor(first + np.arange(n_segment) * step + 1e-6).astype(np.int64), n_frames - 1)


class Sampler:
    """A choice of frames, made once and used for every clip.

    Parameters
    ----------
    kind : str
        "uniform", "dense" or "rate".
    n_segment : int
    stride : int
        Frames between two of a dense window.
    fps : float
        Rate of kind "rate".
    jitter : float
        See `fixed_rate`; of the other kinds as well: a random share of the clip, down to exp(-jitter), is taken for the whole.
    """

    KINDS = ("uniform", "dense", "rate")

    def __init__(self, kind="uniform", n_segment=8, stride=8, fps=12.0, jitter=0.0):
        self.kind, self.n_segment = choose(kind, self.KINDS, "sampling"), n_segment
        self.stride, self.fps, self.jitter = stride, fps, jitter

    def __call__(self, n_frames, rng=None, clip_fps=30.0):
        if self.kind == "rate":
            return fixed_rate(n_frames, self.n_segment, clip_fps, self.fps, rng, self.jitter)
        if rng is not None and self.jitter:
            part = max(1, round(n_frames * np.exp(-rng.uniform(0, self.jitter))))
            return int(rng.integers(n_frames - part + 1)) + self._plain(part, rng)
        return self._plain(n_frames, rng)

    def _plain(self, n_frames, rng):
        if self.kind == "uniform":
            return uniform_segments(n_frames, self.n_segment, rng)
        return dense_window(n_frames, self.n_segment, self.stride, rng)
