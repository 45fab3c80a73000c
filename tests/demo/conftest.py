"""The toy bundle, and a short video made on the spot."""
import importlib.util
import shutil
from pathlib import Path

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
