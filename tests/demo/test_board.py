"""The board's demo, with a cv2 that is played: no camera and no OpenCV are needed."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tsm_edge.runtimes

DEVICE = Path(tsm_edge.runtimes.__file__).parent / "device"
# A source of `count` frames (a file at 10 frames a second, or a camera that then is silent or, where it has an end, gone).
PLAYED = """if True:
    import sys, time, types
    import numpy as np
    import demo
    count, ends = {count}, {ends}

    class Video:
        def __init__(self, *_):
            self.at = 0
        def isOpened(self):
            return {opens}
        def get(self, what):
            return dict(fps={fps}, ms=100.0 * (self.at - 1))[what]
        def set(self, *_):
            return True
        def read(self):
            if self.at >= count and not ends:
                time.sleep(30)
            self.at += 1
            frame = np.full((40, 60, 3), 10 * self.at % 256, np.uint8)
            return (True, frame) if self.at <= count else (False, None)
        def release(self):
            sys.stderr.write("released\\n")

    cv2 = types.ModuleType("cv2")
    cv2.VideoCapture, cv2.CAP_PROP_FPS, cv2.CAP_PROP_POS_MSEC, cv2.setNumThreads = Video, "fps", "ms", lambda n: None
    sys.modules["cv2"] = cv2
    {change}
    demo.tsm_device.main(sys.argv[1:], run=demo._main)"""


@pytest.fixture
def board(native_bundle, toys, tmp_path):
    """A bundle whose every class is an event, with its device folder."""
    folder = shutil.copytree(native_bundle, tmp_path / "board")
    shutil.copytree(DEVICE, folder / "device", ignore=shutil.ignore_patterns("__pycache__"))
    return toys.seal(folder, events={"window": 1, "hold": 1, "on": 0.0, "off": 0.0, "merge": {}, "ignore": [], "background": []},
                     stream={"fps": 4, "max_gap_seconds": 1.0})


@pytest.fixture
def play(board, tmp_path):
    """play(*arguments, count=5, ends=True, fps=10, change=""): exit code, stdout, stderr."""
    (tmp_path / "clip.mp4").write_bytes(b"a film")

    def run(*arguments, count=5, ends=True, fps=10.0, opens=True, change=""):
        code = PLAYED.format(count=count, ends=ends, fps=fps, opens=opens, change=change)
        done = subprocess.run([sys.executable, "-c", code, "--headless", *map(str, arguments)], capture_output=True, text=True,
                              env={"PYTHONPATH": str(board / "device"), "OMP_NUM_THREADS": "1"}, cwd=tmp_path, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


def test_events_end_by_the_sources_clock(play):
    code, out, err = play("--source", "clip.mp4", "--events", "-")
    assert code == 0 and "released" in err, err
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["end"]) == ("end", pytest.approx(0.4 + 0.1))  # five frames at 10 a second, whatever the model's rate


def test_the_clock_on_the_wall_may_be_set(play):
    set_clock = "demo.time = types.SimpleNamespace(monotonic=time.monotonic, time=iter(range(0, 10 ** 9, 3600)).__next__)"
    code, _, err = play("--source", "0", "--max-frames", 1, count=1000, change=set_clock)
    assert code == 0 and "PASSED frame limit" in err, err
    code, _, err = play("--source", "0", count=3, ends=False, change="demo.SILENCE_SECONDS = 0.5; del time.time")
    assert code == 2 and "the camera is gone" in err and "AttributeError" not in err, err


def test_a_video_without_frames_is_refused(play):
    code, _, err = play("--source", "clip.mp4", count=0)
    assert code == 2 and "the video has no frames" in err and "PASSED" not in err


@pytest.mark.parametrize("arguments, words", [
    (["--threads", 65], "number of threads"), (["--max-frames", 0], "--max-frames"), (["--max-frames", -3], "--max-frames"),
    (["--events", "clip.mp4"], "would write over"), (["--events", "link"], "would write over"),
    (["--events", "no/where"], "cannot be written"),
    (["--input-width", 64, "--input-height", 48], "only a camera"), (["--input-width", 64], "the size"),
    (["--input-rate", "nan"], "the frame rate"), (["--input-rate", "-5"], "the frame rate")])
@pytest.mark.parametrize("source", ["clip.mp4", "file://clip.mp4"])
def test_what_cannot_be_done_is_refused_and_changes_nothing(play, tmp_path, arguments, words, source):
    (tmp_path / "link").symlink_to("clip.mp4")
    code, out, err = play("--source", source, *arguments)
    assert code == 2 and words in err and out == "" and all(part in err for part in ("found:", "expected:", "do:")), err
    assert (tmp_path / "clip.mp4").read_bytes() == b"a film"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("source, ends", [("clip.mp4", True), ("0", True)])
def test_events_that_cannot_be_written_end_it_with_all_closed(play, source, ends):
    code, _, err = play("--source", source, "--events", "/dev/full", count=1000, ends=ends)
    assert code == 2 and "the events cannot be written" in err and "No space left" in err and "released" in err, err


def test_a_reader_who_has_seen_enough_is_no_error(play):
    closed = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    code, _, err = play("--source", "clip.mp4", "--events", "-", change=closed)
    assert code == 0 and "error" not in err.lower() and "released" in err, err


def test_a_password_is_not_shown(play):
    for address in ("rtsp://me:secret@127.0.0.1/x", "rtsp://me:se@cret@127.0.0.1/x"):
        code, out, err = play("--source", address, opens=False)
        assert code == 2 and "***@127.0.0.1/x" in err and "cret" not in out + err
