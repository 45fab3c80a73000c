"""Real clips: folders with any names, mirrored, at any rate, and which events come of each."""
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tsm_edge.errors import TsmEdgeError
from tsm_edge.runtimes.events import GestureEvents
from tsm_edge.training.evaluate import clips as clip_room
from tsm_edge.training.evaluate import films
from tsm_edge.training.evaluate import run as ev

CLASSES = ["left", "right", "rest"]
SETTINGS = {"window": 1, "hold": 1, "on": 0.5, "off": 0.4, "merge": {}, "ignore": [], "background": [2]}


class Sides:
    """Sees which half of the picture is bright: "left", "right", or neither: "rest". It leaves out frames faster than 10 a second."""

    net, shift, training, classes = None, "online", {}, CLASSES
    manifest = {"stream": {"fps": 10.0}, "events": SETTINGS, "network": {"n_segment": 4}}

    def events(self, fps=0.0):
        return GestureEvents(CLASSES, SETTINGS, fps)

    def stream(self):
        last = [-1.0]

        def step(frame, now):
            skipped = now - last[0] < 0.099
            if not skipped:
                last[0] = now
            halves = frame[:, : frame.shape[1] // 2].mean(), frame[:, frame.shape[1] // 2:].mean()
            wins = int(np.argmax(halves)) if max(halves) > 60 else 2
            return SimpleNamespace(skipped=skipped, logits=10 * np.eye(3, dtype=np.float32)[wins], reset=False)

        return SimpleNamespace(step=step, close=lambda: None)


def film(side, frames=20):
    """[20, 24, 32, 3]: dark, in the second half one side is bright."""
    out = np.zeros((frames, 24, 32, 3), np.uint8)
    if side != "rest":
        out[frames // 2:, :, slice(0, 16) if side == "left" else slice(16, 32)] = 200
    return out


def write(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i + 1}.png"), frame)


@pytest.fixture
def data(tmp_path):
    """Folders of frames: left, to-the-right (no class of the model), nothing, and one that nobody knows."""
    for k in range(2):
        write(tmp_path / "left" / f"{k}", film("left"))
        write(tmp_path / "to-the-right" / f"{k}", film("right"))
    write(tmp_path / "nothing" / "0", film("rest", 120))
    write(tmp_path / "nothing" / "1", film("left", 120))
    write(tmp_path / "unknown" / "0", film("left"))
    return tmp_path


def options(data, *more):
    return ev.parser().parse_args(["x", "--data", str(data), *map(str, more)])


def measured(data, *more):
    args, model = options(data, *more), Sides()
    ev.check(args)
    whole = clip_room.open_clips(args, model).films
    return ev._play(args, model, whole)


MAP = ("--map", "to-the-right=right", "nothing=none", "unknown=-")


def test_events_of_whole_clips_are_counted_and_other_things_apart(data):
    found = measured(data, *MAP)
    assert found["clip_events"] == {"clips": 4, "right": 4, "wrong": 0, "none": 0, "mixed": 0, "false_events": 1,
                                    "false_seconds": pytest.approx(20.0), "false_per_minute": pytest.approx(3.0)}
    rows = {(r["path"].split("/")[-2], r["path"][-1]): r for r in found["results"]}
    assert rows["left", "0"]["events"] == [(pytest.approx(10 / 12), "left")]  # folders of frames: 12 a second
    assert rows["nothing", "1"]["label"] is None and len(rows) == 6


def test_mirrored_and_at_other_rates(data):
    assert measured(data, *MAP, "--flip", "horizontal")["clip_events"]["wrong"] == 4
    found = measured(data, *MAP, "--input-rate", 5, "--fps", 2, 50)
    assert found["results"][0]["seconds"] == pytest.approx(4.0)
    assert found["rates"]["2"]["right"] == found["rates"]["50"]["right"] == 4
    assert found["rates"]["50"]["false_seconds"] == pytest.approx(48.0)


def test_a_short_clip_can_be_held(tmp_path):
    write(tmp_path / "left" / "0", film("left", 2)[:1])
    write(tmp_path / "right" / "0", film("right", 4)[1:3])  # bright in its last frame alone, which comes too soon after the other
    assert measured(tmp_path)["clip_events"]["none"] == 2
    assert measured(tmp_path, "--hold-last", 0.5)["clip_events"]["right"] == 1


def test_folders_that_are_no_class_are_said_and_left_out(data, capsys):
    model = Sides()
    whole = clip_room.open_clips(options(data), model)
    assert len(whole) == 2 and len(whole.films.items) == 2
    assert "left out, no classes of the model: nothing, to-the-right, unknown" in capsys.readouterr().err
    for more, words in ((("--map", "left=up"), "--map cannot be used"), (("--map", "nowhere=left"), "not there"),
                        (("--map", "left"), "--map cannot be used")):
        with pytest.raises(TsmEdgeError, match=words):
            clip_room.open_clips(options(data, *more), model)
    (data / "left").rename(data / "other")
    with pytest.raises(TsmEdgeError, match="no folder of"):
        clip_room.open_clips(options(data), model)


def test_wrong_options_are_refused(data):
    for more in (("--flip", "sideways"), ("--fps", "0"), ("--hold-last", "-1"), ("--at-least", "2"), ("--input-rate", "0")):
        with pytest.raises(TsmEdgeError):
            ev.check(options(data, *more))
    with pytest.raises(TsmEdgeError, match="no files"):
        ev.check(options("gestures", "--fps", "8"))


def test_a_figure_is_a_check_only_with_a_threshold(capsys):
    args = SimpleNamespace(at_least=None, json=False)
    assert ev._verdict(args, {"clips": 4, "top1": 0.0}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "MEASURED top-1 0.00% over 4 clips"
    args.at_least = 0.5
    assert ev._verdict(args, {"clips": 4, "top1": 0.25}) == 1 and "FAILED" in capsys.readouterr().out
    assert ev._verdict(args, {"clips": 4, "top1": 0.5}) == 0 and "PASSED" in capsys.readouterr().out


def test_the_words_and_the_table():
    outcomes = [films.Outcome("a", "left", [(1.0, "left"), (2.0, "right")], 3.0, "right", True),
                films.Outcome("b", "left", [], 3.0, "none", False), films.Outcome("c", None, [(0.5, "left")], 30.0, "wrong", False)]
    text = films.sentence(films.figures(outcomes))
    assert text == ("right event in 1 of 2 clips (50%, 1 of them with a wrong one beside it), wrong in 0, none in 1; "
                    "1 false events in 0.5 minutes of other things")
    assert films.table(outcomes)[1] == ("a", "left", "right", "left at 1.0 s, right at 2.0 s")


def test_the_command_plays_real_files(checkpoint, clips, capsys):
    pytest.importorskip("torch", reason="torch (extra [train]) is not installed")
    assert ev._main([str(checkpoint()), "--data", str(clips), "--per-clip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = found["clip_events"]
    assert len(found["results"]) == 15 and kinds["right"] + kinds["wrong"] + kinds["none"] == kinds["clips"]


def test_animated_pictures_are_clips_too(tmp_path):
    if not hasattr(cv2, "imwriteanimation"):
        pytest.skip("this OpenCV writes no GIFs")
    animation = cv2.Animation()
    animation.frames, animation.durations = list(film("left")[..., ::-1].copy()), np.full(20, 100)
    (tmp_path / "left").mkdir()
    assert cv2.imwriteanimation(str(tmp_path / "left" / "a.gif"), animation)
    found = measured(tmp_path)
    assert found["clip_events"]["right"] == 1 and found["results"][0]["seconds"] == pytest.approx(2.0, abs=0.15)
