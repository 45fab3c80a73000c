"""Timing several engines in one run: interleaved rounds, so that a noisy machine disturbs all of them alike."""
from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed step, grouped by round: samples[round][step]."""

    samples: np.ndarray  # [rounds, steps]

    def percentile(self, q):
        return float(np.percentile(self.samples, q))

    @property
    def best(self):
        return float(self.samples.min())

    def ratio_to(self, other):
        """Median over rounds of (our median / their median of the same round)."""
        return float(np.median(np.median(self.samples, axis=1) / np.median(other.samples, axis=1)))


def interleave(steps, frames, *, rounds, steps_per_round, warmup, period=0.0):
    """Time each engine's steps in turn, round after round.

    Parameters
    ----------
    steps : dict of str to callable
        Engine name -> function of one frame. Caches are carried inside.
    frames : sequence of arrays
        Given in turn, so that no two steps in a row see the same frame.
    rounds, steps_per_round, warmup : int
        Each round runs every engine for `warmup` untimed and `steps_per_round` timed steps; the order rotates.
    period : float
        Seconds from the start of one step to the start of the next (a camera's rate); 0 is back to back.

    Returns
    -------
    dict of str to Timing
    """
    names = list(steps)
    samples = {name: np.zeros((rounds, steps_per_round)) for name in names}
    for r in range(rounds):
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            step = steps[name]
            due = time.perf_counter()
            for i in range(-warmup, steps_per_round):
                frame = frames[(i + warmup) % len(frames)]
                if period:
                    due = max(due + period, time.perf_counter())
                    time.sleep(max(0.0, due - time.perf_counter()))
                start = time.perf_counter()
                step(frame)
                if i >= 0:
                    samples[name][r, i] = time.perf_counter() - start
    return {name: Timing(s) for name, s in samples.items()}
