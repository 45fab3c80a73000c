"""Proof in torch, before anything is exported: stepping gives what the clip network gives, and the comparison can fail."""
from __future__ import annotations

import contextlib

import numpy as np

from . import tolerances, traces


def prove_step(net, step, inputs):
    """Step equals clip, logits move, caches matter: each is looked at only if the one before held.

    Parameters
    ----------
    net : torch.nn.Module
        The clip network, [T, 3, H, W] -> [T, classes].
    step : StepNetwork of it.
    inputs : float32 [T, 3, H, W]

    Returns
    -------
    (traces.Trace, list of tolerances.Check, str)
        What the step network gives, the checks, and what to do if the last of them failed.
    """
    with evaluating(net), traces.one_thread():
        reference = traces.step_trace(step, inputs)
        clip = traces.clip_trace(net, inputs, step.cache_specs)
        checks = [tolerances.compare("step network vs clip network", clip, reference)]
        if checks[-1].status == tolerances.FAILED:
            return reference, checks, why_other_steps(net, inputs, clip)
        checks.append(traces.check_movement(reference))
        if checks[-1].status == tolerances.FAILED:
            return reference, checks, ("use weights and frames for which the network answers differently: pass frames of its own kind "
                                       "(--frames), or train it")
        checks.append(traces.check_teeth(step, inputs, reference))
        return reference, checks, "pass frames that move every cache (--frames), or look at the layers named"


@contextlib.contextmanager
def evaluating(net):
    """A context in which `net` is in evaluation mode; afterwards each of its modules is in its mode of before."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def why_other_steps(net, inputs, clip):
    """What to do about a network whose steps give something else than its clips, by what is usually the reason.

    clip : traces.Trace of the clip network over `inputs`.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if len(clip.logits) != len(inputs):
        return "return logits for every frame: leave the mean over the frames of a clip to the caller"
    if not np.isfinite(clip.logits).all():
        return "look for NaN or infinity in the weights, and for logarithms, roots and divisions"
    norms = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is None]
    if norms:
        return f"{norms[0]} takes the statistics of the whole clip, of which a step sees one frame: train with track_running_stats=True"
    if not np.array_equal(traces.clip_trace(net, inputs).logits, clip.logits):
        return "the network gives other answers each time, also in evaluation mode: F.dropout needs training=self.training"
    return "the network does something over time that is no shift: report its structure"
