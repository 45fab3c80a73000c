"""The hand-made model of toy_plan.c, built for this machine."""
import shutil

import c_toy
import pytest


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The toy model in fp32, built with the host's gcc."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    toy = c_toy.Toy(c_toy.build_toy(tmp_path_factory.mktemp("toy")))
    assert toy.create() == (0, "")
    return toy


@pytest.fixture(scope="session")
def kit():
    """What builds such libraries, for tests that want their own."""
    return c_toy
