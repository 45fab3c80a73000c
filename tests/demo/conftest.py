"""The toy bundle for this machine."""
import shutil

import pytest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, toys):
    """A bundle for this machine: native where there is a compiler, else the step graph."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")
    library = toys.toy.build_toy(tmp_path_factory.mktemp("library")) if shutil.which("gcc") else None
    return toys.make_bundle(tmp_path_factory.mktemp("bundle") / "toy", library)
