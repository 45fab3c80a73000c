"""The step network in torch: a checkpoint, or a network, run as it is. The reference of the others."""
from __future__ import annotations

from pathlib import Path

from tsm_edge.card import Card
from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.manifest import SCHEMA, validate
from tsm_edge.runtimes.interface import EngineStream, Model


def import_engine():
    """The module torch.

    Raises
    ------
    MissingComponentError
    """
    try:
        import torch
    except ImportError as error:
        raise MissingComponentError("the torch engine is not installed", found=str(error),
                                    expected="the package torch", do="pip install 'tsm-edge[export]'") from error
    return torch


def describe(net, specs=(), outputs=None):
    """A manifest without files and verification, for a network that runs as it is.

    Parameters
    ----------
    net : torch.nn.Module
    specs : list of CacheSpec
        Of its step network.
    outputs : int or None
        Number of logits; None: as the network's card says.
    """
    return {"schema": SCHEMA, **Card.of(net).manifest(outputs), "caches": [spec.as_dict() for spec in specs], "precision": "fp32",
            "target": {}, "threads": 1, "toolchain": {}}


class TorchModel(Model):
    """A step network in torch.

    Parameters
    ----------
    source : torch.nn.Module or path
        A network made with our shift (past only), or a checkpoint that `load_checkpoint` recognises.
    threads : int or None
        Sets torch's number of threads, which is one for the whole process; None: leaves it alone.
    manifest : dict or None
        Instead of what the network's card says.
    """

    engine = "torch"

    def __init__(self, source, threads=None, manifest=None):
        torch = import_engine()
        from tsm_edge.attention import FeatureTap
        from tsm_edge.step import StepNetwork

        net = _network_of(source) if isinstance(source, (str, Path)) else source
        size = None if manifest is None else (manifest["input"]["width"], manifest["input"]["height"])
        self._step = StepNetwork(net, size).eval()
        try:
            self._tap = FeatureTap(self._step.net)  # the step's own copy of the network
        except InputError:
            self._tap = None  # a network of another make: it runs, without attention
        manifest = manifest or describe(net, self._step.cache_specs, self._step.num_classes)
        super().__init__(validate(manifest, "the network's description", True))
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
        return TorchStream(self, colour, max_gap_seconds, fps)


class TorchStream(EngineStream):
    """A stream that can also say where its network looked in the last step."""

    def __init__(self, model, colour, max_gap_seconds, fps):
        self._features = None
        super().__init__(model, self._watched, colour, max_gap_seconds, fps)

    def _watched(self, x, state):
        out = self.model._infer(x, state)
        self._features = self.model._tap.take() if self.model._tap else None
        return out

    def _forget(self):
        super()._forget()
        self._features = None

    def attention(self):
        from tsm_edge.attention import class_maps, split_network

        _, head = split_network(self.model._step.net)
        if self._features is None:
            raise InputError("there is no attention yet", found="no step since the stream began", expected="a step",
                             do="call step() first")
        with self.model._torch.inference_mode():
            return class_maps(self._features, head)[0].numpy()


def _network_of(path):
    from tsm_edge.checkpoints import load_checkpoint
    from tsm_edge.models import create_model

    return create_model(load_checkpoint(path).card.name, checkpoint=path)
