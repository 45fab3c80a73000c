"""The manifest of a network: what it is, what it expects, how its answers become events."""
from __future__ import annotations

import sys

from tsm_edge import __version__
from tsm_edge.card import Card
from tsm_edge.errors import BundleError, InputError
from tsm_edge.manifest import SCHEMA, validate


def toolchain_versions():
    """Versions of everything that shapes the library."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3])), "tsm-edge": __version__}
    for package in ("apache-tvm", "torch", "onnx", "ziglang", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return versions


def describe(net, step, target, outputs, *, name=None, classes=None, input_size=None, precision="fp32", trained=None,
             resize=None, filter=None, mean=None, std=None, fps=None, max_gap_seconds=None, events=None):
    """The manifest as a dict, valid but without `files` and `verification`.

    Parameters
    ----------
    net, step : the clip network and its step network.
    target : Target
    outputs : int
        Number of logits.
    name : str or None
        What the model is called.
    Others : go before what the network's card says.

    Raises
    ------
    InputError
        Class names that do not fit the outputs, or another value that cannot be used.
    """
    from tsm_edge.step import find_input_size

    card = Card.of(net).but(
        model_name=name, classes=classes, input_size=find_input_size(net, input_size), trained=trained, resize=resize, filter=filter,
        mean=mean, std=std, fps=fps, max_gap_seconds=max_gap_seconds, events=events)
    manifest = {
        "schema": SCHEMA,
        **card.manifest(outputs),
        "caches": [spec.as_dict() for spec in step.cache_specs],
        "precision": precision,
        "target": target.as_dict(),
        "threads": target.threads,
        "toolchain": toolchain_versions(),
    }
    try:
        return validate(manifest, "the network's description", embedded=True)
    except BundleError as error:
        raise InputError(error.problem, found=error.found, expected=error.expected,
                         do="give export_bundle another value for it, or correct the card of the network") from None
