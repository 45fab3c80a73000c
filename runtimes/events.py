"""Gesture events from a stream's results. The code is the board's (device/tsm_device.py): both give the same events."""
from __future__ import annotations

from tsm_edge.errors import InputError

from .device.tsm_device import DeviceError, Event
from .device.tsm_device import GestureEvents as _GestureEvents

__all__ = ["Event", "GestureEvents"]


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
