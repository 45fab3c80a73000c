import numpy as np
import pytest

from tsm_edge.benchmarks import measure
from tsm_edge.benchmarks.measure import Timing, interleave


def test_ratio_is_taken_within_rounds_so_that_a_slow_round_disturbs_nobody():
    ours = Timing(np.array([[1.0, 1.0], [10.0, 10.0], [1.0, 1.0]]))
    theirs = Timing(np.array([[2.0, 2.0], [20.0, 20.0], [2.0, 2.0]]))
    assert ours.ratio_to(theirs) == pytest.approx(0.5)


def test_every_engine_runs_every_round_and_the_order_rotates():
    calls = []
    interleave({"a": lambda f: calls.append("a"), "b": lambda f: calls.append("b")}, [0], rounds=3, steps_per_round=2, warmup=1)
    assert "".join(calls) == "aaabbb" + "bbbaaa" + "aaabbb"


def test_consecutive_steps_never_see_the_same_frame():
    seen = []
    interleave({"a": seen.append}, [0, 1, 2], rounds=1, steps_per_round=7, warmup=2)
    assert all(x != y for x, y in zip(seen, seen[1:]))


class Clock:
    """Stands for the module time: it moves by what is slept, and by what a step says that it takes."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_paced_steps_start_no_faster_than_the_camera(monkeypatch):
    clock, starts, lengths = Clock(), [], iter([0.001, 0.05, 0.001, 0.002, 0.001, 0.001])
    monkeypatch.setattr(measure, "time", clock)

    def step(frame):
        starts.append(clock.now)
        clock.sleep(next(lengths))

    interleave({"a": step}, [0], rounds=1, steps_per_round=5, warmup=1, period=0.02)
    np.testing.assert_allclose(np.diff(starts), [0.02, 0.05, 0.02, 0.02, 0.02])  # after a late one from then on: nothing is caught up


def test_samples_hold_the_time_of_the_step_alone(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    timing = interleave({"a": lambda f: clock.sleep(0.01)}, [0], rounds=2, steps_per_round=3, warmup=0, period=0.03)["a"]
    np.testing.assert_allclose(timing.samples, np.full((2, 3), 0.01))
