"""Proof that what is written computes what the trained network computes, frame by frame, logits and caches.

Three comparisons, each over the same chained frames from zero caches: the step network with the clip network (torch),
the ONNX file with the step network, the compiled library with the step network. Two conditions make them proof: the
logits must move over the frames (a network whose logits stand still agrees with anything), and every cache must matter
(zeroing or swapping one must be seen).
"""
from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field

import numpy as np

from tsm_edge.errors import CheckFailedError

PASSED, FAILED, NOT_EXECUTED = "passed", "failed", "not executed"
FRAMES = 16
RELATIVE_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}
# fp16: the root mean square (RMS) of the differences may be HALF_FACTOR times that of a network which only rounds what goes
# into and comes out of its layers, and at most HALF_LIMIT of the values' standard deviation (a last bit, HALF_FLOOR of the
# values, is always allowed); one difference may be HALF_PEAK times that. Measured on MobileNetV2, logits and caches: 1.4 to 1.6
# times with random weights, 1.0 to 2.1 with trained ones (another engine's correct kernels: 2.1 to 2.5); the largest 6 times.
HALF_FACTOR, HALF_LIMIT, HALF_FLOOR, HALF_PEAK = 3, 0.25, 2.0 ** -10, 11
HALF_REPEAT = 1.25  # elsewhere the same library may be off by this many times what it was off by here
MOVE_FACTOR = 1000  # logits must vary by this many (fp32) tolerances over the frames


@dataclass(frozen=True)
class Trace:
    """What a network gave, frame by frame: logits [T, classes]; caches {name: [T, fold, h, w]} after each frame."""

    logits: np.ndarray
    caches: dict = field(default_factory=dict)

    def head(self, frames):
        """The first `frames` frames."""
        return Trace(self.logits[:frames], {name: value[:frames] for name, value in self.caches.items()})


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


@contextlib.contextmanager
def one_thread():
    """Torch on one thread: single frames are small work, and its threads spin where other programs want the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- the references --------------------------------------------------------------------------------------------------


def step_trace(step_network, inputs, start=None):
    """Chain the torch step network over `inputs` (float32 [T, 3, H, W]).

    `start` is a list of caches [1, fold, h, w]; zeros where None. Caches carry the names of `cache_specs`.
    """
    import torch

    names = [spec.name for spec in step_network.cache_specs]
    caches = list(start) if start is not None else list(step_network.zero_caches())
    logits, kept = [], {name: [] for name in names}
    step_network.eval()
    with torch.no_grad():
        for frame in inputs:
            out, *caches = step_network(torch.from_numpy(np.ascontiguousarray(frame))[None], *caches)
            logits.append(out[0].numpy().copy())
            for name, cache in zip(names, caches):
                kept[name].append(cache[0].numpy().copy())
    return Trace(np.stack(logits), {name: np.stack(values) for name, values in kept.items()})


def clip_trace(net, inputs, specs=()):
    """Run the uni-directional clip network once over all frames: logits and, by hooks, what each shift hands on.

    net : clip network, [T, 3, H, W] -> logits [T, classes]. inputs : float32 [T, 3, H, W].
    specs : the cache specs of its step network, in execution order.
    """
    import torch

    from tsm_edge.shift import channel_slice, find_shifts

    seen, handles = [], []  # the un-shifted slice of every shift that ran, in order: [T, fold, h, w]

    def keep(module, args):
        start, stop = channel_slice(module.past, args[0].shape[1], module.fold_div)
        if start < stop:
            seen.append(args[0][:, start:stop].numpy().copy())

    shifts = [module for _, module in find_shifts(net)]
    segments = [shift.n_segment for shift in shifts]
    modes = [(module, module.training) for module in net.modules()]
    try:
        for shift in shifts:
            shift.n_segment = len(inputs)
            handles.append(shift.register_forward_pre_hook(keep))
        with torch.no_grad():
            logits = net.eval()(torch.from_numpy(np.ascontiguousarray(inputs))).numpy().copy()
    finally:
        for handle in handles:
            handle.remove()
        for shift, n_segment in zip(shifts, segments):
            shift.n_segment = n_segment
        for module, training in modes:
            module.training = training
    return Trace(logits, {spec.name: values for spec, values in zip(specs, seen)})


def rounding_trace(step_network, inputs):
    """What half precision makes of the network by rounding alone, as `step_trace`.

    Weights, and what goes into and comes out of every layer, are rounded to half precision; sums are exact. A library in
    half precision that does much worse than this computes something else (`half_bounds`).
    """
    import copy

    rounded = copy.deepcopy(step_network).half().float()

    def half(value):
        return value.half().float() if hasattr(value, "half") and value.is_floating_point() else value

    for module in rounded.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda module, args: tuple(half(value) for value in args))
            module.register_forward_hook(lambda module, args, out: half(out))
    return step_trace(rounded, inputs)


def onnx_trace(path, inputs):
    """Chain the ONNX step graph over `inputs` with onnxruntime, feeding each `next_cache.*` back as `cache.*`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {i.name: i.shape for i in session.get_inputs()}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("cache.")}
    outputs = [o.name for o in session.get_outputs()]
    logits, kept = [], {name: [] for name in state}
    for frame in inputs:
        got = dict(zip(outputs, session.run(outputs, {"frame": frame[None], **state})))
        logits.append(got["logits"][0])
        state = {name: got["next_" + name] for name in state}
        for name, cache in state.items():
            kept[name].append(cache[0])
    return Trace(np.stack(logits), {name: np.stack(values) for name, values in kept.items()})


# --- what makes a comparison proof -----------------------------------------------------------------------------------


def check_movement(reference, name="logits move"):
    """Do the logits vary over the frames by at least MOVE_FACTOR tolerances? Without that, nothing is proven."""
    tolerance = tolerance_for(reference.logits)
    finite = np.isfinite(reference.logits).all()
    moved = float(np.max(np.ptp(reference.logits, axis=0))) if finite else 0.0
    good = finite and moved >= MOVE_FACTOR * tolerance
    detail = (f"logits vary by {moved:.3g} over the frames, {moved / tolerance:.0f} tolerances; "
              f"at least {MOVE_FACTOR} are needed" if finite else "the reference's logits are not finite")
    return Check(name, PASSED if good else FAILED, None, tolerance,
                 float(np.max(np.abs(reference.logits))) if finite else None, None, len(reference.logits), detail)


def check_teeth(step_network, inputs, reference, name="tampered caches are caught"):
    """Would a wrong cache be seen? Zero each, and swap each pair of neighbours of one shape, before one frame.

    Every such tampering must put the logits or a cache of that frame outside the tolerance. The frame is the one before which
    the tampering changes most; caches that hold the same values all the time (two shifts of one tensor) are not swapped.
    """
    import torch

    caches = {spec.name: reference.caches[spec.name][:-1] for spec in step_network.cache_specs}
    if not caches:
        return Check(name, PASSED, frames=0, detail="the network has no caches")

    def largest(difference):
        """(after which frame it is largest, by how much)."""
        sizes = np.abs(difference).reshape(len(difference), -1).max(1)
        return int(sizes.argmax()), float(sizes.max())

    cases, empty, names = [], [], list(caches)
    for cache, values in caches.items():
        at, size = largest(values)
        cases.append((f"{cache} zeroed", at, {cache: np.zeros_like(values[at])}))
        empty += [] if size else [cache]
    for one, other in zip(names, names[1:]):
        if caches[one].shape == caches[other].shape:
            at, size = largest(caches[one] - caches[other])
            if size:
                cases.append((f"{one} and {other} swapped", at, {one: caches[other][at], other: caches[one][at]}))
    if empty:
        return Check(name, FAILED, frames=1, detail="zero in all of these frames, so that nothing shows whether they are carried on: "
                                                    + ", ".join(empty[:4]))
    missed = []
    for case, at, changed in cases:
        state = [torch.from_numpy(np.array(changed.get(cache, caches[cache][at])))[None] for cache in names]
        got = step_trace(step_network, inputs[at + 1:at + 2], state)
        expected = Trace(reference.logits[at + 1:at + 2], {cache: reference.caches[cache][at + 1:at + 2] for cache in names})
        if compare(case, expected, got).status == PASSED:
            missed.append(case)
    if missed:
        return Check(name, FAILED, frames=1, detail="not noticed: " + ", ".join(missed[:4]))
    return Check(name, PASSED, frames=1, detail=f"{len(cases)} of {len(cases)} noticed")


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
