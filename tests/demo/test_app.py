"""The loop: files give the same events every time; every way of ending is clean."""
import contextlib
import json
import os
import threading

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge.demo.app import run  # noqa: E402
from tsm_edge.demo.recording import EventLog, VideoRecorder, event_record  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.runtimes import load  # noqa: E402
from tsm_edge.runtimes.events import Event, GestureEvents  # noqa: E402
from tsm_edge.runtimes.sources import open_source  # noqa: E402


@pytest.fixture(scope="module")
def model(bundle):
    return load(bundle)


class Lines(list):
    """An EventLog that keeps its events."""

    count = 0
    closed = False

    def write(self, event):
        self.append(event)
        self.count += event.kind == "end"

    def close(self):
        self.closed = True


class Screen:
    """A Window that keeps count, and says no after `frames`."""

    def __init__(self, frames=10 ** 9):
        self.left, self.shown, self.closed = frames, [], False

    def show(self, image):
        self.shown.append(image.copy())
        self.left -= 1
        return self.left > 0

    def poll(self):
        self.left -= 1
        return self.left > 0

    def close(self):
        self.closed = True


def test_a_file_gives_the_events_of_its_frames_every_time(model, video):
    want, stream, source = [], model.stream("BGR"), open_source(str(video))
    events = GestureEvents.of(model)
    while (got := source.read()) is not None:
        want += events.update(stream.step(*got), got[1])
    want += events.finish()
    assert len(want) >= 4
    for window in (None, None, Screen()):
        log = Lines()
        outcome = run(model, open_source(str(video)), log=log, window=window)
        assert [(e.kind, e.label, e.start, e.end) for e in log] == [(e.kind, e.label, e.start, e.end) for e in want]
        assert (outcome.reason, outcome.read, outcome.dropped) == ("end of file", 45, 0)
        assert outcome.frames + outcome.skipped == 45 and log.closed


def test_every_stage_has_its_times(model, video, tmp_path):
    recorder = VideoRecorder(tmp_path / "out.mp4", 15)
    outcome = run(model, open_source(str(video)), log=Lines(), recorder=recorder)
    assert [row[0] for row in outcome.stages] == ["capture", "preprocess", "step", "overlay", "record"]
    for stage, count, p50, p90, p99 in outcome.stages:
        assert count == (outcome.frames if stage in ("preprocess", "step") else 45) and 0 <= p50 <= p90 <= p99 < 5000


def test_the_frame_limit_and_keys_end_it(model, video):
    assert run(model, open_source(str(video)), log=Lines(), max_frames=7)[:3] == ("frame limit", 7, 7)
    screen = Screen(5)
    outcome = run(model, open_source(str(video)), log=Lines(), window=screen)
    assert outcome.reason == "key" and len(screen.shown) == 5 and screen.closed


def test_a_camera_that_goes_away_ends_it_with_its_events_closed(model, make_source, toys):
    source, log = make_source(toys.smooth_frames(12), live=True, fps=10.0), Lines()
    outcome = run(model, source, log=log)
    assert outcome.reason == "source lost" and outcome.read == 12 and source.closed
    assert sum(e.kind == "start" for e in log) == sum(e.kind == "end" for e in log)


def test_a_camera_that_falls_silent_is_lost(model, make_source, toys):
    hold = threading.Event()
    outcome = run(model, make_source([*toys.smooth_frames(3), hold], live=True), log=Lines(), silence=0.3)
    hold.set()
    assert outcome.reason == "source lost"


def test_keys_work_while_a_camera_keeps_us_waiting(model, make_source, toys):
    hold = threading.Event()
    outcome = run(model, make_source([*toys.smooth_frames(2), hold], live=True), log=Lines(), window=Screen(4))
    hold.set()
    assert outcome.reason == "key"


def test_ctrl_c_ends_it_cleanly(model, make_source, toys):
    source, log, screen = make_source(toys.smooth_frames(30)), Lines(), Screen()
    show = screen.show

    def interrupted(image):
        if len(screen.shown) == 9:
            raise KeyboardInterrupt
        return show(image)

    screen.show = interrupted
    outcome = run(model, source, log=log, window=screen)
    assert outcome.reason == "interrupted" and source.closed and screen.closed and log.closed
    assert sum(e.kind == "start" for e in log) == sum(e.kind == "end" for e in log)


def test_asked_to_stop_it_ends_before_the_next_frame(model, make_source, toys):
    source, log, screen = make_source(toys.smooth_frames(30)), Lines(), Screen()
    outcome = run(model, source, log=log, window=screen, stop=lambda: len(screen.shown) == 5)
    assert (outcome.reason, outcome.frames, len(screen.shown)) == ("interrupted", 5, 5) and source.closed and log.closed


def test_a_reading_error_closes_everything_and_is_passed_on(model, make_source, toys):
    source, log = make_source([*toys.smooth_frames(3), RuntimeError("decoder")]), Lines()
    with pytest.raises(RuntimeError, match="decoder"):
        run(model, source, log=log)
    assert source.closed and log.closed


@pytest.mark.parametrize("fails", ["the log", "the film"])
def test_what_cannot_be_written_closes_everything_and_is_passed_on(model, make_source, toys, fails):
    class Film:
        closed = False

        def write(self, picture, time):
            if fails == "the film":
                raise InputError("full", found="-", expected="-", do="-")

        def close(self):
            self.closed = True

    class Log(Lines):
        def write(self, event):
            if fails == "the log":
                raise InputError("full", found="-", expected="-", do="-")

        def close(self):
            self.closed = True
            raise InputError("full", found="-", expected="-", do="-")

    source, log, film, screen = make_source(toys.smooth_frames(40)), Log(), Film(), Screen()
    with pytest.raises(InputError, match="full"):
        run(model, source, log=log, recorder=film, window=screen)
    assert source.closed and log.closed and film.closed and screen.closed


def test_the_mirror_is_for_the_viewer_only(model, make_source, toys):
    frames = toys.smooth_frames(4, 240, 320)
    plain, mirrored, logs = Screen(), Screen(), []
    for screen, mirror in ((plain, False), (mirrored, True)):
        logs.append(Lines())
        run(model, make_source(frames), log=logs[-1], window=screen, mirror=mirror)
    middle = slice(80, 130)
    assert np.array_equal(mirrored.shown[0][middle], plain.shown[0][middle, ::-1])
    assert np.array_equal(plain.shown[0][middle], frames[0][middle]) and logs[0] == logs[1]


def test_memory_stays_however_long_it_runs(model, make_source, toys):
    import gc
    import itertools

    frames = toys.smooth_frames(4)

    def objects(count):
        source = make_source([])
        source.items = iter_list(itertools.islice(itertools.cycle(frames), count))
        run(model, source, log=EventLog(None, True, out=open("/dev/null", "w")), window=None)
        gc.collect()
        return len(gc.get_objects())

    class iter_list:
        def __init__(self, iterator):
            self.iterator, self.ahead = iterator, None

        def __bool__(self):
            self.ahead = next(self.iterator, None) if self.ahead is None else self.ahead
            return self.ahead is not None

        def pop(self, _):
            item, self.ahead = self.ahead, None
            return item

    objects(50)
    short = objects(50)
    assert objects(800) - short < 100


# --- recording ----------------------------------------------------------------------------------------------------------


def film(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_the_film_runs_at_the_speed_of_the_scene(tmp_path, suffix):
    recorder = VideoRecorder(tmp_path / f"out{suffix}", 20)
    for t in range(30):  # 10 frames a second for 3 seconds
        recorder.write(np.full((48, 64, 3), 8 * t, np.uint8), t / 10)
    recorder.close()
    frames, fps = film(tmp_path / f"out{suffix}")
    assert fps == pytest.approx(20) and len(frames) == recorder.frames == pytest.approx(60, abs=2)
    assert abs(float(frames[-1].mean()) - 232) < 6 and abs(float(frames[0].mean())) < 6


def test_odd_sizes_size_changes_and_gaps_are_recorded(tmp_path):
    recorder = VideoRecorder(tmp_path / "out.mp4", 10)
    for t, (height, width) in zip((0.0, 0.1, 0.2, 500.0, 500.1, 3.0), [(49, 65), (49, 65), (100, 30), (49, 65), (49, 65), (49, 65)]):
        recorder.write(np.full((height, width, 3), 99, np.uint8), t)
    recorder.close()
    frames, _ = film(tmp_path / "out.mp4")
    assert len(frames) == 6 and frames[0].shape == (48, 64, 3)


@pytest.mark.parametrize("suffix, fps", [(".mp4", 29.97), (".avi", 15), (".mkv", 7.3), (".mov", 240)])
def test_a_film_that_is_not_whole_is_no_film(tmp_path, suffix, fps):
    recorder = VideoRecorder(tmp_path / f"out{suffix}", fps)
    recorder.check()  # nothing was recorded
    random = np.random.default_rng(0)
    for t in range(30):
        recorder.write(random.integers(0, 256, (48, 64, 3), dtype=np.uint8), 2 * t / fps)  # every picture twice
    recorder.close()
    assert recorder.frames == 59
    recorder.check()
    data = recorder.path.read_bytes()
    recorder.path.write_bytes(data[:len(data) * 2 // 3])  # as a full disk leaves it
    with pytest.raises(InputError, match="of 59 frames"):
        recorder.check()


def test_outputs_that_cannot_be_are_refused_before_the_run(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for path, words in ((tmp_path / "out.gif", ".mp4"), (tmp_path / "no" / "out.mp4", "no folder"),
                        (tmp_path / "folder.mp4", "Is a directory"), (tmp_path / ("x" * 300 + ".mp4"), "name too long")):
        with pytest.raises(InputError) as error:
            VideoRecorder(path, 30)
        assert words in str(error.value) and error.value.do
    with pytest.raises(InputError, match="cannot be written"):
        EventLog(tmp_path / "no" / "events.jsonl", True)
    VideoRecorder(tmp_path / "out.mp4", 30)
    (tmp_path / "old.mp4").write_bytes(b"old")
    VideoRecorder(tmp_path / "old.mp4", 30)
    assert not (tmp_path / "out.mp4").exists() and (tmp_path / "old.mp4").read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_said_by_the_event_log():
    event = Event("start", "Swiping Left", 16, 1.25, None, 0.5, 15, None)
    with open("/dev/full", "w") as full:
        for log in (EventLog("/dev/full", True), EventLog("-", True, out=full), EventLog(None, True, out=full)):
            with pytest.raises(InputError, match="events cannot be written"):
                log.write(event._replace(kind="end", end=2.0, end_frame=24))
        log._file = None
        with contextlib.suppress(OSError):
            full.close()


def test_events_are_written_as_they_happen(tmp_path, capsys):
    log = EventLog(tmp_path / "events.jsonl", trained=False)
    start = Event("start", "Swiping Left", 16, 1.25, None, 0.5, 15, None)
    log.write(start)
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert line == {"event": "start", "label": "Swiping Left", "index": 16, "start": 1.25, "start_frame": 15, "score": 0.5,
                    "trained": False}
    log.write(start._replace(kind="end", end=2.0, end_frame=24, score=0.9))
    log.close()
    end = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[1])
    assert (end["event"], end["end"], end["end_frame"], end["duration"], end["score"]) == ("end", 2.0, 24, 0.75, 0.9)
    assert "00:01.250 - 00:02.000  Swiping Left  0.90" in capsys.readouterr().out and log.count == 1
    assert "trained" not in event_record(start, trained=True)
