"""test://LABEL plays a rendered gesture."""
import sys

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge.errors import InputError, MissingComponentError  # noqa: E402
from tsm_edge.runtimes.sources import flip_frame, open_source  # noqa: E402


@pytest.mark.parametrize("address", ["test://Swiping Left", "test://swiping-left", "test://SWIPING_LEFT", "test://Swiping%20Left"])
def test_rendered_gestures_repeat_exactly(address):
    one, two = (open_source(address, width=64, height=48) for _ in range(2))
    assert one.name == "test://Swiping Left" and not one.live
    for t in range(3):
        (a, time), (b, _) = one.read(), two.read()
        assert np.array_equal(a, b) and a.shape == (48, 64, 3) and time == pytest.approx(t / 12)


def test_size_rate_and_flip_are_as_asked():
    plain, turned = (open_source("test://thumb-up", width=64, height=48, fps=20, flip=flip)
                     for flip in ("none", "clockwise"))
    (a, _), (b, _) = plain.read(), turned.read()
    assert b.shape == (64, 48, 3) and np.array_equal(flip_frame(a, "clockwise"), b) and plain.read()[1] == pytest.approx(1 / 20)


def test_an_unknown_gesture_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'Swiping Left'"):
        open_source("test://swiping lift")


def test_a_missing_renderer_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tsm_edge.training.gestures.source", None)
    with pytest.raises(MissingComponentError, match=r"tsm-edge\[train\]"):
        open_source("test://Swiping Left")
