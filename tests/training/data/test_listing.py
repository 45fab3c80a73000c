"""Data sets as people have them, written here: videos and frame folders, in each layout, with bad files among them."""
import json
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tsm_edge.errors import InputError
from tsm_edge.training.data import augment
from tsm_edge.training.data.datasets import ClipDataset, UnreadableClip, read_clip
from tsm_edge.training.data.listing import Item, class_finder, find_items, read_classes, read_folder, read_list
from tsm_edge.training.data.sampling import Sampler
from tsm_edge.training.gestures.cli import write_video
from tsm_edge.training.gestures.labels import slug
from tsm_edge.training.record import class_folder


def numbered(n, size=(64, 48)):
    """Frames whose grey value tells their number: 6, 12, 18, ..."""
    return [np.full((size[1], size[0], 3), 6 * (i + 1), np.uint8) for i in range(n)]


def numbers(clip):
    """Frame numbers of a decoded clip of `numbered` frames."""
    return np.round(clip.mean((1, 2, 3)) / 6 - 1).astype(int).tolist()


def frame_folder(path, n, pattern="{:05d}.jpg"):
    path.mkdir(parents=True)
    for i, frame in enumerate(numbered(n), 1):
        cv2.imwrite(str(path / pattern.format(i)), frame)
    return path


@pytest.fixture
def folders(tmp_path):
    """Two classes: videos in both, a frame folder in one."""
    write_video(tmp_path / "wave" / "a.avi", numbered(12), 12)
    write_video(tmp_path / "wave" / "b.mp4", numbered(9), 12)
    frame_folder(tmp_path / "point" / "clip10", 6)
    write_video(tmp_path / "point" / "c.avi", numbered(20), 12)
    (tmp_path / "point" / "notes.txt").write_text("not a clip")
    return tmp_path


def test_folder_per_class(folders):
    items, classes = read_folder(folders)
    assert classes == ["point", "wave"]
    assert [(i.path[len(str(folders)) + 1:], i.label) for i in items] == [
        ("point/c.avi", 0), ("point/clip10", 0), ("wave/a.avi", 1), ("wave/b.mp4", 1)]
    (folders / "labels.txt").write_text("wave\npoint\n")
    items, classes = read_folder(folders)
    assert classes == ["wave", "point"] and [i.label for i in items] == [1, 1, 0, 0]
    with pytest.raises(InputError, match="point"):
        read_folder(folders, ["wave"])
    with pytest.raises(InputError, match="no clips"):
        (folders / "empty" / "x").mkdir(parents=True)
        read_folder(folders / "empty")


@pytest.mark.parametrize("name", ["wave/a.avi", "point/clip10", "point/c.avi"])
def test_decoding_gives_the_frames_that_were_asked_for(folders, name):
    clip = read_clip(folders / name)
    assert numbers(clip) == list(range(len(clip)))
    assert clip.shape[1:] == (48, 64, 3) and clip.dtype == np.uint8
    assert numbers(read_clip(folders / name, lambda n, fps: np.array([0, 0, 3, 5]))) == [0, 0, 3, 5]


def test_colours_are_rgb(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    write_video(tmp_path / "red.avi", [red] * 3, 10)
    assert read_clip(tmp_path / "red.avi")[0].mean((0, 1))[0] > 150
    (tmp_path / "f").mkdir()
    cv2.imwrite(str(tmp_path / "f" / "1.png"), red[..., ::-1])
    assert read_clip(tmp_path / "f")[0, 0, 0].tolist() == [200, 0, 0]


def test_reference_list_of_frame_folders(tmp_path):
    frame_folder(tmp_path / "20bn" / "100", 5)
    frame_folder(tmp_path / "20bn" / "101", 7)
    (tmp_path / "list.txt").write_text("100 5 0\n101 7 2\n")
    items, classes = read_list(tmp_path / "list.txt", root=tmp_path / "20bn")
    assert [(i.n_frames, i.label) for i in items] == [(5, 0), (7, 2)] and classes == ["0", "1", "2"]
    assert numbers(read_clip(items[1].path)) == list(range(7))


def test_jester_layout(tmp_path):
    frame_folder(tmp_path / "20bn-jester-v1" / "34870", 37)
    (tmp_path / "labels.csv").write_text("Drumming Fingers\nSwiping Left\n")
    (tmp_path / "train.csv").write_text("34870;Drumming Fingers\n56557;Swiping Left\n")
    items, classes = find_items(tmp_path / "train.csv", tmp_path / "20bn-jester-v1", tmp_path / "labels.csv")
    assert classes == ["Drumming Fingers", "Swiping Left"] and [i.label for i in items] == [0, 1]
    data = ClipDataset(items, Sampler("uniform", 8), train=False)
    clip, label = data[0]
    assert clip.shape == (8, 48, 64, 3) and label == 0
    assert numbers(clip)[:4] == [2, 6, 11, 16]  # middles of eight parts of 37
    (tmp_path / "test.csv").write_text("34870\n")
    assert find_items(tmp_path / "test.csv", None, ["a"])[0][0].label == -1


def test_frame_folders_are_read_in_the_order_of_their_numbers(tmp_path):
    frame_folder(tmp_path / "x", 12, "img_{}.png")
    assert numbers(read_clip(tmp_path / "x")) == list(range(12))


def test_hidden_files_among_frames_are_no_frames(tmp_path):
    frame_folder(tmp_path / "x", 3)
    (tmp_path / "x" / "._00001.jpg").write_bytes(b"what a Mac leaves on other disks")
    assert numbers(read_clip(tmp_path / "x")) == [0, 1, 2]


def test_something_something_layout(tmp_path):
    write_video(tmp_path / "videos" / "78687.avi", numbered(6), 12)
    (tmp_path / "labels.json").write_text(json.dumps({"Pushing something": "1", "Holding something next to something": "0"}))
    (tmp_path / "train.json").write_text(json.dumps([
        {"id": "78687", "label": "holding potato next to vicks", "template": "Holding [something] next to [something]"},
        {"id": "1", "template": "Pushing [something]"}]))
    items, classes = find_items(tmp_path / "train.json", tmp_path / "videos", tmp_path / "labels.json")
    assert [i.label for i in items] == [0, 1] and items[0].path.endswith("78687.avi")
    assert len(read_clip(items[0].path)) == 6
    assert classes[0].startswith("Holding")


def test_ucf101_layout(tmp_path):
    video = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
    write_video(tmp_path / video, numbered(5), 25)
    (tmp_path / "classInd.txt").write_text("2 Archery\n1 ApplyEyeMakeup\n")
    (tmp_path / "trainlist01.txt").write_text(f"{video} 1\nArchery/x.avi 2\n")
    (tmp_path / "testlist01.txt").write_text(f"{video}\n")
    names = read_classes(tmp_path / "classInd.txt")
    assert names == ["ApplyEyeMakeup", "Archery"]
    items, _ = read_list(tmp_path / "trainlist01.txt", classes=names, first_label=1)
    assert [i.label for i in items] == [0, 1]
    assert [i.label for i in read_list(tmp_path / "testlist01.txt", classes=names)[0]] == [0]
    with pytest.raises(InputError, match="line 2.*unknown class(.|\n)*first label"):
        read_list(tmp_path / "trainlist01.txt", classes=names)


def test_lists_with_names_commas_headers_and_spaces(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nmy clips/a b.mp4,Thumb Up\nc.mp4,Swiping Left\n")
    items, classes = read_list(tmp_path / "a.csv")
    assert classes == ["Swiping Left", "Thumb Up"] and [i.label for i in items] == [1, 0]
    (tmp_path / "b.txt").write_text("my clips/a b.mp4 Thumb Up\n# a comment\nc.mp4 Swiping Left\n")
    assert [(i.path, i.label) for i in read_list(tmp_path / "b.txt")[0]] == [(i.path, i.label) for i in items]
    with pytest.raises(InputError, match="line 3"):
        read_list(tmp_path / "b.txt", classes=["Thumb Up"])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no clips"):
        read_list(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="no such file"):
        find_items(tmp_path / "nowhere")


@pytest.fixture
def with_bad_files(folders):
    (folders / "wave" / "bad-empty.mp4").write_bytes(b"")
    (folders / "wave" / "bad-noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (folders / "point" / "bad-frames").mkdir()
    (folders / "point" / "bad-frames" / "00001.jpg").write_bytes(b"no picture")
    items, _ = read_folder(folders)
    return [*items, Item(str(folders / "wave" / "gone.mp4"), 1)]


def test_unreadable_clips_are_skipped_counted_and_named(with_bad_files):
    data = ClipDataset(with_bad_files, Sampler("uniform", 4), augment.CentreCrop((32, 32)))
    for index in range(len(data)):
        clip, label = data[index]
        assert clip.shape == (4, 32, 32, 3) and label in (0, 1)
    bad = data.skipped()
    assert {p.rsplit("/", 1)[1] for p in bad} == {"bad-empty.mp4", "bad-noise.mp4", "bad-frames", "gone.mp4"}
    assert all(bad.values()) and "4 unreadable of 8" in data.report() and "gone.mp4" in data.report()


def test_the_file_of_skipped_clips_may_vanish_and_is_made_when_it_is_needed(with_bad_files, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = ClipDataset(with_bad_files, Sampler("uniform", 4), unreadable="none")
    assert not list((tmp_path / "temporary").iterdir()) and data.report() == ""
    assert data[len(data) - 1] is None and len(list((tmp_path / "temporary").iterdir())) == 1
    for path in (tmp_path / "temporary").iterdir():
        path.unlink()  # as a cleaner of temporary files does
    assert "1 unreadable of 8" in data.report() and "gone.mp4" in data.report()
    del data
    assert not list((tmp_path / "temporary").iterdir())


def test_unreadable_clips_can_be_left_out_or_refused(with_bad_files):
    data = ClipDataset(with_bad_files, Sampler("uniform", 4), train=False, unreadable="none")
    batch = [data[i] for i in range(len(data))]
    assert batch.count(None) == 4 and len(batch) == 8
    with pytest.raises(InputError, match="gone.mp4"):
        ClipDataset(with_bad_files[-1:], unreadable="raise")[0]
    with pytest.raises(InputError, match="no clip"):
        ClipDataset(with_bad_files[-1:])[0]


def test_a_video_that_ends_early_is_sampled_again_from_what_is_there(tmp_path, monkeypatch):
    write_video(tmp_path / "a.avi", numbered(10), 12)
    real = cv2.VideoCapture

    class Boasting:
        def __init__(self, path):
            self.real = real(path)

        def get(self, key):
            return 25.0 if key == cv2.CAP_PROP_FRAME_COUNT else self.real.get(key)

        def __getattr__(self, name):
            return getattr(self.real, name)

    monkeypatch.setattr(cv2, "VideoCapture", Boasting)
    clip = read_clip(tmp_path / "a.avi", lambda n, fps: np.arange(n))
    assert numbers(clip) == list(range(10))


def test_truncated_video_gives_its_first_frames_or_is_named(tmp_path):
    write_video(tmp_path / "a.avi", [np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
                                     for i in range(30)], 12)
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    try:
        assert 0 < len(read_clip(tmp_path / "cut.avi")) < 30
    except UnreadableClip as error:
        assert str(error)


def test_chance_follows_from_seed_epoch_and_index(folders):
    items, _ = read_folder(folders)
    steps = augment.Compose(augment.MultiScaleCrop((24, 24)), augment.ColourJitter())

    def make():
        return ClipDataset(items, Sampler("uniform", 4), steps, seed=3)

    one, two = make(), make()
    late = [two[1, i][0] for i in (3, 2, 1, 0)][::-1]  # another order, as other workers would
    for i in range(4):
        assert np.array_equal(one[1, i][0], late[i])
    assert not np.array_equal(one[1, 0][0], one[2, 0][0])
    one.epoch = 1
    assert np.array_equal(one[0][0], late[0])


def test_works_in_worker_processes_of_a_torch_loader(with_bad_files):
    torch = pytest.importorskip("torch")
    data = ClipDataset(with_bad_files, Sampler("uniform", 4), augment.CentreCrop((32, 32)), finish=augment.normalise)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)
    shapes = [tuple(clips.shape) for clips, labels in loader]
    assert shapes == [(4, 4, 3, 32, 32)] * 2
    assert len(data.skipped()) == 4  # gathered from both workers


def test_folders_without_a_class_list_are_numbered_as_people_count(tmp_path):
    for name in ("c2", "c10", "c1"):
        frame_folder(tmp_path / name / "clip", 2)
    assert read_folder(tmp_path)[1] == ["c1", "c2", "c10"]


def write_list(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_slugs_keep_the_letters_of_every_script():
    assert [slug(name) for name in ("Swiping Left", "swiping_left", "влево", "ВПРАВО", "左", "हिन्दी", "👍")] == [
        "swiping-left", "swiping-left", "влево", "вправо", "左", "हिन्दी", ""]
    assert slug("cafe\u0301") == slug("CAFÉ") and slug("Straße") == "strasse"  # as Macs write names, and as others do


@pytest.mark.parametrize("names", [("влево", "вправо"), ("👍", "👎"), ("go left", "go-left"), ("²", "a")])
def test_folders_whose_names_are_no_ascii_or_alike_are_classes_of_their_own(tmp_path, names):
    for name in names:
        frame_folder(tmp_path / name / "clip", 1)
    items, classes = read_folder(tmp_path)
    assert {Path(i.path).parent.name: classes[i.label] for i in items} == {name: name for name in names}


def test_a_class_is_found_by_its_exact_name_then_by_its_slug_and_never_guessed():
    find = class_finder(["Go Left", "go-left", "Вправо"])
    assert [find(n) for n in ("Go Left", "go-left", "вправо", "stop", "👍")] == [0, 1, 2, None, None]
    with pytest.raises(InputError, match="more than one class"):
        find("GO LEFT")
    for wrong in ([], ["a", "a"], ["a", " "]):
        with pytest.raises(InputError, match="cannot be used"):
            class_finder(wrong)


@pytest.mark.parametrize("text", ['["a", "a"]', "[]", '["a", ""]', '{"a": 0, "b": 0}', '"ab"', '{"a": Infinity}'])
def test_json_classes_are_checked_as_lines_are(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(InputError, match="no list of classes"):
        read_classes(tmp_path / "classes.json")


def test_numbered_lines_are_names_where_clips_are_called_so(tmp_path):
    listed = write_list(tmp_path / "labels.txt", "2 fingers", "1 finger")
    assert read_classes(listed) == ["finger", "fingers"]  # as UCF101's classInd.txt
    assert read_classes(listed, ["1-finger"]) == ["2 fingers", "1 finger"]
    for name in ("1 finger", "2 fingers"):
        frame_folder(tmp_path / name / "clip", 1)
    assert read_folder(tmp_path)[1] == find_items(tmp_path, classes=listed)[1] == ["2 fingers", "1 finger"]
    assert class_folder(tmp_path, "1 finger").is_dir()
    rows = write_list(tmp_path / "list.csv", "a.mp4,1 finger", "b.mp4,2 fingers")
    assert [i.label for i in find_items(rows, classes=listed)[0]] == [1, 0]


@pytest.mark.parametrize("lines, wanted", [
    (("path,n_frames,label", "a,37,Stop", "b,12,Go"), [("a", 37, "Stop"), ("b", 12, "Go")]),
    (("video_id;label;frames;label_id;shape;format", "1;Stop;37;14;(100, 176);jpg", "2;Go;35;2;(100, 176);jpg"),
     [("1", 37, "Stop"), ("2", 35, "Go")]),
    (("label\tfile", "Stop\ta.mp4", "Go\tb.mp4"), [("a.mp4", None, "Stop"), ("b.mp4", None, "Go")]),
    (("file,gesture", "a.mp4,Stop", "b.mp4,Go"), [("a.mp4", None, "Stop"), ("b.mp4", None, "Go")]),
    (("path n_frames label", "a 37 1", "b 12 0"), [("a", 37, "1"), ("b", 12, "0")]),
    (('"a, b.mp4","Stop"', 'c.mp4,"Go; now"'), [("a, b.mp4", None, "Stop"), ("c.mp4", None, "Go; now")]),
    (("   # remark", "a.mp4 Stop", "b.mp4 Go"), [("a.mp4", None, "Stop"), ("b.mp4", None, "Go")]),
    (("a\u2028b.mp4;Stop", "b.mp4;Go"), [("a\u2028b.mp4", None, "Stop"), ("b.mp4", None, "Go")]),
    (("a.mp4,Clip", "b.mp4,Go"), [("a.mp4", None, "Clip"), ("b.mp4", None, "Go")]),  # no header
    (("x/a b.mp4 Stop", "c, d.mp4 Go", "e.mp4 Go"), [("x/a b.mp4", None, "Stop"), ("c, d.mp4", None, "Go"), ("e.mp4", None, "Go")]),
    (("a.mp4,Stop,", "b.mp4,Go,"), [("a.mp4", None, "Stop"), ("b.mp4", None, "Go")]),
    (("Stop/a b.mp4", "Go/c.mp4"), [("Stop/a b.mp4", None, "Stop"), ("Go/c.mp4", None, "Go")]),  # the class is the folder
])
def test_lists_are_read_as_people_write_them(tmp_path, lines, wanted):
    items, classes = read_list(write_list(tmp_path / "list.csv", *lines))
    assert [(i.path, i.n_frames, classes[i.label]) for i in items] == [(str(tmp_path / p), n, c) for p, n, c in wanted]


@pytest.mark.parametrize("line, words", [
    (",Stop", "line 2: no path"), ("b.mp4,Go,train", "line 2: it is not clear"), ("b.mp4,Go on, then stop", "line 2: it is not clear"),
])
def test_lines_that_cannot_be_read_are_refused_by_number(tmp_path, line, words):
    with pytest.raises(InputError, match=words):
        read_list(write_list(tmp_path / "list.csv", "a.mp4,Stop", line))


def test_labels_that_look_like_numbers_are_names_where_classes_are_called_so(tmp_path):
    digits = write_list(tmp_path / "list.txt", "a.mp4 1", "b.mp4 3")
    assert [i.label for i in read_list(digits, classes=["1", "2", "3"])[0]] == [0, 2]
    assert [i.label for i in read_list(digits, classes=["a", "b", "c", "d"])[0]] == [1, 3]
    items, classes = read_list(write_list(tmp_path / "odd.csv", "a.mp4,²", "b.mp4,20261121"))
    assert classes == ["20261121", "²"] and [i.label for i in items] == [1, 0]


def test_names_that_no_disk_can_hold_are_clips_that_cannot_be_read(tmp_path):
    items, _ = read_list(write_list(tmp_path / "list.csv", f"{'x' * 300},Stop"))
    with pytest.raises(UnreadableClip):
        read_clip(items[0].path)
    with pytest.raises(InputError, match="no data set"):
        find_items("x" * 300)


def test_odd_entries_of_a_class_folder_are_left_out_or_named(tmp_path, folders):
    wave = folders / "wave"
    (wave / "gone").symlink_to(tmp_path / "nowhere")
    (wave / "gone.avi").symlink_to(tmp_path / "nowhere.avi")
    os.mkfifo(wave / "pipe")
    os.mkfifo(wave / "pipe.mp4")
    (wave / "._a.avi").write_bytes(b"a Mac's own")
    frame_folder(wave / ".trash", 2)
    (wave / "leftovers").mkdir()
    (wave / "leftovers" / ".hidden.jpg").write_bytes(b"")
    items, _ = read_folder(folders)
    assert [Path(i.path).name for i in items if i.label == 1] == ["a.avi", "b.mp4", "gone", "gone.avi", "pipe.mp4"]
    data = ClipDataset(items, Sampler("uniform", 2), train=False, unreadable="none")
    assert [data[i] is None for i in range(len(data))] == [False, False, False, False, True, True, True]
    assert {Path(p).name for p in data.skipped()} == {"gone", "gone.avi", "pipe.mp4"}


def test_folders_that_may_not_be_read_are_named(folders, monkeypatch):
    real = os.listdir

    def listdir(path):
        if Path(path).name == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    locked = "clip10"
    assert any(i.path.endswith("clip10") for i in read_folder(folders)[0])  # reading it will say why
    locked = "wave"
    with pytest.raises(InputError, match="cannot read .*wave(.|\n)*Permission denied"):
        read_folder(folders)
