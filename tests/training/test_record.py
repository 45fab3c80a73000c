"""tsm-record: clips from files, rendered gestures and a camera that is played."""
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")

from tsm_edge.errors import InputError, TsmEdgeError  # noqa: E402
from tsm_edge.files import part_of  # noqa: E402
from tsm_edge.runtimes.sources import Source  # noqa: E402
from tsm_edge.training import record  # noqa: E402


def run(*argv):
    return record._main([str(v) for v in argv])


def frames_of(path):
    film, out = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = film.read()
        if not good:
            return np.array(out), film.get(cv2.CAP_PROP_FPS)
        out.append(frame[..., ::-1])


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Ten seconds at ten frames a second; frame n has the brightness 2 n."""
    path = tmp_path_factory.mktemp("film") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for n in range(100):
        writer.write(np.full((48, 64, 3), 2 * n, np.uint8))
    writer.release()
    return path


def test_a_cut_holds_the_frames_between_start_and_end(film, tmp_path):
    assert run("--label", "wave", "--output", tmp_path, "--source", film, "--start", 2, "--end", 4.5) == 0
    frames, fps = frames_of(tmp_path / "wave" / "0000.mp4")
    assert fps == 10 and frames.shape == (25, 48, 64, 3)
    assert np.abs(frames.mean((1, 2, 3)) - 2 * np.arange(20, 45)).max() < 4
    assert [p.name for p in (tmp_path / "wave").iterdir()] == ["0000.mp4"]  # nothing else is left


def test_a_file_is_cut_into_pieces_and_nothing_is_overwritten(film, tmp_path, capsys):
    assert run("--label", "wave", "--output", tmp_path, "--source", f"file://{film}", "--json") == 0
    made = json.loads(capsys.readouterr().out)["clips"]
    assert [c["frames"] for c in made] == [30, 30, 30]  # the last second is less than half a clip
    first = (tmp_path / "wave" / "0000.mp4").read_bytes()
    run("--label", "wave", "--output", tmp_path, "--source", film, "--seconds", 4)
    assert [len(frames_of(tmp_path / "wave" / f"{k:04d}.mp4")[0]) for k in range(6)] == [30, 30, 30, 40, 40, 20]
    run("--label", "wave", "--output", tmp_path, "--source", film, "--seconds", 2, "--count", 1)
    assert len(list((tmp_path / "wave").iterdir())) == 7 and (tmp_path / "wave" / "0000.mp4").read_bytes() == first


def test_a_name_taken_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "0000.mp4").write_bytes(b"mine")
    monkeypatch.setattr(record.Path, "glob", lambda self, pattern: iter(()))  # as if it came after we looked
    path = record.write_clip(tmp_path, [np.zeros((32, 32, 3), np.uint8)] * 3, 10.0)
    assert path.name == "0001.mp4" and (tmp_path / "0000.mp4").read_bytes() == b"mine"


def test_rendered_clips_stand_in_for_a_camera(tmp_path):
    argv = ("--label", "go left", "--output", tmp_path, "--source", "test://swiping-left", "--count", 2, "--seconds", 1,
            "--shorter-side", 96)
    run(*argv)
    run(*argv)
    clips = [frames_of(tmp_path / "go left" / f"{k:04d}.mp4")[0] for k in range(4)]
    assert all(c.shape == (15, 96, 128, 3) for c in clips)
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in itertools.combinations(clips, 2))  # all different


def test_rendered_clips_are_as_asked_for(tmp_path):
    argv = ("--label", "go left", "--source", "test://swiping-left", "--count", 1, "--seconds", 1, "--input-width", 160,
            "--input-height", 120, "--input-rate", 10)
    run(*argv, "--output", tmp_path / "plain")
    run(*argv, "--output", tmp_path / "turned", "--input-flip", "clockwise")
    (plain, fps), (turned, _) = (frames_of(tmp_path / name / "go left" / "0000.mp4") for name in ("plain", "turned"))
    assert fps == 10 and plain.shape == (10, 120, 160, 3) and turned.shape == (10, 160, 120, 3)
    assert np.abs(np.rot90(plain, -1, axes=(1, 2)).astype(int) - turned).mean() < 6  # but for the compression


def test_a_clip_that_was_deleted_is_not_made_up_for_by_one_that_is_there(tmp_path):
    argv = ("--label", "wave", "--output", tmp_path, "--source", "test://thumb-up", "--seconds", 0.4, "--shorter-side", 48)
    run(*argv, "--count", 3)
    (tmp_path / "wave" / "0000.mp4").unlink()
    run(*argv, "--count", 1)
    first, second, new = (frames_of(tmp_path / "wave" / f"{k:04d}.mp4")[0] for k in (1, 2, 3))
    assert all(np.abs(new.astype(int) - old).mean() > 1 for old in (first, second))


def test_what_a_killed_recording_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / part_of("clip.mp4").replace(str(os.getpid()), str(gone.pid))
    left.mkdir()
    (left / "clip.mp4").write_bytes(b"half")
    record.write_clip(tmp_path, [np.zeros((32, 32, 3), np.uint8)] * 3, 10.0)
    assert [p.name for p in tmp_path.iterdir()] == ["0000.mp4"]


class Camera(Source):
    """Gives a frame every 20 ms of a clock of its own (`monotonic`); after `gone_after` frames it is unplugged."""

    live, name = True, "camera 0"

    def __init__(self, gone_after=10 ** 9):
        self.count, self.gone_after, self.closed, self.asked = 0, gone_after, False, None

    def open(self, address, **asked):
        self.asked = (address, asked)
        return self

    def read(self):
        self.count += 1
        if self.count > self.gone_after:
            return None
        return np.full((480, 640, 3), (40, 40, min(self.count, 250)), np.uint8), self.monotonic()  # BGR: the red counts

    def monotonic(self):
        return 0.02 * self.count

    def close(self):
        self.closed = True


def test_a_camera_is_counted_down_and_clips_have_the_speed_of_the_scene(tmp_path, monkeypatch, capsys):
    camera = Camera()
    monkeypatch.setattr(record, "open_source", camera.open)
    monkeypatch.setattr(record, "time", camera)
    run("--label", "wave", "--output", tmp_path, "--seconds", 0.6, "--count", 2, "--pause", 0.3, "--headless", "--source", "csi://1",
        "--input-width", 640, "--input-height", 480, "--input-flip", "rotate-180")
    assert camera.asked == ("csi://1", {"width": 640, "height": 480, "fps": None, "flip": "rotate-180"})
    said = capsys.readouterr().err
    assert "clip 1/2 of 'wave' in 1 ..." in said and "clip 2/2 of 'wave': NOW" in said and camera.closed
    last = 0
    for k in range(2):
        frames, fps = frames_of(tmp_path / "wave" / f"{k:04d}.mp4")
        assert frames.shape[1:] == (320, 426, 3) and len(frames) / fps == pytest.approx(0.6, abs=0.05)
        assert frames[0, ..., 0].mean() > last + 2  # the frames of the countdown are not in it; red is where RGB has it
        last = frames[-1, ..., 0].mean()


def test_a_camera_that_is_unplugged_leaves_the_clips_that_were_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "open_source", Camera(gone_after=25).open)
    with pytest.raises(InputError, match="camera is gone"):
        run("--label", "wave", "--output", tmp_path, "--seconds", 0.25, "--count", 9, "--pause", 0, "--headless")
    there = list((tmp_path / "wave").iterdir())
    assert there and all(len(frames_of(path)[0]) > 1 for path in there)


def test_a_camera_that_opens_but_gives_nothing_is_refused(tmp_path, monkeypatch):
    camera = Camera(gone_after=0)
    monkeypatch.setattr(record, "open_source", camera.open)
    monkeypatch.setattr(record, "time", camera)
    with pytest.raises(InputError, match="gives no frame"):
        run("--label", "wave", "--output", tmp_path)
    assert camera.closed and not list(tmp_path.iterdir())


def test_a_file_is_turned_and_scaled_as_asked(film, tmp_path):
    run("--label", "wave", "--output", tmp_path, "--source", film, "--count", 1, "--input-flip", "clockwise")
    assert frames_of(tmp_path / "wave" / "0000.mp4")[0].shape == (30, 64, 48, 3)
    run("--label", "wave", "--output", tmp_path, "--source", film, "--count", 1, "--input-width", 40, "--input-height", 20)
    assert frames_of(tmp_path / "wave" / "0001.mp4")[0].shape == (30, 20, 40, 3)


def test_a_password_is_not_shown(tmp_path, capsys):
    with pytest.raises(InputError, match="no beginning and end") as error:
        run("--label", "wave", "--output", tmp_path, "--source", "rtsp://me:secret@127.0.0.1/x", "--start", 1)
    assert "secret" not in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize("argv, words", [
    (("--source", "77"), "the camera cannot be opened"), (("--source", "/nowhere.mp4"), "no such video"),
    (("--source", "csi://0"), "this OpenCV cannot open CSI cameras"), (("--source", "cis://0"), "did you mean 'csi'"),
    (("--source", "csi://0", "--end", "1"), "no beginning and end"), (("--source", "FILM", "--input-flip", "up"), "flip method"),
    (("--source", "test://swiping-lft"), "did you mean 'Swiping Left'"),
    (("--source", "test://thumb-up", "--input-flip", "up"), "flip method"),
    (("--source", "test://thumb-up", "--input-width", "64"), "half a"),
    (("--source", __file__), "cannot be read"), (("--source", "test://thumb-up", "--seconds", "0"), "--seconds cannot"),
    (("--source", "FILM", "--start", "3", "--end", "2"), "--end cannot"), (("--source", "FILM", "--start", "50"), "nothing was recorded"),
    (("--source", "0", "--start", "1"), "no beginning and end"), (("--source", "test://wave", "--end", "1"), "no beginning and end"),
    (("--source", "FILM", "--start", "9.9", "--end", "16"), "at least 3.05 s of video"),
    (("--source", "FILM", "--end", "inf"), "--end cannot"),
    (("--source", "FILM", "--start", "inf"), "--start cannot"),
])
def test_wrong_input_is_refused_and_leaves_nothing(film, tmp_path, argv, words):
    with pytest.raises(TsmEdgeError) as error:
        run("--label", "wave", "--output", tmp_path / "clips", *(film if v == "FILM" else v for v in argv))
    assert words in str(error.value) and error.value.found and error.value.do
    assert not (tmp_path / "clips" / "wave").exists()


@pytest.mark.parametrize("label, words", [("a/b", "cannot be used"), ("..", "cannot be used"), ("", "cannot be used"),
                                          ("Labels.txt", "cannot be used"),
                                          ("Swipe Left", "nearly that of another")])
def test_labels_that_make_no_class_are_refused(tmp_path, label, words):
    (tmp_path / "swipe-left").mkdir()
    with pytest.raises(InputError, match=words):
        record.class_folder(tmp_path, label)
    assert [p.name for p in tmp_path.iterdir()] == ["swipe-left"]


def test_labels_follow_the_list_where_there_is_one(tmp_path):
    (tmp_path / "labels.txt").write_text("wave\nrest\n")
    assert record.class_folder(tmp_path, "wave").is_dir()
    with pytest.raises(InputError, match="did you mean 'wave'"):
        record.class_folder(tmp_path, "waves")


def test_the_clips_are_a_data_set(tiny, film, tmp_path):
    from tsm_edge.training.data.datasets import ClipDataset
    from tsm_edge.training.data.listing import find_items

    done = tiny.run("--label", "wave", "--output", tmp_path, "--source", film, module="record")
    assert done.stdout.splitlines()[-1] == f"PASSED 3 clips in {tmp_path}/wave"
    run("--label", "rest", "--output", tmp_path, "--source", film, "--seconds", 5)
    items, classes = find_items(tmp_path)
    assert classes == ["rest", "wave"] and [i.label for i in items] == [0, 0, 1, 1, 1]
    assert ClipDataset(items, train=False)[4][0].shape == (8, 48, 64, 3)
