"""A thread that reads a source: the newest frame wins for live sources, every frame counts for files."""
import threading
import time
from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """One captured frame.

    image : uint8 [h, w, 3] BGR. time : seconds of the source's own clock. index : frames read before this one.
    taken : monotonic seconds when it was read. capture_s : what reading took.
    """

    image: np.ndarray
    time: float
    index: int  # type: ignore[assignment]
    taken: float
    capture_s: float


class Capture:
    """Reads a Source in its own thread.

    Live: one slot, which a newer frame takes over; `dropped` counts those nobody saw. Files: the reader waits until the
    slot is free, so that results do not depend on this machine's speed. Memory is one frame either way.

    error : the exception that ended the reading, or None. ended : True when there will be no more frames.
    """

    def __init__(self, source):
        self.source, self.error, self.ended, self.dropped, self.read = source, None, False, 0, 0
        self._slot, self._stop, self._changed = None, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def _run(self):
        try:
            while not self._stop:
                begin = time.monotonic()
                got = self.source.read()
                taken = time.monotonic()
                if got is None:
                    break
                frame = Frame(got[0], got[1], self.read, taken, taken - begin)
                with self._changed:
                    while self._slot is not None and not self.source.live and not self._stop:
                        self._changed.wait(0.5)
                    if self._stop:
                        break
                    if self._slot is not None:
                        self.dropped += 1
                    self._slot, self.read = frame, self.read + 1
                    self._changed.notify_all()
        except Exception as error:  # handed to the thread that asks for frames
            self.error = error
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def next(self, timeout=0.25):
        """The next Frame, or None: nothing came within `timeout` seconds, or it is over (`ended`).

        Raises
        ------
        Exception
            What the source raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self.ended, timeout)
            frame, self._slot = self._slot, None
            self._changed.notify_all()
        if frame is None and self.error:
            raise self.error
        return frame

    def close(self, timeout=2.0):
        """Stop reading and let go of the source. A reader that hangs in its driver is left behind, not waited for."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self.source.close()
