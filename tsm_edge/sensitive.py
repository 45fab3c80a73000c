"""Untrained networks whose answers move with what they see, and frames for them to look at.

With ordinary random weights the logits of such a network hardly change from frame to frame: any wrong cache would pass a
comparison. Here the batch norms' statistics are computed from frames and the classifier is scaled to what arrives at it.
"""
from __future__ import annotations

import numbers

import numpy as np
import torch
from torch import nn

from .card import MEAN, STD, amend
from .errors import InputError
from .shift import find_shifts, set_segments

SPREAD = 1.5  # standard deviation of a logit over the frames


def check_seed(seed: int) -> None:
    """Refuse what is no seed of random numbers.

    Raises
    ------
    InputError
    """
    if not isinstance(seed, numbers.Integral) or not 0 <= seed <= 2 ** 63:
        raise InputError("the seed cannot be used", found=repr(seed)[:80], expected="a whole number, 0 to 2**63", do="for example 0")


def image_like_frames(count: int, size: tuple[int, int], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Frames with smooth, moving content: shaded gradients, soft discs and bars that cross the picture.

    Parameters
    ----------
    count : int
    size : int or (width, height)
    seed : int
    dtype : "float32" or "uint8"

    Returns
    -------
    numpy.ndarray
        float32 [count, 3, height, width], normalised by the usual mean and deviation; or uint8 [count, height, width, 3]
        RGB.
    """
    check_seed(seed)
    width, height = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5
    waves = rng.uniform(-7, 7, (3, 4, 2)), rng.uniform(0, 2 * np.pi, (3, 4)), rng.uniform(-0.5, 0.5, (3, 4))
    things = 5
    start, speed = rng.uniform(-0.4, 0.4, (things, 2)), rng.uniform(-0.08, 0.08, (things, 2))
    radius, colour = rng.uniform(0.08, 0.25, things), rng.uniform(0, 1, (things, 3)).astype(np.float32)
    stretch, light = rng.uniform(0.4, 2.5, things), rng.uniform(0.3, 0.8)
    frames = np.empty((count, 3, height, width), np.float32)
    for t in range(count):
        for c in range(3):
            grey = sum(np.sin(waves[0][c, k, 0] * x + waves[0][c, k, 1] * y + waves[1][c, k] + waves[2][c, k] * t)
                       for k in range(4))
            frames[t, c] = 0.45 + 0.12 * grey
        for i in range(things):
            cx, cy = (np.mod(start[i] + speed[i] * t + 0.6, 1.2) - 0.6).astype(np.float32)
            distance = np.sqrt((x - cx) ** 2 * stretch[i] + (y - cy) ** 2 / stretch[i]) / radius[i]
            cover = 1 / (1 + np.exp(np.clip(12 * (distance - 1), -30, 30)))
            frames[t] += cover * (colour[i][:, None, None] - frames[t])
        frames[t] *= 1 + 0.2 * light * np.sin(0.9 * t)
    frames += rng.normal(0, 0.01, frames.shape)  # a little of a sensor's noise
    np.clip(frames, 0, 1, out=frames)
    if np.dtype(dtype) == np.uint8:
        return np.ascontiguousarray(np.rint(frames * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return (frames - np.asarray(MEAN, np.float32)[:, None, None]) / np.asarray(STD, np.float32)[:, None, None]


def make_sensitive(net: nn.Module, seed: int, frames: torch.Tensor | np.ndarray) -> nn.Module:
    """Give a network random weights with which its logits move over `frames`, in place.

    Convolutions get fan-in weights, batch norms the statistics that the frames produce there, and the last linear layer is
    scaled so that a logit's standard deviation over the frames is SPREAD.

    Parameters
    ----------
    net : torch.nn.Module
        Clip network. Ends in evaluation mode, and its card says that it is not trained.
    seed : int
        The same seed, network and frames give the same weights.
    frames : array or tensor
        float32 [T, 3, H, W], one clip, normalised.

    Returns
    -------
    torch.nn.Module
        `net` itself.
    """
    check_seed(seed)
    generator = torch.Generator().manual_seed(int(seed))
    device = next((p.device for p in net.parameters()), None)
    frames = torch.as_tensor(frames, dtype=torch.float32, device=device)
    segments = [(shift, shift.n_segment) for _, shift in find_shifts(net)]
    with torch.no_grad():
        last = _draw_weights(net, generator)
        set_segments(net, len(frames))
        _take_statistics(net, frames)
        logits = net.eval()(frames)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise InputError("the network's output cannot be used", found=str(getattr(logits, "shape", type(logits).__name__)),
                             expected="logits [T, classes]", do="return one row of logits for each frame")
        if last is not None and len(frames) > 1:
            last.weight.mul_(SPREAD / logits.std(0).mean().clamp_min(1e-12))
    for shift, n_segment in segments:
        shift.n_segment = n_segment
    amend(net, trained=False)
    return net


def _draw_weights(net, generator):
    """Random weights in place. Returns the last linear layer, None where there is none."""
    def normal(tensor, scale, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + mean)

    last = None
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            normal(module.weight, (2.0 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                normal(module.bias, 0.1)
            last = module if isinstance(module, nn.Linear) else last
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            normal(module.weight, 0.1, 1.0)
            normal(module.bias, 0.2)
    return last


def _take_statistics(net, frames):
    """The batch norms' statistics become those of this one batch."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    net(frames)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
