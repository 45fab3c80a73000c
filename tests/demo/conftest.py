"""The toy bundle, a short video made on the spot, and sources that behave as told."""
import importlib.util
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

_path = Path(__file__).resolve().parents[1] / "toy_bundle.py"
_spec = importlib.util.spec_from_file_location("toy_bundle_demo", _path)
_toys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toys)


@pytest.fixture(scope="session")
def toys():
    return _toys


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle for this machine: native where there is a compiler, else the step graph."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")
    library = _toys.toy.build_toy(tmp_path_factory.mktemp("library")) if shutil.which("gcc") else None
    return _toys.make_bundle(tmp_path_factory.mktemp("bundle") / "toy", library)


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """45 frames of 96x64 at 15 frames a second, large colours moving."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 15, (96, 64))
    for frame in _toys.smooth_frames(45, 64, 96):
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def make_source():
    """make(frames, live=False, fps=15, until=None): a Source of uint8 frames [T, h, w, 3]; see Scripted."""
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
