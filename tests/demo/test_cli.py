"""tsm-demo as a user types it: results, refusals, exit codes, Ctrl-C."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge.errors import InputError  # noqa: E402

ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}


def command(*arguments):
    return [sys.executable, "-m", "tsm_edge.demo.cli", *map(str, arguments)]


def demo(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_video_gives_events_a_film_and_a_summary(bundle, video, tmp_path):
    code, out, err = demo(bundle, "--source", video, "--headless", "--output", tmp_path / "out.mp4", "--events", "-")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["event"] for line in lines} == {"start", "end"} and all(line["trained"] is False for line in lines)
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 45
    for word in ("UNTRAINED", "capture", "preprocess", "step", "overlay", "p50", "p90", "p99", "0 dropped", f"source={video}"):
        assert word in err, word
    assert err.strip().splitlines()[-1].startswith("PASSED end of file: 45 frames")


def test_a_rendered_gesture_runs_to_the_frame_limit(bundle):
    code, out, err = demo(bundle, "--source", "test://thumb-up", "--headless", "--max-frames", 20, "--input-width", 96,
                          "--input-height", 64)
    assert code == 0 and "PASSED ended by frame limit: 20 frames" in err and "{" not in out


def test_a_folder_of_pictures_is_played_at_its_rate_and_that_is_said(bundle, tmp_path):
    for i in range(1, 25):
        cv2.imwrite(str(tmp_path / f"{i:05}.jpg"), np.full((48, 64, 3), 10 * i, np.uint8))
    code, _, err = demo(bundle, "--source", tmp_path, "--headless", "--output", tmp_path / "out.mp4")
    assert code == 0 and "12 fps (assumed: a folder does not say; --input-rate does), 24 frames" in err, err
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    code, _, err = demo(bundle, "--source", tmp_path, "--headless", "--input-rate", 6)
    assert code == 0 and "6 fps (as --input-rate has it)" in err and "assumed" not in err


def test_the_rate_that_is_said_for_a_file_is_the_one_that_counts(bundle, video):
    said = cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FPS)
    code, _, err = demo(bundle, "--source", video, "--headless", "--input-rate", 12)
    assert code == 0 and f"12 fps (as --input-rate has it; the file says {said:.3g})" in err, err


@pytest.mark.parametrize("arguments, words", [
    (["--source", "no.mp4", "--headless"], ["no such video"]),
    (["--source", os.path.dirname(__file__), "--headless"], ["holds no pictures"]),
    (["--source", "/dev/video987", "--headless"], ["no such camera"]),
    (["--source", "test://swiping lift", "--headless"], ["did you mean 'Swiping Left'"]),
    (["--source", "VIDEO", "--headless", "--output", "x.gif"], [".mp4"]),
    (["--source", "VIDEO", "--headless", "--engine", "onnx"], ["did you mean 'onnxruntime'"]),
    (["--source", "VIDEO", "--headless", "--max-frames", "0"], ["--max-frames"]),
    (["--source", "test://thumb-up", "--headless", "--input-rate", "nan"], ["frame rate"]),
    (["--source", "VIDEO", "--headless", "--events", "/no/where/x"], ["cannot be written"]),
    (["--source", "VIDEO"], ["--headless"]),
])
def test_what_cannot_be_done_is_refused_with_exit_code_2(bundle, video, arguments, words):
    code, out, err = demo(bundle, *(video if a == "VIDEO" else a for a in arguments))
    assert code == 2 and out == ""
    for word in ["found:", "expected:", "do:", *words]:
        assert word in err, err


@pytest.mark.parametrize("arguments", [
    ["--output", "same.mp4"], ["--events", "same.mp4"], ["--events", "./same.mp4"], ["--output", "link.mp4"], ["--output", "hard.mp4"],
    ["--output", "out.mp4", "--events", "out.mp4"], ["--events", "model.zip"]])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_what_is_read_is_never_written_over(tmp_path, arguments, form, monkeypatch):
    from tsm_edge.demo import cli

    same, model = tmp_path / "same.mp4", tmp_path / "model.zip"
    same.write_bytes(b"a film")
    model.write_bytes(b"a model")
    (tmp_path / "link.mp4").symlink_to(same)
    os.link(same, tmp_path / "hard.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="would write over"):
        cli._main([str(model), "--source", form.format(same), "--headless", *arguments])
    assert same.read_bytes() == b"a film" and model.read_bytes() == b"a model" and not (tmp_path / "out.mp4").exists()


def test_a_film_that_could_not_be_written_is_said(bundle, video, tmp_path):
    resource = pytest.importorskip("resource", reason="needs limits of a process")
    done = subprocess.run(command(bundle, "--source", video, "--headless", "--output", tmp_path / "out.mp4"), capture_output=True,
                          text=True, env=ENVIRONMENT, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert done.returncode == 2 and "the film could not be written" in done.stderr and "PASSED" not in done.stderr, done.stderr


def test_a_file_that_ends_before_its_time_has_a_note(bundle, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "whole.mkv"), cv2.VideoWriter_fourcc(*"MJPG"), 15, (96, 64))
    for value in range(40):
        writer.write(np.full((64, 96, 3), 6 * value, np.uint8))
    writer.release()
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[:len(data) // 2])
    said = [demo(bundle, "--source", tmp_path / name, "--headless")[2] for name in ("whole.mkv", "half.mkv")]
    assert "note:" not in said[0] and "announces 40 frames" in said[1] and "may be damaged" in said[1]


def test_a_missing_bundle_is_refused_with_exit_code_2(tmp_path):
    code, _, err = demo(tmp_path / "none", "--headless")
    assert code == 2 and "no such bundle" in err


def test_a_truncated_video_ends_at_its_last_good_frame_or_is_refused(bundle, video, tmp_path):
    data = video.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[:len(data) // 2])  # the index lies at the end
    code, _, err = demo(bundle, "--source", tmp_path / "half.mp4", "--headless")
    assert code == 2 and "cannot be read" in err
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 15, (96, 64))
    for value in range(30):
        writer.write(np.full((64, 96, 3), 8 * value, np.uint8))
    writer.release()
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(data[:len(data) // 2])
    code, _, err = demo(bundle, "--source", tmp_path / "half.avi", "--headless")
    assert code == 0 and "PASSED end of file" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_terminate_end_it_with_summary_and_film(bundle, tmp_path, number):
    process = subprocess.Popen(
        command(bundle, "--source", "test://drumming-fingers", "--headless", "--output", tmp_path / "out.mp4", "--events",
                tmp_path / "events.jsonl", "--input-width", 96, "--input-height", 64),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a suite in the background has it ignored
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.mp4").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "PASSED ended by interrupted" in err, err
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).read()[0]
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events.count("start") == events.count("end")


def test_asked_to_stop_while_it_draws_text():
    """OpenCV 5 dies of an exception that a signal's handler raises in its text functions."""
    code = """if True:
        import os, signal, threading
        from tsm_edge.demo.cli import _stopping
        from tsm_edge.demo.overlay import Pen
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pen, asked = Pen(), 0
        for _ in range(200):
            with _stopping() as stop:
                threading.Timer(0.0005, os.kill, (os.getpid(), signal.SIGINT)).start()
                while not stop():
                    pen.width("Drumming Fingers", 12)
            asked += 1
        print(asked)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr


def test_help_shows_sources_examples_and_keys():
    code, out, _ = demo("--help")
    assert code == 0 and all(word in out for word in ("csi://0", "rtsp://", "test://", "examples:", "full screen", "--input-flip"))
