"""Photographs behind rendered hands, photographed hands in their place, cameras of every shape."""
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tsm_edge.errors import InputError
from tsm_edge.training.gestures import cache, clips, people, photos
from tsm_edge.training.gestures.clips import Setting, render_clip
from tsm_edge.training.gestures.cutouts import CutOut
from tsm_edge.training.gestures.draw import Camera
from tsm_edge.training.gestures.labels import CLASSES, CORE_CLASSES, SETS, WEBCAM_CLASSES, left_out
from tsm_edge.training.gestures.motion import Actor
from tsm_edge.training.gestures.scene import Skin


@pytest.fixture
def folder(tmp_path):
    """Three photographs, all of one strange colour."""
    for i in range(3):
        picture = np.full((120, 160, 3), (40, 200, 80 + i), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    return tmp_path


@pytest.fixture
def hands(tmp_path):
    """An .npz as people.py writes it: a red square for a palm, whose thumb side has a blue edge."""
    rgba = np.zeros((2, people.CANVAS, people.CANVAS, 4), np.uint8)
    rgba[:, 92:132, 92:132] = (200, 30, 30, 255)
    rgba[:, 92:132, 128:132] = (30, 30, 200, 255)
    np.savez(tmp_path / "people.npz", hands=rgba, kinds=np.array(["palm", "up"]), sides=np.array([1, 1], np.int8),
             scenes=np.full((2, 60, 80, 3), (10, 240, 10), np.uint8))
    return str(tmp_path / "people.npz")


def test_photographs_are_read_once_and_small(folder, tmp_path):
    many = photos.load((str(folder),))
    assert len(many) == 3 and many[0].shape == (120, 160, 3) and tuple(many[1][0, 0]) == (81, 200, 40)
    assert photos.load((str(folder),)) is many
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photographs"):
        photos.load((str(tmp_path / "empty"),))


def test_a_window_lies_inside_its_photograph():
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (120, 1, 3))
    ways = set()
    for seed in range(40):
        part = photos.window(np.random.default_rng(seed), ramp, 48, 64).astype(int)
        assert part.shape == (48, 64, 3)
        step = np.diff(part[24, :, 0])
        assert (step >= 0).all() or (step <= 0).all()  # no reflected edge; mirrored or not
        ways.add(step.sum() > 0)
    assert ways == {True, False}


def test_photographs_stand_behind_the_hands_of_training_alone(folder, hands):
    green = 0
    for seed in range(12):
        frames = render_clip("Thumb Up", 2, (64, 48), seed, 4.0, setting=Setting((str(folder),), hands))
        red, g, blue = frames[0].reshape(-1, 3).mean(0)
        green += g > red + 15 and g > blue + 15
    assert green >= 5  # three of four, less those whose light was coloured


def test_a_clip_follows_from_its_seed_with_everything_on(folder, hands):
    setting = Setting((str(folder),), hands, True, left_out(WEBCAM_CLASSES))
    for label in ("Doing other things", "No gesture", "Stop Sign"):
        a, b = (render_clip(label, 6, (64, 48), 5, 8.0, setting=setting) for _ in range(2))
        assert np.array_equal(a, b) and a.shape == (6, 48, 64, 3)
        assert not np.array_equal(a, render_clip(label, 6, (64, 48), 6, 8.0, setting=setting))


def test_cameras_have_their_shapes_and_the_whole_picture_is_seen():
    shapes = set()
    for seed in range(120):
        stage = clips.Stage(np.random.default_rng(seed), (64, 48), setting=Setting(cameras=True))
        assert stage.size == (64, 48)
        shapes.add(round(stage.drawn[0] / stage.drawn[1], 1))
    assert shapes == {1.3, 1.8, 0.8, 0.6}


def test_a_photographed_hand_moves_and_turns_as_the_drawn_one():
    rgba = np.zeros((people.CANVAS, people.CANVAS, 4), np.uint8)
    rgba[96:128, 96:128] = 255
    rgba[96:104, 96:128, :3] = 0  # a black edge above
    one = people.People(rgba[None], ["palm"], np.array([1]), None)
    look = SimpleNamespace(sleeve=np.zeros(3))
    cut, camera = CutOut(np.random.default_rng(0), one, 0, look), Camera(100.0, (80, 60), 2.0)
    pose = np.zeros((1, 16))
    centre = []
    for x, roll in ((0.0, 0.0), (0.4, 0.0), (0.0, np.pi / 2)):
        pose[0, 0], pose[0, 5] = x, roll
        layer = cut.layer(pose, 1, camera, 0.0, (160, 120))
        weight = layer[..., 3]
        y, x_ = np.mgrid[:120, :160]
        centre.append(((weight * x_).sum() / weight.sum(), (weight * y).sum() / weight.sum()))
        light = layer[..., 0] + 1e-9
        below = ((light * y).sum() / light.sum() - centre[-1][1], (light * x_).sum() / light.sum() - centre[-1][0])
        if roll:
            assert below[1] < -1 and abs(below[0]) < 1  # what was above lies to the right: clockwise in the picture
        else:
            assert below[0] > 1 and abs(below[1]) < 1
    assert centre[1][0] - centre[0][0] == pytest.approx(0.4 * 50, abs=1.5) and centre[1][1] == pytest.approx(centre[0][1], abs=0.5)


def test_the_other_hand_is_its_mirror_image(hands):
    loaded, camera = people.load(hands), Camera(100.0, (80, 60), 2.0)
    look = SimpleNamespace(sleeve=np.array([30.0, 30, 200]))
    cut = CutOut(np.random.default_rng(0), loaded, 0, look)
    right, left = (cut.layer(np.zeros((1, 16)), side, camera, 0.0, (161, 121)) for side in (1, -1))
    assert np.abs(right[:, ::-1] - left).mean() < 0.1 * np.abs(right - left).mean()  # the blue edge changes its side


def test_a_file_that_holds_no_hands_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    (tmp_path / "text.npz").write_text("no")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(InputError, match="holds no hands"):
            people.load(str(tmp_path / name))


def test_a_camera_that_is_carried_about_moves_the_whole_picture_and_cuts():
    pictures = [np.random.default_rng(k).integers(0, 255, (60, 80, 3), np.uint8) for k in range(2)]
    pictures = [cv2.GaussianBlur(p, (0, 0), 4) for p in pictures]
    wild = photos.Wild(np.random.default_rng(1), pictures)
    seen = np.stack([wild.at(t) for t in np.arange(0, 3, 0.125)]).astype(int)
    change = np.abs(np.diff(seen, axis=0)).mean((1, 2, 3))
    assert (change > 0.05).all() and change.max() > 2 * np.median(change)  # the cut
    still = photos.Living(np.random.default_rng(0), pictures[0])
    still.still = True
    assert still.at(1.0) is pictures[0]


def test_other_things_are_also_the_gestures_that_a_set_leaves_out():
    others = left_out(WEBCAM_CLASSES)
    assert "Zooming In With Full Hand" in others and "Swiping Left" not in others and "Sliding Two Fingers Left" not in others
    assert left_out(CLASSES) == () and set(SETS["core"]) == set(CORE_CLASSES) and set(WEBCAM_CLASSES) <= set(CORE_CLASSES)
    two = 0
    for seed in range(60):
        show = Actor(np.random.default_rng(seed), others=("Rolling Hand Forward",)).perform("Doing other things")
        assert show.label == "Doing other things"
        two += len(show.hands) == 2  # nothing else is done with both hands
    assert 10 < two < 30


def test_a_cache_is_of_its_photographs(folder, tmp_path):
    asked = dict(clips_per_class=1, classes=("Thumb Up",), n_frames=2, size=(16, 16), workers=1, setting=Setting((str(folder),)))
    made = cache.prerender(tmp_path / "c", **asked)
    assert made.record["photos"].startswith("3 ")
    with pytest.raises(InputError, match="holds another cache"):
        cache.prerender(tmp_path / "c", **{**asked, "setting": Setting()})


def test_photographs_need_mediapipe_to_be_cut_out(folder, tmp_path):
    if subprocess.run([sys.executable, "-c", "import mediapipe"], capture_output=True).returncode == 0:
        pytest.skip("mediapipe is installed here")
    (folder / "hand_palm").mkdir()
    (folder / "0.png").rename(folder / "hand_palm" / "0.png")
    with pytest.raises(InputError, match="mediapipe is not installed") as error:
        people.extract(folder)
    assert "pip install mediapipe" in error.value.do
    with pytest.raises(InputError, match="no photographs"):
        people.extract(tmp_path / "hand_palm" / "nothing")


def test_a_hand_is_cut_out_along_its_outline():
    """A skin-coloured disc with fingers before a dark wall, with landmarks put where they are."""
    picture = np.full((300, 300, 3), (50, 60, 70), np.uint8)
    points = np.zeros((21, 2))
    points[0] = 150, 210
    for f, x in enumerate((100, 125, 145, 165, 185)):
        for k in range(4):
            points[1 + 4 * f + k] = x, 160 - 22 * k
    for a, b in people._FINGERS:
        cv2.line(picture, tuple(int(v) for v in points[a]), tuple(int(v) for v in points[b]), (215, 165, 140), 17)
    cv2.fillConvexPoly(picture, np.int32([[90, 165], [195, 165], [160, 220], [140, 220]]), (215, 165, 140))
    truth = picture[..., 0] == 215
    alpha = people.outline(picture, points, None) > 127
    both = (alpha & truth).sum() / (alpha | truth).sum()
    assert both > 0.8, both
    hand = people.cut_out(picture, np.where(alpha, 255, 0).astype(np.uint8), points)
    assert hand.shape == (people.CANVAS, people.CANVAS, 4) and 0.02 < (hand[..., 3] > 127).mean() < 0.2
    gone = people.without(picture, np.where(alpha, 255, 0).astype(np.uint8))
    assert np.abs(gone[truth].astype(int) - (50, 60, 70)).mean() < 25


def _stages(seed, **changed):
    """Two renderings of one performance: as the seed has it, and with attributes of its stage changed."""
    out = []
    for change in ({}, changed):
        stage = clips.Stage(np.random.default_rng(seed), (96, 72))
        stage.lens.noise, stage.lens.quality, stage.overlay, stage.codec = None, 0, None, False
        vars(stage).update(change)
        show = Actor(np.random.default_rng(seed), stage.half_w, stage.half_h).perform("Stop Sign")
        times = np.arange(8) / 8 + show.stroke[0]
        out.append(stage.render(show, times, times, 8.0).astype(int))
    return out


def test_some_clips_went_through_an_encoder():
    plain, coded = _stages(3, codec=True)
    error = np.abs(plain - coded)
    assert 0.2 < error.mean() < 12 and coded.shape == plain.shape


def test_programs_draw_over_some_pictures_and_it_stands_still():
    overlay = photos.Overlay(np.random.default_rng(0), 144, 144)
    overlay.items = [(0, (10, 10), (60, 60), [255.0, 0.0, 255.0])]
    plain, drawn = _stages(3, overlay=overlay)
    changed = (plain != drawn).any((0, 3))
    assert changed[5:32, 5:32].any() and not changed[40:].any() and not changed[:, 40:].any()
    assert changed.sum() < 0.1 * changed.size


def test_skin_is_uneven_where_a_hand_was_painted_and_only_there():
    plain = np.full((60, 80, 3), 100, np.uint8)
    painted = plain.copy()
    painted[20:40, 30:50] = 160
    skin = Skin(np.random.default_rng(0), 80, 60)
    once, moved = skin(painted, plain, (0, 0)), skin(painted, plain, (7, 3))
    hand = np.zeros((60, 80), bool)
    hand[20:40, 30:50] = True
    for picture in (once, moved):
        assert np.array_equal(picture[~hand], plain[~hand]) and picture[hand].std() > 1
    assert np.array_equal(once[20:37, 30:43], moved[23:40, 37:50])  # the folds go with the hand
