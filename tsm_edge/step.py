"""From a clip network to a step network: one frame and the caches in, logits and the next caches out.

The shapes of the caches are found by running the network once; nothing about its blocks is assumed.
"""
from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import torch
from torch import nn

from .card import Card, check
from .errors import InputError
from .shift import TemporalShift, channel_slice, find_shifts


@dataclass(frozen=True)
class CacheSpec:
    """One cache of a step network.

    name : "cache.<layer>"; for the second call of a layer "cache.<layer>.2", and so on.
    layer : the layer whose input is shifted.
    shape : (1, fold, h, w).
    start, stop : channels [start, stop) of the layer's input come from the cache.
    channels : channels of the layer's input.
    """

    name: str
    layer: str
    shape: tuple
    start: int
    stop: int
    channels: int

    def as_dict(self):
        """The cache as manifests have it."""
        return {"name": self.name, "layer": self.layer, "shape": list(self.shape), "dtype": "float32",
                "slice": [self.start, self.stop], "channels": self.channels}


_running = threading.local()  # .step: the step that this thread is in; streams in other threads have their own


class _Step:
    """Hands each shift its cache, in the order in which they run, and keeps what they hand on."""

    def __init__(self, calls, caches):
        self.calls, self.caches, self.done, self.next_caches = calls, caches, 0, []

    def shift(self, module, x):
        # everything was measured when the network was traced: no shape is read here, so that exporters see constants
        expected, spec = self.calls[self.done] if self.done < len(self.calls) else (None, None)
        if expected is not module:
            raise _other_path(f"shift number {self.done + 1} is another one")
        self.done += 1
        if spec is None:
            return x
        cache = self.caches[len(self.next_caches)]
        # copied: the network may change x in place later in this step, after the clip network took its copy
        self.next_caches.append(x[:, spec.start:spec.stop].clone())
        return _splice(x, cache, spec)


class _Recorder:
    """Stands for the caches while they are not known yet: they are zeros of the shape that is needed."""

    def __init__(self, layers):
        self.layers, self.calls, self.names = layers, [], set()

    def shift(self, module, x):
        if x.ndim != 4:
            raise InputError(f"the shift of {self.layers[module]} does not see the maps of a frame", found=f"shape {list(x.shape)}",
                             expected="[1, channels, h, w]", do="shift the input of a 2D convolution")
        channels = int(x.shape[1])
        start, stop = channel_slice(module.past, channels, module.fold_div)
        if start == stop:  # fewer channels than folds: the shift does nothing and needs no cache
            self.calls.append((module, None))
            return x
        layer = self.layers[module]
        name, number = f"cache.{layer}", 1
        while name in self.names:
            number += 1
            name = f"cache.{layer}.{number}"
        self.names.add(name)
        spec = CacheSpec(name, layer, (1, stop - start, *map(int, x.shape[2:])), start, stop, channels)
        self.calls.append((module, spec))
        return _splice(x, torch.zeros(spec.shape, dtype=x.dtype, device=x.device), spec)


class _StepShift(TemporalShift):
    """What a TemporalShift becomes in a step network."""

    def forward(self, x):
        return _running.step.shift(self, x)


def _splice(x, cache, spec):
    parts = [x[:, :spec.start]] if spec.start else []
    parts.append(cache)
    if spec.stop < spec.channels:
        parts.append(x[:, spec.stop:])
    return torch.cat(parts, 1) if len(parts) > 1 else cache.clone()


def _other_path(found):
    return InputError("the network took another path than when its step network was made", found=found,
                      expected="the same shifts in the same order for every frame",
                      do="take decisions that depend on the data out of the network's forward")


def find_input_size(net: nn.Module, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """(width, height) in pixels: `size`, an int or a pair; where that is None, what the network knows of itself.

    Raises
    ------
    InputError
        Nobody knows it, or it is none.
    """
    if size is not None:
        return check("input_size", size)
    card = Card.of(net)
    if "input_size" not in card.said:
        raise InputError("the network's input size is not known", found="a network that does not say it, and input_size=None",
                         expected="(width, height)", do="for example input_size=(224, 224)")
    return card.input_size


def _copy(net):
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise InputError("the network cannot be copied", found=f"{type(error).__name__}: {error}"[:200],
                         expected="a network that copy.deepcopy copies",
                         do="call torch.nn.utils.remove_weight_norm or take torch.nn.utils.parametrizations.weight_norm; keep locks, "
                            "files and the like out of the network") from error


def _refuse(shifts):
    ahead = [(layer, module) for layer, module in shifts if module.future is not None]
    if ahead:
        layer, module = ahead[0]
        more = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
        raise InputError(
            "a network that looks into the future cannot run frame by frame",
            found=f"bi-directional shift of {layer}{more}: future={module.future}, past={module.past}",
            expected="shifts from the past only (future=None)",
            do="train it online (create_model(..., shift='online')), or take its past half on purpose, with a loss of "
               f"accuracy that you should measure: create_model(..., shift='online', past={module.past}, checkpoint=...)")
    for layer, module in shifts:
        if type(module) is not TemporalShift:
            raise InputError(f"the shift of {layer} has a forward of its own", found=f"class {type(module).__name__}",
                             expected="tsm_edge.shift.TemporalShift itself", do="put what it adds into a module beside it")


class StepNetwork(nn.Module):
    """The network frame by frame, as a pure function of the frame and the caches.

    Stepping through T frames from zero caches gives at every frame the logits of the clip network on the T frames at once.

    Parameters
    ----------
    net : torch.nn.Module
        Clip network made with our shift, past only: [T, 3, H, W] -> [T, classes]. It is copied, not changed.
    input_size : (width, height) in pixels, or an int; default: what the network knows of itself.

    Attributes
    ----------
    cache_specs : list of CacheSpec
        In the order in which the shifts run.
    num_classes : int
    input_size : (width, height)

    Raises
    ------
    InputError
        A shift looks into the future, or the network does not run on a single frame.
    """

    def __init__(self, net: nn.Module, input_size: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise InputError("this is no network", found=type(net).__name__, expected="a torch.nn.Module",
                             do="for example tsm_edge.create_model('mobilenet_v2', 27)")
        self.input_size = find_input_size(net, input_size)
        _refuse(find_shifts(net))
        self.net = _copy(net).eval()
        self.card = Card.of(net)
        shifts = find_shifts(self.net)
        for _, module in shifts:
            module.__class__ = _StepShift  # every place that holds this module, by whatever name, steps from now on
        self._calls, self.num_classes = self._trace({module: layer for layer, module in shifts})
        self.cache_specs = [spec for _, spec in self._calls if spec is not None]
        self.eval()

    def _trace(self, layers):
        recorder = _Recorder(layers)
        some = next((p for p in self.net.parameters() if p.is_floating_point()), torch.zeros(()))
        frame = torch.zeros(1, 3, self.input_size[1], self.input_size[0], dtype=some.dtype, device=some.device)
        try:
            with torch.no_grad():
                logits = self._run(recorder, frame)
        except InputError:
            raise
        except Exception as error:
            raise InputError("the network does not run on a single frame",
                             found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
                             expected=f"frames [T, 3, {self.input_size[1]}, {self.input_size[0]}] -> logits [T, classes]",
                             do="leave the mean over the frames of a clip to the caller; check the input size") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 1:
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError("the network's output cannot be used", found=str(found), expected="logits [T, classes], here (1, n)",
                             do="return one row of logits for each frame")
        return recorder.calls, int(logits.shape[1])

    def _run(self, step, frame):
        before = getattr(_running, "step", None)
        _running.step = step
        try:
            return self.net(frame)
        finally:
            _running.step = before

    def forward(self, frame: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """frame [1, 3, H, W] and one cache for each of `cache_specs` -> (logits [1, classes], *next caches)."""
        if len(caches) != len(self.cache_specs):
            raise InputError("a step needs all its caches", found=f"{len(caches)} caches", expected=str(len(self.cache_specs)),
                             do="start with step(frame, *step.zero_caches()) and pass on what the step returns")
        if not torch.jit.is_tracing():
            self._check(frame, caches)
        step = _Step(self._calls, caches)
        logits = self._run(step, frame)
        if step.done != len(self._calls):
            raise _other_path(f"{step.done} of {len(self._calls)} shifts ran")
        return (logits, *step.next_caches)

    def _check(self, frame, caches):
        width, height = self.input_size
        wanted = [("frame", (1, 3, height, width), frame)]
        wanted += [(spec.name, spec.shape, cache) for spec, cache in zip(self.cache_specs, caches)]
        for name, shape, tensor in wanted:
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} has the wrong shape", found=str(tuple(tensor.shape)), expected=str(shape),
                                 do="one frame at a time, in the size that the step network was made for")

    def zero_caches(self) -> list[torch.Tensor]:
        """The caches before the first frame: list of zeros [1, fold, h, w]."""
        some = next((p for p in self.net.parameters() if p.is_floating_point()), torch.zeros(()))
        return [torch.zeros(spec.shape, dtype=some.dtype, device=some.device) for spec in self.cache_specs]

    def train(self, mode: bool = True) -> StepNetwork:
        """A step network stays in evaluation mode: batch statistics of one frame would change its answers."""
        return super().train(False)
