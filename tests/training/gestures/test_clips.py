"""The rendered gestures move as their names say: seen in poses, in joints and in pixels."""
import itertools
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

cv2.setNumThreads(1)

from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.training.gestures import clips as gestures  # noqa: E402
from tsm_edge.training.gestures.clips import (  # noqa: E402
    CLASSES,
    MIRRORED,
    REVERSED,
    SPLITS,
    GestureDataset,
    Performer,
    render_clip,
    render_stream,
    split_of,
)
from tsm_edge.training.gestures.hand import joints  # noqa: E402
from tsm_edge.training.gestures.motion import Actor  # noqa: E402
from tsm_edge.training.gestures.scene import FAMILIES  # noqa: E402

SMALL = {"n_frames": 8, "size": (48, 40), "fps": 2.7}


def stroke_joints(label, seed, n=60):
    """Joints [n, 25, 3] of the first hand at n moments of the stroke."""
    show = Actor(np.random.default_rng(seed)).perform(label)
    assert show.label == label
    hand = show.hands[0]
    return joints(hand.at(np.linspace(*show.stroke, n)), hand.handed)[0]


def change(label, seed):
    """What the label is about, from joints: positive for the first of each pair of opposites below."""
    points = stroke_joints(label, seed)
    palm = points[:, [0, 5, 9, 13, 17]].mean(1)
    travel = palm[-1] - palm[0]
    if "Left" in label or "Right" in label:  # the performer's: before a camera that does not mirror, left is a greater column
        return travel[0]
    if label.endswith((" Up", " Down")):
        return -travel[1]
    if label.startswith(("Pushing", "Pulling")):
        return -travel[2]
    if label.startswith("Zooming"):
        opening = np.linalg.norm(points[:, 8] - points[:, 4], axis=1)
        return opening[-1] - opening[0]
    if label.startswith("Turning"):
        way = points[:, 9, :2] - points[:, 0, :2]
        return np.unwrap(np.arctan2(way[:, 1], way[:, 0]))[[0, -1]] @ [1, -1]  # y points down: falling is the performer's clockwise
    # Rolling: signed area swept in (distance, height); forward goes down in front, where z is small.
    y, z = (palm - palm.mean(0)).T[1:]
    return np.sum(y[:-1] * z[1:] - y[1:] * z[:-1])


FIRST = ("Swiping Left", "Swiping Up", "Sliding Two Fingers Left", "Sliding Two Fingers Up", "Pushing Hand Away",
         "Pushing Two Fingers Away", "Zooming In With Full Hand", "Zooming In With Two Fingers",
         "Turning Hand Clockwise", "Rolling Hand Forward")


@pytest.mark.parametrize("label", FIRST)
def test_strokes_go_where_their_names_say(label):
    for seed in range(25):
        assert change(label, seed) > 0, seed
        assert change(REVERSED[label], seed) < 0, seed


@pytest.mark.parametrize("label", [c for c in CLASSES if c.startswith(("Swiping", "Sliding"))])
def test_way_in_and_way_home_do_not_retrace_the_stroke(label):
    axis = 0 if label.endswith(("Left", "Right")) else 1
    for seed in range(40):
        actor = Actor(np.random.default_rng(seed))
        show = actor.perform(label)
        times = np.arange(0, show.duration, 0.01)
        palm = show.hands[0].at(times)[:, :2]
        seen = (np.abs(palm[:, 0]) < actor.half_w) & (np.abs(palm[:, 1]) < actor.half_h)
        start, end = show.hands[0].at(np.array(show.stroke))[:, axis]
        step = np.diff(palm[:, axis]) * np.sign(end - start)
        fast = np.abs(step) > 0.75 * np.abs(step[(times[1:] > show.stroke[0]) & (times[1:] < show.stroke[1])]).max()  # slower is no stroke
        back = -step[(step < 0) & seen[1:] & seen[:-1] & (fast | (axis == 0))].sum()
        assert back < 0.5 * abs(end - start), seed


def middle_of_change(frames):
    """Centre (x, y) of what differs from the clip's usual picture, per frame, and how much differs."""
    usual = np.median(frames, 0)
    weight = np.abs(frames - usual).sum(-1)
    weight = np.where(weight > 90, weight, 0.0)
    total = weight.sum((1, 2)) + 1e-9
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    return np.stack([(weight * x).sum((1, 2)) / total, (weight * y).sum((1, 2)) / total], -1), total


def test_swipes_are_seen_in_the_pixels_and_turn_around_when_played_backwards():
    right = 0
    trials = list(itertools.product(("Swiping Left", "Swiping Right"), range(12)))
    for label, seed in trials:
        frames, info = render_clip(label, 36, (64, 64), seed, info=True, variety=0)
        sign = 1 if label.endswith("Left") else -1
        for clip, (a, b), way in ((frames, info["stroke"], sign),
                                  (frames[::-1], (3 - info["stroke"][1], 3 - info["stroke"][0]), -sign)):
            at, _ = middle_of_change(clip.astype(float))
            first, last = np.clip(np.round(np.array([a, b]) * 12).astype(int), 0, 35)
            right += (at[last, 0] - at[first, 0]) * way > 3
    assert right >= 0.9 * 2 * len(trials)


@pytest.mark.parametrize("label", CLASSES)
def test_a_clip_follows_from_its_seed_alone(label):
    a = render_clip(label, seed=5, **SMALL)
    np.random.seed(1)
    b = render_clip(label, seed=5, **SMALL)
    assert a.shape == (8, 40, 48, 3) and a.dtype == np.uint8
    assert np.array_equal(a, b)
    assert not np.array_equal(a, render_clip(label, seed=6, **SMALL))


def test_every_clip_contains_its_stroke():
    for label, seed in itertools.product(CLASSES, range(6)):
        _, info = render_clip(label, 8, (32, 32), seed, fps=8 / 2.5, info=True)
        start, end = info["stroke"]
        assert -1e-6 <= start < end <= 2.5 + 1e-6, (label, seed)


def test_a_clip_shorter_than_a_held_pose_shows_a_part_of_it():
    strokes = [render_clip("Thumb Up", 4, (32, 32), seed, 8.0, info=True)[1]["stroke"] for seed in range(20)]
    whole = [stroke == (0.0, 0.5) for stroke in strokes]  # of a movement the stroke would be hurried to 94 % of the clip
    assert sum(whole) >= 5 and not all(whole) and all(end - start >= 0.25 - 1e-9 for start, end in strokes)


def test_splits_share_no_seed_and_no_background():
    for (a, (a0, a1)), (b, (b0, b1)) in itertools.combinations(SPLITS.items(), 2):
        assert a1 <= b0 or b1 <= a0
        assert not set(FAMILIES[a]) & set(FAMILIES[b])
    for name, (first, end) in SPLITS.items():
        assert split_of(first) == split_of(end - 1) == name
        families = {render_clip("No gesture", 1, (16, 16), first + k, info=True)[1]["family"] for k in range(30)}
        assert families == set(FAMILIES[name])
    with pytest.raises(InputError, match="split"):
        split_of(-1)


def test_label_maps_are_their_own_inverses():
    for table in (MIRRORED, REVERSED):
        assert set(table) == set(CLASSES)
        assert all(table[table[name]] == name for name in CLASSES)
    assert MIRRORED["Swiping Up"] == "Swiping Up" and REVERSED["Swiping Up"] == "Swiping Down"


def test_any_size_and_rate():
    for size, fps in (((33, 57), 5), ((176, 100), 12), ((320, 240), 30)):
        assert render_clip("Thumb Up", 2, size, 1, fps).shape == (2, size[1], size[0], 3)
    with pytest.raises(InputError, match="size"):
        render_clip("Thumb Up", 2, (4, 4))
    with pytest.raises(InputError, match="Swiping Left"):
        render_clip("Swiping Leftt", 2)


def test_stream_tells_when_each_gesture_is():
    labels = ["Swiping Left", "No gesture", "Thumb Up"]
    frames, intervals = render_stream(labels, (32, 32), 12, seed=3)
    assert [e["label"] for e in intervals] == labels
    ends = [0.0]
    for e in intervals:
        assert ends[-1] <= e["begin"] <= e["start"] < e["end"] <= e["finish"]
        ends.append(e["finish"])
    assert ends[-1] * 12 < len(frames)
    again, _ = render_stream(labels, (32, 32), 12, seed=3)
    assert np.array_equal(frames, again)


def test_endless_performer_gives_frames_as_they_are_needed():
    performer = Performer(itertools.cycle(["Swiping Left", "Swiping Right"]), (32, 32), 12, seed=1)
    frames = list(itertools.islice(performer, 200))
    assert len(frames) == 200 and frames[0].shape == (32, 32, 3)
    assert [e["label"] for e in performer.intervals[:3]] == ["Swiping Left", "Swiping Right", "Swiping Left"]


def test_dataset_items_are_clips_of_their_class():
    data = GestureDataset("val", 2, ("Swiping Left", "Thumb Up"), n_segment=4, size=(32, 32))
    assert len(data) == 4
    clips, targets = zip(*(data[i] for i in range(4)))
    assert targets == (0, 1, 0, 1)
    assert np.array_equal(clips[3], render_clip("Thumb Up", 4, (32, 32), SPLITS["val"][0] + 1, 4 / 3))
    with pytest.raises(IndexError):
        data[4]


def test_hand_is_drawn_only_where_it_is_seen():
    """A clip without a hand stays free of skin-coloured change; one with a hand changes in the stroke."""
    quiet = loud = 0
    for seed in range(6):
        for label in ("No gesture", "Shaking Hand"):
            frames, info = render_clip(label, 24, (48, 48), seed, 8, info=True, variety=0)
            amount = middle_of_change(frames.astype(float))[1].max() / frames[0].size
            quiet, loud = (quiet + amount, loud) if label == "No gesture" else (quiet, loud + amount)
    assert loud > 3 * quiet


def test_generator_is_fast_enough_to_train_from():
    def seconds():
        start = time.process_time()  # of this process alone: the machine may be busy
        render_clip("Swiping Left", 36, (128, 128), 2)
        return time.process_time() - start

    best = min(seconds() for _ in range(3))
    assert 36 / best > 150, f"{36 / best:.0f} frames/s"  # about 1000 on a quiet core


def test_module_needs_no_torch():
    code = ("import sys; import tsm_edge.training.gestures.clips, tsm_edge.training.data.datasets, tsm_edge.training.data.augment; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert gestures.__doc__


def test_targets_agree_with_the_pixels():
    """The palm is where the picture changes; a growing hand has a growing size."""
    near = total = 0
    for seed in range(12):
        frames, info = render_clip("Shaking Hand", 24, (64, 64), seed, 8, info=True, variety=0)
        targets = info["targets"]
        assert targets.shape == (24, len(gestures.TARGETS)) and targets.dtype == np.float32
        at, weight = middle_of_change(frames.astype(float))
        use = (targets[:, 0] > 0) & (weight > weight.max() / 3)
        found = at[use] / 31.5 - 1
        total += use.sum()
        near += (np.abs(found - targets[use, 1:3]) < 0.55).all(1).sum()  # the arm belongs to what changes, too
    assert total > 50 and near > 0.85 * total
    column = gestures.TARGETS.index("size")
    for label, sign in (("Pushing Hand Away", 1), ("Pulling Hand In", -1)):
        _, info = render_clip(label, 24, (32, 32), 3, 8, info=True)
        first, last = np.clip(np.round(np.array(info["stroke"]) * 8).astype(int), 0, 23)
        assert sign * (info["targets"][last, column] - info["targets"][first, column]) > 0.3


def test_targets_are_zero_without_a_hand():
    for seed in range(20):
        _, info = render_clip("No gesture", 6, (32, 32), seed, info=True)
        hidden = info["targets"][:, 0] == 0
        assert not info["targets"][hidden].any()


def test_calm_clips_show_the_same_movement_before_a_soft_background():
    a, calm = render_clip("Swiping Left", 8, (64, 64), 3, info=True, variety=0)
    b, full = render_clip("Swiping Left", 8, (64, 64), 3, info=True, variety=1)
    assert np.array_equal(calm["targets"], full["targets"])
    assert np.abs(np.diff(a[0].astype(int), axis=1)).mean() < np.abs(np.diff(b[0].astype(int), axis=1)).mean()
