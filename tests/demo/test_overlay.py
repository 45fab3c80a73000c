"""The overlay fits every picture, says what it should, and leaves the middle of the picture alone."""
import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge.demo.overlay import ACCENT, AMBER, Overlay, Pen, View  # noqa: E402
from tsm_edge.jester import CLASSES  # noqa: E402

SIZES = [(640, 480), (1920, 1080), (320, 240), (480, 854), (160, 120), (1280, 300), (64, 48), (17, 33)]


def view(**changes):
    scores = np.full(27, 0.1 / 26)
    scores[16] = 0.9
    return View(**{"label": "Swiping Left", "active": True, "note": "for 0.8 s", "scores": scores, "camera_fps": 30.0,
                   "model_fps": 28.4, "step_ms": 6.1, "trained": True, **changes})


def drawn(width, height, **changes):
    return Overlay(list(CLASSES)).draw(np.full((height, width, 3), 120, np.uint8), view(**changes))


def near(image, colour):
    """How many pixels have (nearly) this colour."""
    return int((np.abs(image.astype(int) - colour).max(axis=2) < 40).sum())


@pytest.mark.parametrize("width, height", SIZES)
def test_every_size_can_be_drawn_on(width, height):
    for trained in (True, False):
        image = drawn(width, height, trained=trained, label="Turning Hand Counterclockwise")
        assert image.shape == (height, width, 3) and (image != 120).any()


def test_narrow_and_flat_pictures_can_be_drawn_on():
    for width in (1, 2, 20, 30, 38, 40, 60, 76, 90):
        for height in (1, 16, 40, 480):
            for trained in (True, False):
                for note in ("", "for 0.8 s"):
                    assert drawn(width, height, trained=trained, note=note, looks_for="Stop Sign").shape == (height, width, 3)


def test_the_legend_of_the_heat_is_there_where_it_fits():
    colours = [len(np.unique(drawn(width, 240, looks_for=looks_for).reshape(-1, 3), axis=0)) for width, looks_for in
               ((320, ""), (320, "Stop Sign"), (70, ""), (70, "Stop Sign"))]
    assert colours[1] > colours[0] + 20 and colours[3] == colours[2]


@pytest.mark.parametrize("width, height", SIZES[:4])
def test_the_middle_of_the_picture_stays_free(width, height):
    image = drawn(width, height, trained=False)
    assert (image[int(height * 0.28):int(height * 0.55)] == 120).all()


def test_an_untrained_network_has_its_banner():
    assert near(drawn(640, 480, trained=False), AMBER) > 2000 and near(drawn(640, 480), AMBER) == 0


def test_bars_are_as_long_as_their_scores():
    lengths = []
    for score in (0.2, 0.4, 0.8):
        scores = np.zeros(27)
        scores[16] = score
        lengths.append(near(drawn(640, 480, scores=scores, active=False, note=""), ACCENT))
    assert lengths[1] / lengths[0] == pytest.approx(2, rel=0.25) and lengths[2] / lengths[0] == pytest.approx(4, rel=0.25)


def test_an_active_gesture_is_marked():
    assert near(drawn(640, 480), ACCENT) > near(drawn(640, 480, active=False), ACCENT) + 200


def test_long_texts_are_fitted_to_their_room():
    pen = Pen()
    for text in ("Turning Hand Counterclockwise", "x" * 300, "Ein sehr langer Name ohne Ende"):
        fitted, size = pen.fit(text, 30, 120, least=12)
        assert pen.width(fitted, size) <= 120 and size >= 12
    assert pen.fit("ok", 20, 500) == ("ok", 20)
    assert pen.fit("", 20, 500)[0] == pen.fit("", 20, -3)[0] == pen.fit("no room", 20, 0)[0] == ""


@pytest.mark.parametrize("stroke_font", [False, True])
def test_both_fonts_draw_text_where_it_belongs(stroke_font):
    pen = Pen()
    if stroke_font:
        pen._face = None
    image = np.zeros((60, 300, 3), np.uint8)
    pen.text(image, "Swiping", 290, 40, 24, (255, 255, 255), align="right")
    rows, columns = np.nonzero(image[:, :, 0] > 100)
    width = pen.width("Swiping", 24)
    assert 290 - width - 4 <= columns.min() and columns.max() <= 294 and 10 < rows.min() and rows.max() < 54
    pen.text(image, "größer Ω 手", 5, 40, 24, (255, 255, 255))


def test_the_stroke_font_of_older_opencv_draws_the_whole_overlay(monkeypatch):
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    for width, height in SIZES:
        drawn(width, height, trained=False)
