"""How far two traces may differ, and the verdict of comparing them."""
from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from tsm_edge.errors import CheckFailedError

PASSED, FAILED, NOT_EXECUTED = "passed", "failed", "not executed"
RELATIVE_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}
# fp16: the root mean square (RMS) of the differences may be HALF_FACTOR times that of a network which only rounds what goes
# into and comes out of its layers, and at most HALF_LIMIT of the values' standard deviation (a last bit, HALF_FLOOR of the
# values, is always allowed); one difference may be HALF_PEAK times that. Measured on MobileNetV2, logits and caches: 1.4 to 1.6
# times with random weights, 1.0 to 2.1 with trained ones (another engine's correct kernels: 2.1 to 2.5); the largest 6 times.
HALF_FACTOR, HALF_LIMIT, HALF_FLOOR, HALF_PEAK = 3, 0.25, 2.0 ** -10, 11
HALF_REPEAT = 1.25  # elsewhere the same library may be off by this many times what it was off by here
MOVE_FACTOR = 1000  # logits must vary by this many (fp32) tolerances over the frames


@dataclass(frozen=True)
class Check:
    """One measured comparison, as it stands in the manifest. Differences are absolute; None where nothing was run."""

    name: str
    status: str  # PASSED, FAILED or NOT_EXECUTED
    max_abs_diff: float | None = None  # logits
    tolerance: float | None = None
    max_abs_logit: float | None = None
    argmax_flips: int | None = None  # frames whose best class differs
    frames: int = 0
    detail: str = ""

    def as_dict(self):
        return asdict(self)


def tolerance_for(values, precision="fp32"):
    """Allowed absolute difference for values of this size: relative to the largest magnitude, at least to 1."""
    largest = float(np.max(np.abs(values))) if np.size(values) else 0.0
    return RELATIVE_TOLERANCE[precision] * max(1.0, largest)


def _difference(a, b):
    """max |a - b| as float; infinity where shapes differ or either holds a value that is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0))


def _rms(values):
    """Root mean square, in double precision."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.size(values) else 0.0


def half_bounds(values, rounded):
    """What a network in half precision may be off by: (RMS of the differences, largest difference).

    Rounding errors behave like independent random numbers, and the network enlarges them, each network in its own way. So
    the yardstick is the network itself: `rounded` is what it gives when it only rounds between layers (`rounding_trace`).
    Kernels also round the sums inside a layer, which adds errors of the same kind and size.

    values, rounded : of the same shape: logits or one cache, all frames.
    """
    most = min(HALF_FACTOR * _rms(values - rounded), HALF_LIMIT * float(np.std(values, dtype=np.float64)))
    most = max(most, HALF_FLOOR * _rms(values))  # values that do not move at all are rounded too
    return most, HALF_PEAK * most


def half_tolerances(reference, measured, factor=HALF_REPEAT):
    """The manifest's `tolerances`, for replaying the recorded frames elsewhere.

    Kernels add up in one order everywhere, so a library is off on the device by what it was off by here.

    Parameters
    ----------
    reference, measured : Trace
        The recorded frames: the reference and what the library gave.
    factor : float
        Of the measured differences.

    Returns
    -------
    dict
        For "logits" and every cache: the largest difference allowed, relative to the largest value (at least 1).
    """
    got = {"logits": measured.logits, **measured.caches}
    return {name: max(RELATIVE_TOLERANCE["fp16"],
                      factor * _difference(values, got[name]) / max(1.0, float(np.max(np.abs(values)))))
            for name, values in {"logits": reference.logits, **reference.caches}.items()}


def compare(name, expected, got, precision="fp32", detail="", rounding=None):
    """Compare two traces frame by frame.

    Parameters
    ----------
    name : str
        What is compared, for the report.
    expected, got : Trace
        The reference and the candidate. Caches that `expected` lacks are not looked at; those that `got` lacks fail.
    precision : str
        Of the candidate; sets the tolerance.
    rounding : Trace or None
        For fp16: what rounding alone gives, for at least these frames; see `rounding_trace`.

    Returns
    -------
    Check
    """
    misses, ratios = [], []

    def look(part, values, others, rounded):
        """(largest difference, allowed); misses are noted."""
        off, typical, usual = _difference(values, others), 0.0, np.inf
        if rounded is None:
            allowed = tolerance_for(values, precision)
        else:
            usual, allowed = half_bounds(values, rounded[:len(values)])
            if np.isfinite(off) and off:
                typical = _rms(values - others)
                ratios.append(typical / max(_rms(values - rounded[:len(values)]), 1e-30))
        if not (off <= allowed and np.isfinite(off)):
            misses.append(f"{part} by {off:.3g}, allowed {allowed:.3g}")
        elif typical > usual:
            misses.append(f"{part} by {typical:.3g} (RMS), allowed {usual:.3g}")
        return off, allowed

    difference, tolerance = look("logits differ", expected.logits, got.logits, rounding and rounding.logits)
    worst, worst_name = 0.0, ""
    for cache, values in expected.caches.items():
        if cache not in got.caches:
            misses.append(f"{cache} is missing")
            continue
        off, _ = look(f"{cache} differs", values, got.caches[cache], rounding and rounding.caches[cache])
        if off >= worst:
            worst, worst_name = off, cache
    same_shape = expected.logits.shape == got.logits.shape
    flips = int((expected.logits.argmax(1) != got.logits.argmax(1)).sum()) if same_shape else len(expected.logits)
    notes = [detail] if detail else []
    if expected.caches:
        notes.append(f"largest cache difference {worst:.2g} ({worst_name})" if worst_name else "caches identical")
    if ratios:
        notes.append(f"differences are {min(ratios):.2f} to {max(ratios):.2f} times those of rounding alone (RMS)")
    if misses:
        shown = misses[:4] + ([f"and {len(misses) - 4} more"] if len(misses) > 4 else [])
        notes = ["; ".join(shown)] + notes
    return Check(name, FAILED if misses else PASSED, difference, tolerance,
                 float(np.max(np.abs(expected.logits), initial=0.0)), flips, len(expected.logits), "; ".join(notes))


def require(checks, do="report this: the bundle was not written"):
    """Raise if a check failed.

    Raises
    ------
    CheckFailedError
        Names every failed check with its measurements.
    """
    failed = [check for check in checks if check.status == FAILED]
    if failed:
        raise CheckFailedError(
            "verification failed: " + ", ".join(check.name for check in failed),
            found="; ".join(f"{check.name}: {check.detail}" for check in failed),
            expected="all frames and caches within tolerance of the torch network", do=do)


def summary(checks):
    """The manifest's `verification`: the worst status of the checks, the frames, and every check as measured."""
    statuses = {check.status for check in checks}
    status = FAILED if FAILED in statuses else NOT_EXECUTED if NOT_EXECUTED in statuses or not checks else PASSED
    frames = max((check.frames for check in checks), default=0)
    return {"status": status, "frames": frames, "checks": [check.as_dict() for check in checks]}
