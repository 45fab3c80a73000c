"""Proof that what is written computes what the trained network computes, frame by frame, logits and caches.

Three comparisons, each over the same chained frames from zero caches: the step network with the clip network (torch),
the ONNX file with the step network, the compiled library with the step network. Two conditions make them proof: the
logits must move over the frames (a network whose logits stand still agrees with anything), and every cache must matter
(zeroing or swapping one must be seen).
"""
from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np

from .tolerances import FAILED, MOVE_FACTOR, PASSED, Check, compare, tolerance_for

FRAMES = 16


@dataclass(frozen=True)
class Trace:
    """What a network gave, frame by frame: logits [T, classes]; caches {name: [T, fold, h, w]} after each frame."""

    logits: np.ndarray
    caches: dict = field(default_factory=dict)

    def head(self, frames):
        """The first `frames` frames."""
        return Trace(self.logits[:frames], {name: value[:frames] for name, value in self.caches.items()})


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


MOVES = "logits move"


def check_movement(reference, name=MOVES):
    """Do the logits vary over the frames by at least MOVE_FACTOR tolerances? Without that, nothing is proven."""
    tolerance = tolerance_for(reference.logits)
    finite = np.isfinite(reference.logits).all()
    moved = float(np.max(np.ptp(reference.logits, axis=0))) if finite else 0.0
    good = finite and moved >= MOVE_FACTOR * tolerance
    detail = (f"logits vary by {moved:.3g} over the frames, {moved / tolerance:.0f} tolerances; "
              f"at least {MOVE_FACTOR} are needed" if finite else "the reference's logits are not finite")
    return Check(name, PASSED if good else FAILED, None, tolerance,
                 float(np.max(np.abs(reference.logits))) if finite else None, None, len(reference.logits), detail)


def stands_still(check):
    """Whether a check failed because the logits hardly vary over the frames."""
    return check.status == FAILED and check.name == MOVES


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


