"""The manifest of a network: what it is, what it expects, how its answers become events."""
from __future__ import annotations

import sys

from tsm_edge.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BACKGROUND_NAMES = {"no gesture", "doing other things", "background", "nothing"}


def network_info(net, input_size=None, classes=None):
    """(info, (width, height)): what the network knows of itself, with defaults for a network that is not ours.

    Raises
    ------
    InputError
        No input size is known.
    """
    info = dict(getattr(net, "tsm_info", None) or {})
    size = input_size or info.get("input_size")
    if size is None:
        raise InputError("the network's input size is not known", found="no tsm_info on the network and no input_size",
                         expected="(width, height)", do="pass input_size=(224, 224) to export_bundle")
    if isinstance(size, int):
        size = (size, size)
    return info, (int(size[0]), int(size[1]))


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


def toolchain_versions():
    """Versions of everything that shapes the library."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("tsm-edge", "apache-tvm", "torch", "onnx", "ziglang", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return versions


def describe(net, step, target, outputs, *, name=None, classes=None, input_size=None, precision="fp32", trained=None,
             resize=None, filter=None, mean=None, std=None, fps=None, max_gap_seconds=1.0, events=None):
    """The manifest as a dict, without `files` and `verification`.

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
        Class names that do not fit the outputs.
    """
    from tsm_edge.jester import CLASSES
    from tsm_edge.runtimes.preprocess import shorter_side

    info, size = network_info(net, input_size)
    names = list(classes if classes is not None else info.get("classes") or [f"class {i}" for i in range(outputs)])
    if len(names) != outputs:
        raise InputError("the class list does not fit the network", found=f"{len(names)} names",
                         expected=f"{outputs}, one for each output", do="pass one name for each output, in their order")
    trained = bool(info.get("trained", True) if trained is None else trained)
    arch = info.get("name") or type(net).__name__

    def pick(value, key, default):
        return info.get(key, default) if value is None else value

    resize = pick(resize, "resize", "crop")
    if name is None:
        known = list(names) == list(CLASSES) and trained
        name = info.get("model_name") or arch + ("" if trained else "-untrained") + ("-jester" if known else "")
    return {
        "schema": 1,
        "name": name,
        "trained": trained,
        "classes": names,
        "input": {
            "width": size[0], "height": size[1], "colour": "RGB", "resize": resize,
            "shorter_side": shorter_side(*size) if resize == "crop" else 0,
            "filter": pick(filter, "filter", "antialias"),
            "mean": [float(v) for v in pick(mean, "mean", IMAGENET_MEAN)],
            "std": [float(v) for v in pick(std, "std", IMAGENET_STD)],
        },
        "stream": {"fps": float(pick(fps, "fps", 0)), "max_gap_seconds": float(max_gap_seconds)},
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
