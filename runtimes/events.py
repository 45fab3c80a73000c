"""Gesture events from a stream's results. The code is the board's (device/tsm_device.py): both give the same events."""
from __future__ import annotations

from tsm_edge.errors import InputError

from .device.tsm_device import DeviceError, Event
from .device.tsm_device import GestureEvents as _GestureEvents

__all__ = ["Event", "GestureEvents", "JESTER_DEMO"]

# The smoothing of the published online demo for its 27 Jester classes: the logits of 12 frames summed; both directions
# of rolling and turning a hand, and pulling it in, are masked; "Doing other things" counts as "No gesture".
JESTER_DEMO = {"window": 12, "hold": 2, "on": 0.0, "off": 0.0, "merge": {"0": 2}, "ignore": [7, 8, 21, 22, 3],
               "background": [2]}


class GestureEvents(_GestureEvents):
    __doc__ = _GestureEvents.__doc__

    def __init__(self, classes, config=None, fps=0.0):
        try:
            super().__init__(classes, config, fps)
        except DeviceError as error:
            raise InputError(error.problem, found=error.found, expected=error.expected, do=error.do) from error

    @classmethod
    def of(cls, model, fps=0.0):
        """With the configuration of a model's manifest."""
        fps = fps or model.manifest.get("stream", {}).get("fps") or 0.0
        return cls(model.classes, model.manifest.get("events"), fps)

    def over(self, results):
        """Iterate over the events of an iterable of results, or of (time, result) pairs."""
        for item in results:
            time, result = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            yield from self.update(result, time)
        yield from self.finish()
