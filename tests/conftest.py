"""For the tests of several rooms: the toy bundle, a video, sources that behave as told, a Python with little installed."""
import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def toys():
    """The module toy_bundle."""
    import toy_bundle

    return toy_bundle


@pytest.fixture(scope="session")
def video(tmp_path_factory, toys):
    """45 frames of 96x64 at 15 frames a second, large colours moving."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 15, (96, 64))
    for frame in toys.smooth_frames(45, 64, 96):
        writer.write(frame)
    writer.release()
    return path


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


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """bare_python(*packages): (command, environment) of this Python without what is installed but numpy and those packages."""
    def make(*packages):
        site = tmp_path_factory.mktemp("site")
        for package in ("numpy", *packages):
            place = Path(importlib.util.find_spec(package).origin).parent
            for path in (place, *place.parent.glob("*.libs")):
                if not (site / path.name).exists():
                    (site / path.name).symlink_to(path)
        return [sys.executable, "-s", "-S"], {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    return make
