import numpy as np
import pytest

from tsm_edge.picture import geometry, seen, shorter_side


def spec(resize="crop"):
    return {"width": 64, "height": 64, "resize": resize, "shorter_side": 80}


@pytest.mark.parametrize("resize, part", [("crop", (40, 360, 140, 460)), ("squash", (0, 400, 0, 600))])
def test_the_part_that_the_network_sees(resize, part):
    # by hand: 600x400 becomes 120x80; the middle 64x64 is what lies 320/2 around (300, 200)
    assert seen(400, 600, spec(resize)) == part


def test_a_crop_lies_within_the_scaled_picture_in_its_middle():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, tall, wide, side = (int(v) for v in rng.integers(16, 500, 5))
        asked = {"width": wide, "height": tall, "resize": "crop", "shorter_side": side}
        scaled_h, scaled_w, top, left = geometry(height, width, asked)
        assert 0 <= top <= top + tall <= scaled_h and 0 <= left <= left + wide <= scaled_w
        assert abs(2 * top + tall - scaled_h) <= 1 and abs(2 * left + wide - scaled_w) <= 1
        scale = max(side / min(height, width), tall / height, wide / width)  # as little as will do, both ways alike
        assert abs(scaled_h - height * scale) <= 0.5 + 1e-9 and abs(scaled_w - width * scale) <= 0.5 + 1e-9


def test_the_usual_shorter_side():
    assert [shorter_side(*size) for size in ((224, 224), (112, 224), (64, 64))] == [256, 128, 73]
