"""tsm-record --guide: what it shows, what it finds wrong with a clip, when a clip is made again."""
import sys
from types import SimpleNamespace

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")

from tsm_edge.training import guide, record  # noqa: E402
from tsm_edge.training.gestures.clips import SPLITS, render_clip  # noqa: E402

ROOM = np.random.default_rng(0).integers(90, 160, (120, 160, 3), np.uint8)

CHECKS = np.kron(np.indices((8, 10)).sum(0) % 2, np.ones((15, 16)))[..., None].repeat(3, 2).astype(np.uint8) * 150 + 60


def film(move, n=20):
    """A room in which a bright block moves: move(i) -> (x, y) of its corner, None: it is not there."""
    out = []
    for i in range(n):
        frame, at = ROOM.copy(), move(i)
        if at:
            cv2.rectangle(frame, at, (at[0] + 24, at[1] + 24), (250, 240, 230), -1)
        out.append(frame)
    return out


def test_a_good_clip_has_nothing_wrong():
    assert guide.problems(film(lambda i: (20 + 5 * i, 50)), "Swiping Left") == []
    rendered = list(render_clip("Swiping Left", 24, (160, 120), SPLITS["val"][0] + 3, 8.0))
    assert guide.problems(rendered, "Swiping Left") == []


@pytest.mark.parametrize("frames, words", [
    (film(lambda i: None), "nothing moved"), (film(lambda i: (60, 60)), "nothing moved"),
    ([f // 8 for f in film(lambda i: (20 + 5 * i, 50))], "dark"),
    ([np.roll(CHECKS, 9 * i, 1) for i in range(20)], "whole picture moved"),
    (film(lambda i: (152, 5 * i)), "edge"),
])
def test_what_is_wrong_is_said(frames, words):
    assert any(words in text for text in guide.problems(frames, "Swiping Left"))


def test_rest_needs_no_movement():
    assert guide.problems(film(lambda i: None), "No gesture") == []


def test_the_gesture_is_in_the_corner_and_moves():
    shown = guide.Guide("swiping-left")
    a, b = ROOM.copy(), ROOM.copy()
    shown.draw(a, 0.0)
    shown.draw(b, 1.2)
    assert np.array_equal(a[:90], ROOM[:90]) and np.array_equal(a[:, :100], ROOM[:, :100])  # unmirrored: at the right
    assert not np.array_equal(a[90:, 120:], b[90:, 120:])
    nothing = guide.Guide("blow a kiss")
    nothing.draw(a, 0.0)
    assert nothing.frames is None


class Camera:
    """Gives the frames of a first clip in which nothing moves, then of one with movement."""

    name, live, fps = "camera", True, 20.0

    def __init__(self, clock):
        self.count, self.clock, self.moving = 0, clock, False

    def read(self):
        self.count += 1
        self.clock[0] += 0.05
        return film(lambda i: (20 + 4 * (self.count % 25), 50) if self.moving else None, 1)[0], self.clock[0]

    def close(self):
        pass


@pytest.mark.parametrize("answer, clips", [("", ["moving"]), ("n", ["still"])])
def test_a_clip_with_something_wrong_is_made_again_if_wanted(monkeypatch, answer, clips):
    clock, asked = [0.0], []
    camera = Camera(clock)
    monkeypatch.setattr(record.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    def ask(text):
        asked.append(text)
        camera.moving = True
        return answer

    monkeypatch.setattr("builtins.input", ask)
    argv = "--guide --headless --count 1 --seconds 1 --pause 0".split()
    args = record.parser().parse_args(["--label", "Swiping Left", *argv])
    got = ["moving" if guide.moving(frames).any() else "still" for frames, *_ in record._from_camera(args, camera)]
    assert got == clips and len(asked) == 1


def test_without_anyone_to_ask_it_is_kept_and_said(tmp_path, capsys):
    argv = ["--label", "No gesture", "--output", str(tmp_path), "--source", "test://swiping-left", "--count", "1", "--guide", "--headless"]
    assert record._main(argv) == 0
    said = capsys.readouterr().err
    assert "Left and right are your own" in said and "0000.mp4" in said
