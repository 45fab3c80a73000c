"""Where a network looks: class activation maps, exact for networks that end in global pooling and one linear layer.

M_c(x, y) = sum_k w_ck f_k(x, y) over the last feature map f; its mean over x, y plus the bias is the logit of class c
(Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", section 2).
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import InputError


def split_network(net: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], nn.Linear]:
    """(features function, classifier) of one of our backbones.

    Raises
    ------
    InputError
        The network does not end in global pooling and one linear layer.
    """
    head = getattr(net, "classifier", getattr(net, "fc", None))
    if not hasattr(net, "forward_features") or head is None:
        raise InputError("this network has no attention maps", found=type(net).__name__,
                         expected="one that ends in global pooling and one linear layer", do="leave attention out")
    return net.forward_features, head


def class_maps(features: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Evidence of a feature map for every class at every place.

    Parameters
    ----------
    features : float32 [N, C, h, w]
    head : torch.nn.Linear, C -> classes

    Returns
    -------
    float32 [N, classes, h, w]
        Mean over h, w plus the head's bias is the logit.
    """
    return torch.einsum("kc,nchw->nkhw", head.weight, features)


def attention_maps(net: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Evidence for every class at every place, with the logits that it averages to.

    Parameters
    ----------
    net : torch.nn.Module
        A backbone of `tsm_edge.create_model`, in evaluation mode.
    x : float32 [N * T, 3, H, W]

    Returns
    -------
    maps : float32 [N * T, classes, h, w]
        mean over h, w plus the classifier's bias is the logit.
    logits : float32 [N * T, classes]
    """
    features, head = split_network(net)
    with torch.no_grad():
        maps = class_maps(features(x), head)
        logits = maps.mean((2, 3)) + head.bias
    return maps.numpy(), logits.numpy()


class FeatureTap:
    """Keeps the last feature map of every forward pass of a network: nothing is computed twice, nothing is changed.

    Parameters
    ----------
    net : torch.nn.Module
        Changed: its `forward_features` is watched.

    Raises
    ------
    InputError
        The network does not end in global pooling and one linear layer.
    """

    def __init__(self, net):
        features, self.head = split_network(net)
        self._kept = threading.local()  # streams in other threads have their own

        def watched(x):
            self._kept.features = features(x)
            return self._kept.features

        net.forward_features = watched

    def take(self):
        """The feature map [N, C, h, w] of this thread's last forward pass; it is kept no longer."""
        features, self._kept.features = self._kept.features, None
        return features
