"""The manifest of a network: what it is, what it expects, how its answers become events."""
from __future__ import annotations

import sys

from tsm_edge import __version__
from tsm_edge.errors import BundleError, InputError
from tsm_edge.manifest import validate

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BACKGROUND_NAMES = {"no gesture", "doing other things", "background", "nothing"}


def default_events(classes, trained):
    """How scores become events when nobody says otherwise.

    The published gesture classes take the smoothing of their online demo; others take the same without masked and
    merged classes, and with a threshold.
    """
    from tsm_edge.jester import CLASSES
    from tsm_edge.runtimes.events import JESTER_DEMO

    if list(classes) == list(CLASSES) and trained:
        return dict(JESTER_DEMO)
    background = [i for i, name in enumerate(classes) if name.lower() in _BACKGROUND_NAMES]
    return dict(JESTER_DEMO, on=0.3, off=0.2, merge={}, ignore=[], background=background)


def _names(classes, outputs):
    """Class names as a list, one for each output."""
    try:
        names = list(classes)
    except TypeError:
        names = []
    if isinstance(classes, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise InputError("the class names cannot be used", found=repr(classes)[:100], expected=f"a list of {outputs} names",
                         do="for example classes=['left', 'right'] for a network with two outputs")
    if len(names) != outputs:
        raise InputError("the class list does not fit the network", found=f"{len(names)} names",
                         expected=f"{outputs}, one for each output", do="pass one name for each output, in their order")
    return names


def _number(value):
    """`value` as a float, where it is a number: `validate` says what is wrong with anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _numbers(values):
    try:
        return [_number(value) for value in values]
    except TypeError:
        return values


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
             resize=None, filter=None, mean=None, std=None, fps=None, max_gap_seconds=1.0, events=None):
    """The manifest as a dict, valid but without `files` and `verification`.

    Parameters
    ----------
    net, step : the clip network and its step network.
    target : Target
    outputs : int
        Number of logits.
    Others : override what the network says of itself.

    Raises
    ------
    InputError
        Class names that do not fit the outputs, or another value that cannot be used.
    """
    from tsm_edge.jester import CLASSES
    from tsm_edge.picture import shorter_side
    from tsm_edge.step import find_input_size

    info, size = dict(getattr(net, "tsm_info", None) or {}), find_input_size(net, input_size)
    names = _names(classes if classes is not None else info.get("classes") or [f"class {i}" for i in range(outputs)], outputs)
    trained = bool(info.get("trained", True) if trained is None else trained)
    arch = info.get("name") or type(net).__name__

    def pick(value, key, default):
        return info.get(key, default) if value is None else value

    resize = pick(resize, "resize", "crop")
    if name is None:
        known = list(names) == list(CLASSES) and trained
        name = info.get("model_name") or arch + ("" if trained else "-untrained") + ("-jester" if known else "")
    manifest = {
        "schema": 1,
        "name": name,
        "trained": trained,
        "classes": names,
        "input": {
            "width": size[0], "height": size[1], "colour": "RGB", "resize": resize,
            "shorter_side": shorter_side(*size) if resize == "crop" else 0,
            "filter": pick(filter, "filter", "antialias"),
            "mean": _numbers(pick(mean, "mean", IMAGENET_MEAN)),
            "std": _numbers(pick(std, "std", IMAGENET_STD)),
        },
        "stream": {"fps": _number(pick(fps, "fps", 0)), "max_gap_seconds": _number(max_gap_seconds)},
        "events": events if events is not None else info.get("events") or default_events(names, trained),
        "network": {"arch": arch, "width": float(info.get("width", 1.0)), "fold_div": int(info.get("fold_div", 8)),
                    "past": list(info["past"]) if info.get("past") else None, "n_segment": int(info.get("n_segment", 8))},
        "caches": [{"name": spec.name, "layer": spec.layer, "shape": list(spec.shape), "dtype": "float32",
                    "slice": [spec.start, spec.stop], "channels": spec.channels} for spec in step.cache_specs],
        "precision": precision,
        "target": target.as_dict(),
        "threads": target.threads,
        "toolchain": toolchain_versions(),
    }
    try:
        return validate(manifest, "the network's description", embedded=True)
    except BundleError as error:
        raise InputError(error.problem, found=error.found, expected=error.expected,
                         do="give export_bundle another value for it, or correct tsm_info of the network") from None
