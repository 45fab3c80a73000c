"""The step network in torch: a checkpoint, or a network, run as it is. The reference of the others."""
from __future__ import annotations

from pathlib import Path

from tsm_edge.errors import InputError, MissingComponentError

from .bundle import SCHEMA, check_manifest
from .interface import EngineStream, Model


def import_engine():
    """The module torch.

    Raises
    ------
    MissingComponentError
    """
    try:
        import torch
    except ImportError as error:
        raise MissingComponentError("the torch back end is not installed", found=str(error),
                                    expected="the package torch", do="pip install 'tsm-edge[export]'") from error
    return torch


def describe(net):
    """What the runtimes need to know of a network that carries `tsm_info`, as a manifest without files.

    Parameters
    ----------
    net : torch.nn.Module
    """
    info = getattr(net, "tsm_info", None)
    if info is None:
        raise InputError("the network does not say what it is", found=f"a {type(net).__name__} without tsm_info",
                         expected="a network from tsm_edge.create_model", do="pass manifest=, or set net.tsm_info")
    width, height = info["input_size"]
    return {
        "schema": SCHEMA, "name": str(info["name"]), "trained": bool(info.get("trained", False)),
        "classes": [str(c) for c in info.get("classes") or range(info["num_classes"])],
        "input": {"width": int(width), "height": int(height), "colour": "RGB", "resize": info.get("resize", "crop"),
                  "shorter_side": int(info.get("shorter_side") or round(min(width, height) * 256 / 224)),
                  "filter": info.get("filter", "antialias"), "mean": [float(v) for v in info["mean"]],
                  "std": [float(v) for v in info["std"]]},
        "stream": {"fps": float(info.get("fps") or 0), "max_gap_seconds": 1.0},
        "events": dict(info.get("events") or {}),
        "precision": "fp32", "caches": []}


class TorchModel(Model):
    """A step network in torch.

    Parameters
    ----------
    source : torch.nn.Module or path
        A network made with our shift (past only), or a checkpoint that `load_checkpoint` recognises.
    threads : int or None
        Sets torch's number of threads, which is one for the whole process; None: leaves it alone.
    manifest : dict or None
        Instead of what the network says of itself.
    """

    backend = "torch"

    def __init__(self, source, threads=None, manifest=None):
        torch = import_engine()
        from tsm_edge.step import StepNetwork

        net = source
        if isinstance(source, (str, Path)):
            net = _network_of(source)
        manifest = dict(manifest or describe(net))
        size = manifest["input"]
        net.eval()
        self._step = StepNetwork(net, input_size=(size["width"], size["height"])).eval()
        manifest["caches"] = [
            {"name": spec.name, "layer": spec.layer, "shape": list(spec.shape), "dtype": "float32",
             "slice": [spec.start, spec.stop], "channels": spec.channels} for spec in self._step.cache_specs]
        super().__init__(check_manifest(manifest, "the network's description"))
        self._torch, self.threads, self.bundle = torch, threads or 0, None
        if threads:
            torch.set_num_threads(threads)

    def _infer(self, x, state):
        torch = self._torch
        with torch.inference_mode():
            # A copy: the caller's buffer is overwritten by the next frame, and a cache must not look into it.
            out = self._step(torch.from_numpy(x.copy()), *(torch.from_numpy(value) for value in state.values()))
        logits, *caches = (value.numpy().copy() for value in out)
        return logits[0], dict(zip(self.cache_shapes, caches))

    def _stream(self, colour, max_gap_seconds, fps):
        stream = EngineStream(self, self._infer, colour, max_gap_seconds, fps)
        stream.threads = self.threads
        return stream


def _network_of(path):
    from tsm_edge.backbones import create_model
    from tsm_edge.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    return create_model(checkpoint.arch, checkpoint.num_classes, width=checkpoint.width, checkpoint=path)
