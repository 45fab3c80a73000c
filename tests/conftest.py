"""Sources that behave as told, for the tests of several rooms."""
import threading

import numpy as np
import pytest


@pytest.fixture
def make_source():
    """make(frames, live=False, fps=15): a Source of uint8 frames [T, h, w, 3]; see Scripted."""
    from tsm_edge.runtimes.sources import Source

    class Scripted(Source):
        """Gives frames one by one; an exception in the list is raised; an Event is waited for."""

        def __init__(self, items, live=False, fps=15.0):
            self.items, self.live, self.fps, self.name = list(items), live, fps, "script"
            self.given, self.closed = 0, False

        def read(self):
            while self.items:
                item = self.items.pop(0)
                if isinstance(item, threading.Event):
                    item.wait(20)
                    continue
                if isinstance(item, BaseException):
                    raise item
                self.given += 1
                return np.ascontiguousarray(item), (self.given - 1) / self.fps
            return None

        def close(self):
            self.closed = True

    return Scripted
