"""The toy bundle for all tests of the runtimes."""
import shutil

import pytest


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory, toys):
    """The toy network compiled for this machine."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    return toys.toy.build_toy(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory, toys):
    """A bundle without a library."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    return toys.make_bundle(tmp_path_factory.mktemp("bundle") / "onnx")


@pytest.fixture(scope="session")
def native_bundle(tmp_path_factory, toys, toy_library):
    """A bundle with a library for this machine."""
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    return toys.make_bundle(tmp_path_factory.mktemp("bundle") / "native", toy_library)
