"""An auxiliary loss for rendered clips: a second head must say where the hand is, how it is held and how it moves.

From labels alone a small network takes very long to leave chance; asked for the hand's state in every frame (columns in
targets.py) its features form quickly, and gestures follow from them. The heads are dropped with the run.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tsm_edge.attention import split_network
from tsm_edge.training.gestures.targets import TARGETS


class WithHands(nn.Module):
    """A network and two linear heads on its last feature map: one on its mean over the places, one on all its places.

    Parameters
    ----------
    net : nn.Module
        One of our backbones, clip level.
    input_size : (int, int)
        Width, height of its input.
    variance : float32 [20]
        Of each target; errors are measured in it.
    """

    def __init__(self, net, input_size, variance):
        super().__init__()
        self.net = net
        features, _ = split_network(net)
        device, was = next(net.parameters()).device, net.training
        net.eval()
        with torch.no_grad():  # one clip's worth of frames: the shifts insist on whole clips
            n = max([m.n_segment for m in net.modules() if hasattr(m, "n_segment")], default=1)
            _, channels, h, w = features(torch.zeros(n, 3, *input_size[::-1], device=device)).shape
        net.train(was)
        self.pooled = nn.Linear(channels, len(TARGETS)).to(device)
        self.spread = nn.Linear(channels * h * w, len(TARGETS)).to(device)
        self.register_buffer("variance", torch.as_tensor(variance, dtype=torch.float32, device=device))

    def forward(self, x):
        """Logits [N * T, classes] and the hand's state as either head has it, [N * T, 20]."""
        features, classifier = split_network(self.net)
        f = features(x)
        mean = f.mean((2, 3))
        return classifier(self.net.dropout(mean)), self.pooled(_evened(mean)), self.spread(_evened(f.flatten(1)))

    def hand_loss(self, pooled, spread, targets):
        """Mean squared error in variances, of targets float32 [N, T, 20]; a clip's first frame, which has no past, is left out."""
        def error(found):
            return ((found.float().view_as(targets) - targets).square()[:, 1:] / self.variance).mean()

        return error(pooled) + 0.5 * error(spread)

    def heads(self):
        """State of what is not the network itself."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("net.")}


def _evened(features):
    """Features [N, C] so that a step of Adam, alike for every weight, moves the sum over them about as far whatever C is."""
    return features * (4 / features.shape[1] ** 0.5)


def variance_of(targets):
    """Variance of each column of targets [N, T, 20], never quite zero."""
    return np.asarray(targets, np.float64)[:, 1:].reshape(-1, targets.shape[-1]).var(0) + 1e-3
