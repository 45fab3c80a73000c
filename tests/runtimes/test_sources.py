"""Every kind of address opens the right thing, or says what is wrong with it."""
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.runtimes import sources
from tsm_edge.runtimes.sources import FLIPS, csi_pipeline, flip_frame, kind_of, open_source

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")


def read_all(source):
    frames = []
    while (got := source.read()) is not None:
        frames.append(got)
    source.close()
    return frames


def refused(address, *words, kind=InputError, **options):
    with pytest.raises(kind) as error:
        open_source(address, **options)
    assert error.value.found and error.value.expected and error.value.do and error.value.exit_code == 2
    for word in words:
        assert word in str(error.value), f"{word!r} not in: {error.value}"


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_file_gives_every_frame_at_its_own_time(video, form):
    source = open_source(form.format(video))
    assert not source.live and source.fps == pytest.approx(15) and source.frames == 45
    frames = read_all(source)
    assert len(frames) == 45 and frames[0][0].shape == (64, 96, 3) and frames[0][0].dtype == np.uint8
    assert [time for _, time in frames] == pytest.approx(np.arange(45) / 15, abs=1e-3)


def test_a_file_is_brought_to_the_size_asked_for(video):
    assert read_all(open_source(str(video), width=48, height=32))[0][0].shape == (32, 48, 3)


def test_addresses_that_lead_nowhere_are_refused(tmp_path, video):
    refused(str(tmp_path / "no.mp4"), "no such video", "no.mp4")
    refused(str(video.parent / "clap.mp4"), "there are clip.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    refused(str(tmp_path / "text.mp4"), "cannot be read", "11 bytes")
    refused("/dev/video987", "no such camera")
    refused("987", "camera", "/dev/video")
    refused("fiel://clip.mp4", "did you mean 'file'")
    refused("csi://x", "csi://0")
    refused("rtsp://user:secret@127.0.0.1:1/none", "cannot be opened", "***@")


def test_a_password_is_never_shown():
    with pytest.raises(InputError) as error:
        open_source("rtsp://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


def test_csi_without_gstreamer_says_whose_opencv_has_it(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:                   NO\n")
    refused("csi://0", "without GStreamer", "JetPack")


def test_csi_pipeline_is_the_jetsons():
    assert csi_pipeline(1, (1920, 1080), 60, "rotate-180") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM), width=(int)1920, height=(int)1080, framerate=(fraction)60/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw, format=(string)BGRx ! videoconvert ! video/x-raw, format=(string)BGR ! "
        "appsink drop=true max-buffers=1 sync=false")


def test_sizes_and_flips_that_cannot_be_are_refused(video):
    refused(str(video), "half a size", width=640)
    refused(str(video), "height", width=640, height=3)
    refused(str(video), "did you mean 'rotate-180'", flip="rotate-90")


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, -15.0, 1e9])
def test_frame_rates_that_cannot_be_are_refused(rate):
    refused("test://a", "frame rate", fps=rate)


def test_frames_in_a_file_are_counted(video, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    assert [sources.frames_in(p) for p in (video, tmp_path / "text.mp4", tmp_path / "none.mp4")] == [45, 0, 0]


def test_addresses_of_files_have_a_path():
    assert [sources.file_of(a) for a in ("clip.mp4", "file:///a%20b.mp4", "file://b.mp4", "0", "csi://0", "rtsp://h/x", "test://a")] == [
        "clip.mp4", "/a b.mp4", "b.mp4", None, None, None, None]


def test_flips_are_those_of_numpy():
    frame = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    want = {"none": frame, "counterclockwise": np.rot90(frame), "rotate-180": np.rot90(frame, 2), "clockwise": np.rot90(frame, -1),
            "horizontal": frame[:, ::-1], "vertical": frame[::-1], "upper-left-diagonal": frame.transpose(1, 0, 2),
            "upper-right-diagonal": np.rot90(frame, 2).transpose(1, 0, 2)}
    assert set(want) == set(FLIPS)
    for method in FLIPS:
        assert np.array_equal(flip_frame(frame, method), want[method]), method


def test_addresses_are_told_apart():
    kinds = {"0": "camera", "/dev/video2": "camera", "v4l2:///dev/video0": "camera", "csi://0": "csi", "CSI://1": "csi",
             "rtsp://host/x": "stream", "http://host/x.mp4": "stream", "file:///a.mp4": "file", "a.mp4": "file", "12.mp4": "file",
             "/dev/shm/a.mp4": "file", "test://thumb-up": "test"}
    assert {address: kind_of(address) for address in kinds} == kinds


def test_a_source_of_the_table_is_loaded_by_its_name(monkeypatch):
    asked = []
    module = SimpleNamespace(Made=lambda *a, **more: asked.append((a, more)) or "source")
    monkeypatch.setitem(sys.modules, "made_up", module)
    monkeypatch.setitem(sources.BY_NAME, "test", "made_up:Made")
    assert open_source("test://a%20b", width=64, height=48, flip="vertical", seed=3) == "source"
    assert asked == [(("a b", (64, 48), None, "vertical"), {"seed": 3})]
    monkeypatch.setitem(sources.BY_NAME, "test", "not_there.at_all:Made")
    refused("test://a", "test:// sources cannot be loaded", kind=MissingComponentError)


def test_missing_opencv_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused("0", "tsm-edge[demo]", kind=MissingComponentError)


def test_an_opencv_that_wants_a_desktop_is_said_with_both_ways_out(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    refused("0", "OpenCV cannot be loaded", "libGL.so.1", "libgl1", "opencv-python-headless", kind=MissingComponentError)


def test_a_camera_gives_frames_by_the_clock(monkeypatch):
    class Camera:
        def __init__(self, *_):
            self.count = 0

        def isOpened(self):
            return True

        def get(self, _):
            return 30.0

        def set(self, *_):
            return True

        def read(self):
            self.count += 1
            return (True, np.zeros((4, 4, 3), np.uint8)) if self.count < 4 else (False, None)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    clock = iter([100.0, 100.5, 101.0])
    monkeypatch.setattr(sources.time, "monotonic", lambda: next(clock))
    source = open_source("0", width=640, height=480)
    assert source.live and [time for _, time in read_all(source)] == [0.0, 0.5, 1.0]


def pictures(folder, count=11, ending=".png", size=(20, 16)):
    """Frames 1.png, 2.png, ... whose grey says their number."""
    folder.mkdir(exist_ok=True)
    for i in range(1, count + 1):
        cv2.imwrite(str(folder / f"{i}{ending}"), np.full((size[1], size[0], 3), 10 * i, np.uint8))
    return folder


def test_a_folder_of_pictures_is_a_film_in_the_order_of_its_numbers(tmp_path):
    source, seen = open_source(str(pictures(tmp_path / "clip"))), []
    assert (source.fps, source.frames, source.live) == (12.0, 11, False) and "assumed" in source.note
    while (got := source.read()) is not None:
        seen.append((int(got[0][0, 0, 0]) // 10, got[1]))
    assert seen == [(i + 1, pytest.approx(i / 12)) for i in range(11)]  # 2 comes before 10
    slow = open_source(str(tmp_path / "clip"), fps=5, width=32, height=24)
    assert slow.fps == 5 and "assumed" not in slow.note
    assert slow.read()[0].shape == (24, 32, 3) and slow.read()[1] == pytest.approx(0.2)


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".bmp", ".webp"])
def test_pictures_of_any_kind_make_a_film(tmp_path, ending):
    source = open_source(str(pictures(tmp_path / "clip", 3, ending)))
    assert [round(float(image.mean()) / 10) for image, _ in read_all(source)] == [1, 2, 3]


def test_a_number_that_is_none_does_not_end_it(tmp_path):
    for name in ("1²3.png", "1²12.png", "a.png"):
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(path) for path in open_source(str(tmp_path))._paths] == ["1²3.png", "1²12.png", "a.png"]


def test_folders_that_are_no_film_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        open_source(str(tmp_path / "empty"))
    mixed = pictures(tmp_path / "mixed", 2)
    cv2.imwrite(str(mixed / "3.png"), np.zeros((8, 8, 3), np.uint8))
    (mixed / "4.png").write_bytes(b"no picture")
    source = open_source(str(mixed))
    source.read(), source.read()
    with pytest.raises(InputError, match="different sizes"):
        source.read()
    (mixed / "3.png").unlink()
    source = open_source(str(mixed))
    source.read(), source.read()
    with pytest.raises(InputError, match="cannot be read"):
        source.read()


def test_the_rate_of_a_file_can_be_said(video):
    said = open_source(str(video)).fps
    source = open_source(str(video), fps=said / 2)
    assert source.fps == said / 2 and f"{said:.3g}" in source.note
    times = [source.read()[1] for _ in range(3)]
    assert times == [pytest.approx(i * 2 / said) for i in range(3)]
