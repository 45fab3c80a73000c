"""Caches hold what the generator renders, are complete or not there, and are made once."""
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

cv2.setNumThreads(1)

from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.training.data.listing import read_folder  # noqa: E402
from tsm_edge.training.gestures.cache import CachedClips, prerender  # noqa: E402
from tsm_edge.training.gestures.cli import _main as gestures_main  # noqa: E402
from tsm_edge.training.gestures.cli import label_of, write_video  # noqa: E402
from tsm_edge.training.gestures.clips import SPLITS, GestureDataset, render_clip  # noqa: E402

SOME = ("Swiping Left", "No gesture", "Thumb Up")


@pytest.mark.parametrize("workers", [1, 2])
def test_cached_clips_are_the_rendered_ones(tmp_path, workers):
    asked = {"split": "val", "clips_per_class": 3, "classes": SOME, "n_frames": 4, "size": (32, 24)}
    cache = prerender(tmp_path / "c", workers=workers, **asked)
    direct = GestureDataset("val", 3, SOME, n_segment=4, size=(32, 24))
    assert len(cache) == len(direct) == 9 and cache.clips.shape == (9, 4, 24, 32, 3)
    for i in range(9):
        clip, label = cache[i]
        assert label == direct[i][1] and np.array_equal(clip, direct[i][0])
    _, info = render_clip("Thumb Up", 4, (32, 24), SPLITS["val"][0] + 2, 4 / 3, info=True)
    assert np.allclose(cache.strokes[8], np.array(info["stroke"]) / 3)
    assert np.array_equal(cache.targets[8], info["targets"])


def test_a_process_that_is_started_afresh_is_sent_a_caches_name_and_not_its_clips(tmp_path):
    cache = prerender(tmp_path / "c", clips_per_class=1, classes=SOME, n_frames=2, size=(48, 48), workers=1)
    sent = pickle.dumps(cache)
    assert len(sent) < 1000 < cache.clips.nbytes and np.array_equal(pickle.loads(sent)[2][0], cache[2][0])


def test_a_cache_is_reused_and_never_replaced_by_another(tmp_path):
    asked = {"clips_per_class": 1, "classes": SOME, "n_frames": 2, "size": (16, 16), "workers": 1}
    prerender(tmp_path / "c", **asked)
    calls = []
    assert len(prerender(tmp_path / "c", progress=lambda *a: calls.append(a), **asked)) == 3 and not calls
    with pytest.raises(InputError, match="another cache"):
        prerender(tmp_path / "c", **{**asked, "clips_per_class": 2})
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="no cache"):
        prerender(tmp_path / "mine", **asked)
    with pytest.raises(InputError, match="no gesture cache"):
        CachedClips(tmp_path / "mine")


def test_a_broken_off_rendering_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prerender(tmp_path / "c", clips_per_class=1, classes=SOME, n_frames=2, size=(16, 16), workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_render_end_with_the_one_that_is_killed(tmp_path):
    argv = "'c', clips_per_class=2, classes=('Thumb Up', 'No gesture'), n_frames=2, size=(16, 16), workers=2"
    script = ("import time; from tsm_edge.training.gestures.cache import prerender; "
              f"prerender({argv}, progress=lambda *done: print('here', flush=True) or time.sleep(600))")
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate(timeout=60)  # returns when the last process that holds the pipe is gone
    assert [p.name.split("-")[0] for p in tmp_path.iterdir()] == [".c.part"]
    prerender(tmp_path / "c", clips_per_class=1, classes=SOME, n_frames=2, size=(16, 16), workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_what_is_wrong_in_a_process_that_renders_is_said(tmp_path):
    asked = {"clips_per_class": 2, "classes": SOME, "n_frames": 2, "workers": 2}
    with pytest.raises(InputError, match="picture size out of range"):
        prerender(tmp_path / "c", size=(8, 8), **asked)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="c cannot be written"):
        prerender(tmp_path / "file" / "c", size=(16, 16), **asked)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))  # as a full disk
        with pytest.raises(InputError, match="c cannot be written"):
            prerender(tmp_path / "c", size=(32, 32), **asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_killed_process_that_renders_is_said(tmp_path):
    def kill(done, total):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(InputError, match="process that renders was killed"):
        prerender(tmp_path / "c", clips_per_class=200, classes=SOME, n_frames=2, size=(16, 16), workers=2, progress=kill)
    assert not list(tmp_path.iterdir())


def test_command_writes_sheets_streams_and_data_sets(tmp_path, capsys):
    small = ["--size", "32x32", "--frames", "4"]
    assert gestures_main(["sheet", "--label", "thumb-up", "Swiping Left", "--output", str(tmp_path / "s.png"), *small]) == 0
    assert cv2.imread(str(tmp_path / "s.png")).shape == (64, 32 * 12, 3)
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASSED")
    assert gestures_main(["dataset", "--label", "thumb-up", "swiping-left", "--per-class", "2", "--json",
                          "--output", str(tmp_path / "d"), *small]) == 0
    assert len(json.loads(capsys.readouterr().out)["written"]) == 4
    items, classes = read_folder(tmp_path / "d")
    assert classes == ["thumb-up", "swiping-left"] and [i.label for i in items] == [1, 1, 0, 0]
    assert gestures_main(["stream", "--label", "thumb-up", "--count", "1", "--output", str(tmp_path / "t.mp4"), *small]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["intervals"][0]["label"] == "Thumb Up"


def test_a_second_data_set_in_the_folder_adds_its_classes(tmp_path):
    for label in ("thumb-up", "swiping-left", "thumb-up"):
        argv = ["dataset", "--label", label, "--per-class", "1", "--output", str(tmp_path), "--size", "32x32", "--frames", "2"]
        assert gestures_main(argv) == 0
    items, classes = read_folder(tmp_path)
    assert classes == ["thumb-up", "swiping-left"] and [i.label for i in items] == [1, 0]
    (tmp_path / "labels.txt").unlink()  # as recorded clips have none: their folders are the classes
    gestures_main([v.replace("thumb-up", "stop-sign") for v in argv])
    assert read_folder(tmp_path)[1] == ["swiping-left", "thumb-up", "stop-sign"]


def test_a_video_on_a_full_disk_is_whole_or_not_there(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames[:2], 12)
    before, limit = (tmp_path / "a.mp4").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("a.mp4", "b.avi"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
            with pytest.raises(InputError, match=f"/{name} cannot be written"):
                write_video(tmp_path / name, frames, 12)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize("argv, words", [
    ("stream --count 0", "--count cannot"), ("video --frames 0", "--frames cannot"), ("video --frames -1", "--frames cannot"),
    ("sheet --rows 0", "--rows cannot"), ("sheet --columns 0", "--columns cannot"), ("dataset --per-class 0", "--per-class cannot"),
    ("video --output FILE/v.mp4", "cannot be written"), ("dataset --output FILE", "cannot be written"),
    ("sheet --output FILE/s.png", "cannot be written"), ("sheet --output s.gif", "cannot be written"),
    ("video --fps nan", "frame rate"), ("video --size 8x8", "picture size"),
    ("video --split val --seed 10000000", "--seed cannot")])
def test_wrong_input_of_the_command_is_refused(tmp_path, argv, words):
    (tmp_path / "FILE").write_text("")
    more = argv.replace("FILE", str(tmp_path / "FILE")).split()
    small = ["--output", str(tmp_path / "v.mp4"), "--label", "thumb-up", "--size", "16x16", "--frames", "2"]
    with pytest.raises(InputError, match=words):
        gestures_main([more[0], *small, *more[1:]])
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


def test_mistyped_gesture_is_refused_with_the_nearest():
    assert label_of("swiping-left") == label_of("Swiping Left") == "Swiping Left"
    with pytest.raises(InputError, match="did you mean 'swiping-left'"):
        label_of("swipping-left")
