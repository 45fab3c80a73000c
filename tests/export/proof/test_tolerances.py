"""The comparison itself: what it lets through, what it must not, and when it refuses to be called proof."""
import re

import numpy as np
import pytest

from tsm_edge.errors import CheckFailedError
from tsm_edge.export.proof import tolerances as bounds
from tsm_edge.export.proof import traces
from tsm_edge.export.proof.tolerances import FAILED, NOT_EXECUTED, PASSED, Check, compare
from tsm_edge.export.proof.traces import Trace


def moving_trace(seed=0, frames=16, classes=27):
    rng = np.random.default_rng(seed)
    caches = {f"cache.{i}": rng.normal(size=(frames, 3, 5, 4)).astype(np.float32) for i in range(3)}
    return Trace((rng.normal(size=(frames, classes)) * 5).astype(np.float32), caches)


def test_equal_traces_pass_and_are_measured():
    check = compare("c", moving_trace(), moving_trace())
    assert (check.status, check.max_abs_diff, check.argmax_flips, check.frames) == (PASSED, 0.0, 0, 16)
    assert check.max_abs_logit == pytest.approx(np.abs(moving_trace().logits).max())
    assert check.tolerance == pytest.approx(1e-4 * check.max_abs_logit)


def test_the_tolerance_is_relative_to_the_size_of_the_logits_and_at_least_absolute():
    assert bounds.tolerance_for(np.array([0.01])) == pytest.approx(1e-4)
    assert bounds.tolerance_for(np.array([-20.0])) == pytest.approx(2e-3)


def test_a_difference_just_above_the_tolerance_fails_and_just_below_passes():
    good = moving_trace()
    for factor, status in ((0.9, PASSED), (1.1, FAILED)):
        bad = moving_trace()
        bad.logits[3, 2] += factor * bounds.tolerance_for(good.logits)
        assert compare("c", good, bad).status == status


def test_one_wrong_value_in_one_cache_at_one_frame_fails_by_name():
    bad = moving_trace()
    bad.caches["cache.1"][9, 2, 4, 3] += 0.01
    check = compare("c", moving_trace(), bad)
    assert check.status == FAILED and "cache.1" in check.detail and check.max_abs_diff == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_fail(value):
    bad = moving_trace()
    bad.logits[0, 0] = value
    assert compare("c", moving_trace(), bad).status == FAILED
    bad = moving_trace()
    bad.caches["cache.0"][0, 0, 0, 0] = value
    assert compare("c", moving_trace(), bad).status == FAILED
    assert compare("c", bad, bad).status == FAILED


def test_a_missing_cache_and_a_missing_frame_fail():
    good = moving_trace()
    short = Trace(good.logits, {k: v for k, v in good.caches.items() if k != "cache.2"})
    assert "cache.2 is missing" in compare("c", good, short).detail
    assert compare("c", good, good.head(15)).status == FAILED


def test_swapped_caches_are_caught():
    good = moving_trace()
    swapped = Trace(good.logits, {**good.caches, "cache.0": good.caches["cache.1"], "cache.1": good.caches["cache.0"]})
    assert compare("c", good, swapped).status == FAILED


def test_a_change_of_the_best_class_is_counted():
    good = Trace(np.array([[1.0, 1.00001], [2.0, 0.0]], np.float32))
    got = Trace(np.array([[1.00001, 1.0], [2.0, 0.0]], np.float32))
    assert compare("c", good, got).argmax_flips == 1


def test_logits_that_stand_still_are_refused_as_proof():
    still = moving_trace()
    still.logits[:] = still.logits[0] + np.random.default_rng(1).normal(size=still.logits.shape) * 7.5e-7
    check = traces.check_movement(still)
    assert check.status == FAILED and "at least 1000" in check.detail
    assert traces.check_movement(moving_trace()).status == PASSED


def test_logits_that_are_not_finite_are_refused_as_proof():
    bad = moving_trace()
    bad.logits[4, 4] = np.nan
    assert traces.check_movement(bad).status == FAILED


def test_a_failed_check_raises_with_its_measurements_and_exit_code_1():
    bad = moving_trace()
    bad.logits[3, 2] += 1
    with pytest.raises(CheckFailedError) as error:
        bounds.require([compare("library vs torch", moving_trace(), bad)])
    assert error.value.exit_code == 1
    assert "library vs torch" in error.value.problem and "logits differ by 1" in error.value.found
    assert "tolerance" in error.value.expected and error.value.do


def test_what_was_not_executed_is_never_called_passed():
    done, undone = Check("a", PASSED, frames=16), Check("b", NOT_EXECUTED)
    assert bounds.summary([done, undone])["status"] == NOT_EXECUTED
    assert bounds.summary([])["status"] == NOT_EXECUTED
    assert bounds.summary([done, undone, Check("c", FAILED)])["status"] == FAILED
    assert bounds.summary([done])["status"] == PASSED
    assert bounds.summary([done])["frames"] == 16


def noisy_trace(size, seed):
    """moving_trace() with differences of the given RMS, relative to the values' standard deviation."""
    rng, good = np.random.default_rng(seed), moving_trace()

    def shake(values):
        return values + (size * values.std() * rng.standard_normal(values.shape)).astype(np.float32)

    return Trace(shake(good.logits), {name: shake(values) for name, values in good.caches.items()})


@pytest.mark.parametrize("size, status", [(0.0, PASSED), (0.026, PASSED), (0.036, FAILED)])
def test_half_precision_may_cost_three_times_what_rounding_costs(size, status):
    check = compare("c", moving_trace(), noisy_trace(size, 1), "fp16", rounding=noisy_trace(0.01, 2))
    assert check.status == status
    found = re.search(r"differences are ([\d.]+) to ([\d.]+) times those of rounding alone", check.detail)
    if size:
        assert float(found[1]) < 100 * size < float(found[2])


def test_half_precision_never_costs_more_than_a_quarter_of_what_moves():
    for size, status in ((0.2, PASSED), (0.3, FAILED)):
        assert compare("c", moving_trace(), noisy_trace(size, 1), "fp16", rounding=noisy_trace(1.0, 2)).status == status


def test_a_cache_that_stands_still_may_be_rounded_in_half_precision():
    logits, still = moving_trace().logits, np.full((16, 1, 3, 3), 1.2345, np.float32)
    for off, status in ((0.0005, PASSED), (0.005, FAILED)):
        check = compare("c", Trace(logits, {"cache.0": still}), Trace(logits, {"cache.0": still + off}), "fp16",
                        rounding=Trace(logits, {"cache.0": still + 0.0004}))
        assert check.status == status


def test_one_wrong_value_in_half_precision_fails_though_it_hardly_moves_the_mean():
    good, rounding = moving_trace(), noisy_trace(0.01, 2)
    for off, status in ((0.2, PASSED), (0.5, FAILED)):
        bad = moving_trace()
        bad.caches["cache.1"][9, 2, 4, 3] += off
        check = compare("c", good, bad, "fp16", rounding=rounding)
        assert check.status == status and (status == PASSED) == ("cache.1 differs" not in check.detail)


def test_fewer_frames_are_compared_with_the_rounding_of_the_same_frames():
    check = compare("c", moving_trace().head(3), noisy_trace(0.016, 1).head(3), "fp16", rounding=noisy_trace(0.01, 2))
    assert (check.status, check.frames) == (PASSED, 3)


def test_elsewhere_a_library_in_half_precision_may_be_off_by_what_it_was_off_by_here():
    good, got = moving_trace(), moving_trace()
    got.logits[3, 2] += 0.5
    tolerances = bounds.half_tolerances(good, got)
    assert tolerances["logits"] == pytest.approx(1.25 * 0.5 / np.abs(good.logits).max(), rel=1e-4)
    assert {tolerances[name] for name in good.caches} == {bounds.RELATIVE_TOLERANCE["fp16"]}
