"""The demo in a bundle's device/ is the desk's: same events, film, times, refusals; with nothing installed but numpy and OpenCV."""
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

ALWAYS = {"window": 1, "hold": 1, "on": 0.0, "off": 0.0, "merge": {}, "ignore": [], "background": []}  # every class is an event


@pytest.fixture(scope="module")
def board(bundle, toys, tmp_path_factory):
    if not (bundle / "libtsm_model.so").exists():
        pytest.skip("neither gcc nor ziglang is installed")
    return toys.with_device(bundle, tmp_path_factory.mktemp("board") / "toy", events=ALWAYS, stream={"fps": 0, "max_gap_seconds": 1.0})


@pytest.fixture
def command(board, bare_python):
    """command(*arguments): the program's demo as a list, and its environment."""
    python, environment = bare_python("cv2")
    return lambda *arguments: ([*python, board / "device" / "tsm_edge.pyz", "demo", *map(str, arguments)], environment)


@pytest.fixture
def demo(command):
    """demo(*arguments): exit code, stdout, stderr."""
    def run(*arguments):
        line, environment = command(*arguments)
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_same_video_gives_the_desks_events_and_a_film(demo, board, video, tmp_path):
    code, out, err = demo("--source", video, "--headless", "--events", "-", "--output", tmp_path / "board.mp4")
    assert code == 0, err
    arguments = ["--source", video, "--headless", "--events", "-", "--output", tmp_path / "desk.mp4"]
    desk = subprocess.run([sys.executable, "-m", "tsm_edge.demo.cli", board, *arguments], capture_output=True, text=True)
    assert out == desk.stdout and len(out.splitlines()) > 10, desk.stderr
    films = [cv2.VideoCapture(str(tmp_path / name)) for name in ("board.mp4", "desk.mp4")]
    assert [film.get(cv2.CAP_PROP_FRAME_COUNT) for film in films] == [45, 45]
    clip = cv2.VideoCapture(str(video))
    for _ in range(45):
        ours, theirs, bare = (film.read()[1].astype(float) for film in (*films, clip))
        assert np.abs(ours - theirs).mean() < 0.2 * np.abs(ours - bare).mean(), "the same picture, drawn over; but for the times"


def test_the_summary_is_a_plain_table(demo, board, video):
    code, _, err = demo("--source", f"file://{video}", "--headless", "--max-frames", 9)
    lines = err.splitlines()
    header = next(at for at, line in enumerate(lines) if line.split()[:2] == ["stage", "frames"])
    assert lines[header].split() == ["stage", "frames", "p50", "ms", "p90", "ms", "p99", "ms"]
    assert [line.split()[:2] for line in lines[header + 1:header + 4]] == [["capture", "9"], ["preprocess", "9"], ["step", "9"]]
    assert lines[-1].startswith("PASSED ended by frame limit: 9 frames") and f"demo {board} source=" in lines[0]


@pytest.mark.parametrize("arguments, words", [
    (["--attention"], "pass the checkpoint it was made from"), (["--source", "test://thumb-up"], "test:// sources cannot be loaded"),
    (["--source", "rtsp://me:se@cret@127.0.0.1:1/x"], "***@127.0.0.1"), (["--source", "csi://0"], "GStreamer"),
    (["--source", "no.mp4"], "no such video"), (["--source", "/dev/video987"], "no such camera"), (["--threads", 65], "number of threads"),
    (["--input-width", 64], "--input-width and --input-height together"), (["--events", "VIDEO"], "would write over"),
    (["--output", "film.gif"], ".mp4")])
def test_what_cannot_be_done_is_refused_in_the_desks_words(demo, video, arguments, words):
    arguments = [video if word == "VIDEO" else word for word in arguments]
    code, out, err = demo("--headless", *(arguments if "--source" in arguments else ["--source", video, *arguments]))
    assert code == 2 and words in err and out == "" and all(part in err for part in ("found:", "expected:", "do:")), err
    assert "cret" not in err and "Traceback" not in err


def test_a_display_is_asked_for_before_the_camera(demo):
    code, _, err = demo("--source", "0")
    assert code == 2 and "--headless" in err and "camera" not in err.split("error:")[1]


def test_a_missing_opencv_is_said(board, bare_python, video):
    python, environment = bare_python()
    done = subprocess.run([*python, board / "device" / "tsm_edge.pyz", "demo", "--source", video, "--headless"], capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 2 and "OpenCV is not installed" in done.stderr and "apt install python3-opencv" in done.stderr


def test_a_reader_who_has_seen_enough_is_no_error(command, video):
    line, environment = command("--source", video, "--headless", "--events", "-")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "rror" not in err, err


def test_terminating_it_ends_with_summary_and_closed_events(command, board, tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "long.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 15, (640, 480))
    for _ in range(3000):
        film.write(np.zeros((480, 640, 3), np.uint8))
    film.release()
    line, environment = command("--source", tmp_path / "long.avi", "--headless", "--events", tmp_path / "events.jsonl")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    events = tmp_path / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (events.exists() and events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "PASSED ended by interrupted" in err, err
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert kinds.count("start") == kinds.count("end") >= 1
