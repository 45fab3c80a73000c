"""The toy bundle for all tests of the runtimes."""
import importlib.util
import shutil
from pathlib import Path

import pytest

_path = Path(__file__).resolve().parents[1] / "toy_bundle.py"
_spec = importlib.util.spec_from_file_location("toy_bundle", _path)
_toy_bundle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toy_bundle)


@pytest.fixture(scope="session")
def toys():
    """The module toy_bundle."""
    return _toy_bundle


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory):
    """The toy network compiled for this machine."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    return _toy_bundle.toy.build_toy(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory):
    """A bundle without a library."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    return _toy_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "onnx")


@pytest.fixture(scope="session")
def native_bundle(tmp_path_factory, toy_library):
    """A bundle with a library for this machine."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    return _toy_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "native", toy_library)
