"""Real clips: folders with any names, mirrored, at any rate, and which events come of each."""
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tsm_edge.errors import TsmEdgeError
from tsm_edge.runtimes.events import GestureEvents
from tsm_edge.training.data.listing import Item
from tsm_edge.training.evaluate import clips as clip_room
from tsm_edge.training.evaluate import films
from tsm_edge.training.evaluate import run as ev

CLASSES = ["left", "right", "rest"]
SETTINGS = {"window": 1, "hold": 1, "on": 0.5, "off": 0.4, "merge": {}, "ignore": [], "background": [2]}


class Sides:
    """Sees which half of the picture is bright: "left", "right", or neither: "rest". It leaves out frames faster than 10 a second."""

    net, shift, training, classes = None, "online", {}, CLASSES
    manifest = {"stream": {"fps": 10.0}, "events": SETTINGS, "network": {"n_segment": 4}}

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


def measured(data, *more, model=None):
    """What is said of each clip, the answers of top-1 left out."""
    args, model = options(data, *more), model or Sides()
    ev.check(args)
    clips = clip_room.open_clips(args, model)
    ev.check_clips(args, clips)
    return ev._each(args, model, clips, [])


MAP = ("--map", "to-the-right=right", "nothing=none", "--map", "unknown=-")


def test_events_of_whole_clips_are_counted_and_other_things_apart(data):
    found = measured(data, *MAP)
    assert found["clip_events"] == {"clips": 4, "right": 4, "wrong": 0, "none": 0, "mixed": 0, "false_events": 1,
                                    "false_seconds": pytest.approx(20.0), "false_per_minute": pytest.approx(3.0),
                                    "whole_top1": 1.0, "steps_per_second": pytest.approx(6)}  # every other frame
    rows = {(r["path"].split("/")[-2], r["path"][-1]): r for r in found["results"]}
    assert rows["left", "0"]["events"] == [(pytest.approx(10 / 12), "left")]  # folders of frames: 12 a second
    assert rows["nothing", "1"]["label"] is None and rows["nothing", "1"]["other"] and len(rows) == 6


def test_mirrored_and_at_other_rates(data):
    mirrored = measured(data, *MAP, "--flip", "horizontal")["clip_events"]
    assert mirrored["wrong"] == 4 and mirrored["whole_top1"] == 0
    found = measured(data, *MAP, "--input-rate", 5, "--fps", 2, "--fps", 50)
    assert found["results"][0]["seconds"] == pytest.approx(4.0)
    assert found["rates"]["2"]["right"] == found["rates"]["50"]["right"] == 4
    assert found["rates"]["50"]["false_seconds"] == pytest.approx(48.0)
    assert found["rates"]["2"]["steps_per_second"] == pytest.approx(2) and found["rates"]["50"]["steps_per_second"] == pytest.approx(10)


def test_a_short_clip_can_be_held(tmp_path):
    write(tmp_path / "left" / "0", film("left", 2)[:1])
    write(tmp_path / "right" / "0", film("right", 4)[1:3])  # bright in its last frame alone, which comes too soon after the other
    assert measured(tmp_path)["clip_events"]["none"] == 2
    found = measured(tmp_path, "--hold-last", 0.5)
    assert found["clip_events"]["right"] == 1 and [r["seconds"] for r in found["results"]] == pytest.approx([1 / 12 + 0.5, 2 / 12 + 0.5])


def test_an_event_of_the_last_frame_counts(tmp_path):
    write(tmp_path / "left" / "0", film("left", 24)[:13])  # the last is the first bright one, and one of those taken
    assert measured(tmp_path)["results"][0]["events"] == [(pytest.approx(1.0), "left")]


def test_folders_that_are_no_class_are_said_and_left_out(data, capsys):
    model = Sides()
    whole = clip_room.open_clips(options(data), model)
    assert len(whole) == 2 and len(whole.films.items) == 2
    said = capsys.readouterr().err
    assert "left out, no classes of the model: nothing, to-the-right, unknown (--map 'nothing=CLASS'" in said
    assert "12 frames a second assumed" in said
    for more, words in ((("--map", "left=up"), "--map cannot be used"), (("--map", "nowhere=left"), "not there"),
                        (("--map", "left"), "--map cannot be used"), (("--map", "unknown=left", "unknown=-"), "after another")):
        with pytest.raises(TsmEdgeError, match=words):
            clip_room.open_clips(options(data, *more), model)
    with pytest.raises(TsmEdgeError, match="nothing in .*is a class(.|\n)*leaves all out"):
        clip_room.open_clips(options(data, "--map", *(f"{name.name}=-" for name in data.iterdir())), model)
    (data / "left").rename(data / "other")
    with pytest.raises(TsmEdgeError, match="nothing in .*is a class"):
        clip_room.open_clips(options(data), model)


def test_what_is_assumed_of_folders_is_said_only_then(data, capsys):
    assert measured(data, *MAP)["assumed_rate"] == 12
    capsys.readouterr()
    assert measured(data, *MAP, "--input-rate", 12)["assumed_rate"] is None
    assert capsys.readouterr().err == ""


def test_labels_of_a_list_are_mapped_too(data, capsys):
    listed = data / "list.csv"
    listed.write_text("left/0,left\nto-the-right/0,swipe right\nnothing/1,Cooking\nunknown/0,what?\nleft/1,\n")
    found = measured(listed, "--map", "swipe right=right", "Cooking=none")
    assert [(r["label"], r["result"], r["other"]) for r in found["results"]] == [
        ("left", "right", False), ("right", "right", False), (None, "wrong", True), ("left", "right", False)]
    assert "left out, no classes of the model: what? (" in capsys.readouterr().err
    with pytest.raises(TsmEdgeError, match="not there(.|\n)*Cooking"):
        measured(listed, "--map", "to-the-right=right")


def test_a_background_class_is_other_things_and_a_merged_one_the_other(tmp_path):
    for name in ("left", "right", "rest"):
        write(tmp_path / name / "0", film("right" if name == "rest" else name))
    class Merging(Sides):
        manifest = {**Sides.manifest, "events": {**SETTINGS, "background": [2], "merge": {0: 1}}}

        def events(self, fps=0.0):
            return GestureEvents(CLASSES, self.manifest["events"], fps)

    found = measured(tmp_path, model=Merging())
    rows = {row["label"]: row for row in found["results"]}
    assert rows["left"]["events"][0][1] == "right" and rows["left"]["result"] == "right"
    assert rows["rest"]["other"] and found["clip_events"]["false_events"] == 1 and found["clip_events"]["clips"] == 2


def test_a_wrong_event_beside_the_right_one_is_said_and_alone_it_is_wrong(tmp_path):
    both = np.concatenate([film("left"), film("right")])
    for name in ("left", "right"):
        write(tmp_path / name / "0", both)
    write(tmp_path / "right" / "1", film("left"))
    found = measured(tmp_path)
    assert [(row["result"], row["mixed"]) for row in found["results"]] == [("right", True), ("right", True), ("wrong", False)]
    assert [what for _, what in found["results"][1]["events"]] == ["left", "right"]
    assert [found["clip_events"][kind] for kind in ("clips", "right", "mixed", "wrong", "none")] == [3, 2, 2, 1, 0]


def test_gestures_that_the_rule_never_reports_are_said(data, capsys):
    class Silent(Sides):
        manifest = {**Sides.manifest, "events": {**SETTINGS, "ignore": [1]}}

    measured(data, *MAP, model=Silent())
    assert "never reports right: no right event" in capsys.readouterr().err


def test_a_clip_that_cannot_be_read_is_named_and_left_out(data, capsys):
    (data / "left" / "broken.mp4").write_bytes(b"no film")
    (data / "left" / "0" / "20.png").write_bytes(b"no picture")  # one that top-1 does not look at
    found = measured(data, *MAP)
    assert found["clip_events"]["clips"] == found["clip_events"]["right"] == 3
    assert {path.split("left/")[1] for path in found["unreadable"]} == {"broken.mp4", "0"}
    said = capsys.readouterr().err
    assert "skipped 1 unreadable of 5 clips" in said and "not played" in said and "20.png" in said and said.count("broken.mp4") == 1
    for path in (data / "nothing" / "0", data / "nothing" / "1"):
        (path / "1.png").write_bytes(b"")
    with pytest.raises(TsmEdgeError, match="no clip can be played"):
        measured(data, "--map", "nothing=none", "left=-", "to-the-right=-", "unknown=-")


def test_footage_without_classes_has_false_events_alone(data):
    only = ("--map", "nothing=none", "left=-", "to-the-right=-", "unknown=-")
    found = measured(data, *only)["clip_events"]
    assert (found["clips"], found["false_events"], found["whole_top1"]) == (0, 1, None)
    for more in (("--stream", 5), ("--confusion", "c.png"), ("--at-least", 0.5), ("--backwards",)):
        args = options(data, *only, *more)
        with pytest.raises(TsmEdgeError, match="needs clips of a class"):
            ev.check_clips(args, clip_room.open_clips(args, Sides()))


def test_wrong_options_are_refused(data, checkpoint):
    for more in (("--flip", "sideways"), ("--fps", "0"), ("--hold-last", "-1"), ("--at-least", "2"), ("--input-rate", "0")):
        with pytest.raises(TsmEdgeError):
            ev.check(options(data, *more))
    for more in (("--fps", "8"), ("--flip", "horizontal"), ("--map", "a=b"), ("--hold-last", "1"), ("--input-rate", "9"), ("--per-clip",)):
        with pytest.raises(TsmEdgeError, match=f"no files(.|\n)*{more[0]}"):
            ev.check(options("gestures", *more))
    with pytest.raises(TsmEdgeError, match="only online networks are played"):
        ev._main([str(checkpoint(shift="offline")), "--data", str(data), "--fps", "8"])


def test_a_figure_is_a_check_only_with_a_threshold(capsys):
    args = SimpleNamespace(at_least=None, json=False)
    assert ev._verdict(args, {"clips": 4, "top1": 0.0}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "MEASURED top-1 0.00% over 4 clips"
    args.at_least = 0.5
    assert ev._verdict(args, {"clips": 4, "top1": 0.25}) == 1 and "FAILED" in capsys.readouterr().out
    assert ev._verdict(args, {"clips": 4, "top1": 0.5}) == 0 and "PASSED" in capsys.readouterr().out


def test_the_words_and_the_tables():
    outcomes = [films.Outcome("a", "left", "left", "left", [(1.0, "left"), (2.0, "right")], 3.0, 30, False, "right", True),
                films.Outcome("b", "left", "rest", "rest", [], 3.0, 24, False, "none", False),
                films.Outcome("c", None, None, "left", [(0.5, "left")], 30.0, 306, True, "wrong", False)]
    figures = films.figures(outcomes)
    assert films.sentence(figures) == ("right event in 1 of 2 clips (50%, 1 of them with a wrong one beside it), wrong in 0, none in 1; "
                                       "1 false events in 0.5 minutes of other things")
    assert films.sentence({"clips": 0, "false_seconds": 4.4, "false_events": 0}) == "0 false events in 4 seconds of other things"
    rows = [line.split() for line in films.per_clip([o._asdict() for o in outcomes])]
    assert rows[1:] == [["a", "left", "left", "right", "left", "at", "1.0", "s,", "right", "at", "2.0", "s"],
                        ["b", "left", "rest", "none"], ["c", "-", "-", "false", "left", "at", "0.5", "s"]]
    rows = [line.split() for line in films.by_rate(figures, {"5": figures})]
    assert rows[2] == ["5", "fps", "10.0", "50%", "1", "of", "2", "0", "1", "2.0"] and rows[1][:2] == ["as", "filmed"]


@pytest.mark.parametrize("shift", ["online", None, "offline"])
def test_each_clip_has_its_answer(checkpoint, clips, tiny, capsys, shift):
    assert ev._main([str(checkpoint(shift=shift)), "--data", str(clips), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["results"]
    assert len(rows) == 15 and {row["label"] for row in rows} == set(tiny.CLASSES) and found["unreadable"] == {}
    assert np.mean([row["answer"] == row["label"] for row in rows]) == pytest.approx(found["top1"])
    assert all(row["label"] in row["path"] for row in rows)
    if shift == "online":
        kinds = found["clip_events"]
        assert kinds["right"] + kinds["wrong"] + kinds["none"] == kinds["clips"] > 0
    assert ("events" in rows[0]) == ("clip_events" in found) == (shift == "online")
    assert ev._main([str(checkpoint(shift=shift)), "--data", str(clips), "--per-clip"]) == 0
    out = capsys.readouterr().out
    assert all(row["path"] in out for row in rows) and out.splitlines()[-1].startswith("MEASURED top-1")


def test_the_events_are_those_that_the_demo_reports(checkpoint, clips):
    """The demo's way: pictures as OpenCV gives them at the source's times, and the model's own rule."""
    import tsm_edge
    from tsm_edge.runtimes.sources import open_source

    model, some = tsm_edge.load(checkpoint(fps=12.0)), 0
    model.manifest["events"].update(window=2, hold=1, on=0.0, off=0.0, background=[])
    for path in sorted(clips.glob("*/000.avi")):
        source, stream, events, wanted = open_source(str(path)), model.stream("BGR"), GestureEvents.of(model), []
        while (got := source.read()) is not None:
            wanted += [(e.start, e.label) for e in events.update(stream.step(*got), got[1]) if e.kind == "start"]
        found = films.outcome(model, Item(str(path), 0), clip_room.Film(path))
        assert found.events == wanted and found.steps > 1
        some += len(found.events)
    assert some


class Doubtful(Sides):
    """As sure of a side as it is bright: 200 is 0.75, 150 is 0.65."""

    def __init__(self, on):
        self.manifest = {**Sides.manifest, "events": {**SETTINGS, "on": on}}

    def stream(self):
        def step(frame, now):
            halves = frame[:, :16].mean(), frame[:, 16:].mean()
            sure = max(halves) / 500 + 0.35 if max(halves) > 60 else 0.0
            scores = np.full(3, (1 - sure) / 2)
            scores[int(np.argmax(halves)) if sure else 2] = sure or 1 - 1e-9
            return SimpleNamespace(skipped=False, logits=np.log(np.maximum(scores, 1e-9)).astype(np.float32))

        return SimpleNamespace(step=step, close=lambda: None)


@pytest.mark.parametrize("stands, best, right, false", [(0.9, 0.7, 2, 0), (0.5, 0.7, 2, 0), (0.72, 0.72, 2, 0)])
def test_the_threshold_is_the_one_that_answers_held_out_films_best(tmp_path, stands, best, right, false):
    for k in range(2):
        write(tmp_path / "left" / str(k), film("left"))
    write(tmp_path / "rest", film("right") // 4 * 3)  # somebody else's hand, half sure
    items = [Item(str(tmp_path / "left" / str(k)), 0) for k in range(2)] + [Item(str(tmp_path / "rest"), 2)]
    settings, found, before = films.best_threshold(Doubtful(stands), clip_room.Films(items, rate=10))
    assert settings["on"] == best and settings["off"] == SETTINGS["off"] and settings["window"] == SETTINGS["window"]
    assert (found["right"], found["wrong"], found["false_events"]) == (right, 0, false)
    assert before["right"] == (0 if stands == 0.9 else 2) and before["false_events"] == (1 if stands == 0.5 else 0)


def test_a_held_out_film_that_cannot_be_played_is_left_out(tmp_path):
    write(tmp_path / "left", film("left"))
    write(tmp_path / "broken", film("left"))
    (tmp_path / "broken" / "20.png").write_bytes(b"no picture")
    some = clip_room.Films([Item(str(tmp_path / name), 0) for name in ("broken", "left")], rate=10)
    _, found, _ = films.best_threshold(Doubtful(0.7), some)
    assert found["clips"] == found["right"] == 1 and list(some.bad) == [str(tmp_path / "broken")]
    (tmp_path / "left" / "20.png").write_bytes(b"no picture")
    with pytest.raises(TsmEdgeError, match="no clip can be played"):
        films.best_threshold(Doubtful(0.7), some)


def test_a_threshold_below_where_events_end_takes_that_down_too(tmp_path):
    write(tmp_path / "left", film("left"))
    model = Doubtful(0.9)
    model.manifest["events"]["off"] = 0.85
    settings, found, _ = films.best_threshold(model, clip_room.Films([Item(str(tmp_path / "left"), 0)], rate=10))
    assert settings["on"] == settings["off"] == 0.7 and found["right"] == 1


def numbers(film):
    return [(int(frame[0, 0, 0]) // 10, round(time, 3)) for frame, time in film]


def test_a_camera_gives_the_newest_frame_of_its_moment(tmp_path):
    write(tmp_path / "clip", [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(10)])
    for rate, camera in ((10, 4), (10, 25), (12, 8), (3, 30), (30, 7), (10, 10)):
        got = clip_room.Film(tmp_path / "clip", rate=rate, fps=camera)
        shown = [k for k in range(1000) if k * rate < 10 * camera]  # while the clip goes on
        assert numbers(got) == [(k * rate // camera, round(k / camera, 3)) for k in shown], (rate, camera)
        assert got.fps == camera and got.seconds == pytest.approx(10 / rate)


def test_a_film_is_not_held_in_memory(tmp_path):
    write(tmp_path / "clip", [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(3)])
    (tmp_path / "clip" / "3.png").write_bytes(b"no picture")
    film = iter(clip_room.Film(tmp_path / "clip"))
    assert [int(next(film)[0][0, 0, 0]) for _ in range(2)] == [0, 10]  # given before the last is looked at
    with pytest.raises(TsmEdgeError, match="cannot be read"):
        next(film)


def test_a_film_has_red_first(tmp_path):
    write(tmp_path / "clip", [np.full((4, 4, 3), (0, 0, 255), np.uint8)])  # OpenCV's red
    assert next(iter(clip_room.Film(tmp_path / "clip")))[0][0, 0].tolist() == [255, 0, 0]


def animated(path, frames, milliseconds):
    if not hasattr(cv2, "imwriteanimation"):
        pytest.skip("this OpenCV writes no GIFs")
    animation = cv2.Animation()
    animation.frames, animation.durations = list(np.ascontiguousarray(frames[..., ::-1])), np.array(milliseconds)
    path.parent.mkdir()
    assert cv2.imwriteanimation(str(path), animation)


def test_animated_pictures_are_clips_too(tmp_path):
    animated(tmp_path / "left" / "a.gif", film("left"), [100] * 20)
    found = measured(tmp_path)
    assert found["clip_events"]["right"] == 1 and found["results"][0]["seconds"] == pytest.approx(2.0, abs=0.15)


def test_uneven_times_of_a_file_count(tmp_path):
    animated(tmp_path / "left" / "a.gif", film("left", 4), [500, 500, 100, 100])
    times = [time for _, time in clip_room.Film(tmp_path / "left" / "a.gif")]
    assert times == pytest.approx([0, 0.5, 1.0, 1.1], abs=0.02)
    assert measured(tmp_path)["results"][0]["events"] == [(pytest.approx(1.0, abs=0.02), "left")]
