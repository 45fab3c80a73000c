"""Changes to clips: the same for all frames, and directions turned around only with their labels."""
import numpy as np
import pytest

from tsm_edge.errors import InputError
from tsm_edge.training.data import augment
from tsm_edge.training.gestures.clips import CLASSES, MIRRORED, REVERSED


def ramp(t=4, h=20, w=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), dtype=np.uint8)


def test_mirrored_clips_carry_the_mirrored_label():
    table = augment.mirror_map(CLASSES)
    mirror = augment.Mirror(table, p=1.0)
    clip = ramp()
    for i, name in enumerate(CLASSES):
        turned, label = mirror(clip, i, np.random.default_rng(0))
        assert CLASSES[label] == MIRRORED[name]
        assert np.array_equal(turned, clip[:, :, ::-1])
    assert table[CLASSES.index("Swiping Left")] == CLASSES.index("Swiping Right")
    assert table[CLASSES.index("Swiping Up")] == CLASSES.index("Swiping Up")


def test_the_opposite_of_a_class_is_what_it_looks_like_backwards():
    table = augment.backwards_map(CLASSES)
    inwards, outwards = "Zooming In With Full Hand", "Zooming Out With Full Hand"
    assert CLASSES[table[CLASSES.index(inwards)]] == outwards == REVERSED[inwards]


def test_a_class_without_its_opposite_is_never_mirrored():
    classes = ["Swiping Left", "Thumb Up"]
    table = augment.mirror_map(classes)
    assert table.tolist() == [-1, 1]
    clip = ramp()
    for seed in range(20):
        turned, label = augment.Mirror(table, p=1.0)(clip, 0, np.random.default_rng(seed))
        assert label == 0 and np.array_equal(turned, clip)


def test_mirroring_half_of_the_time():
    table = augment.mirror_map(["a", "b"])
    clip, rng = ramp(), np.random.default_rng(0)
    turned = sum(not np.array_equal(augment.Mirror(table)(clip, 0, rng)[0], clip) for _ in range(400))
    assert 160 < turned < 240


def test_own_classes_with_a_side_must_be_declared():
    classes = ["swipe_left", "swipe_right", "wave"]
    with pytest.raises(InputError, match="swipe_left"):
        augment.mirror_map(classes)
    assert augment.mirror_map(classes, [("swipe-left", "swipe_right")]).tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="unknown class"):
        augment.mirror_map(classes, [("swipe_left", "swipe_rihgt")])
    assert augment.mirror_map(["swiping-left", "swiping_right"]).tolist() == [1, 0]  # Jester's names, written otherwise
    assert augment.mirror_map(["upright", "cleft"]).tolist() == [0, 1]  # "right" inside another word is no side


def test_crop_is_the_same_in_every_frame_and_has_the_asked_size():
    still = np.repeat(ramp(1, 40, 60), 5, 0)
    crop = augment.MultiScaleCrop((24, 16))
    boxes = set()
    for seed in range(60):
        out, label = crop(still, 3, np.random.default_rng(seed))
        assert out.shape == (5, 16, 24, 3) and label == 3 and out.dtype == np.uint8
        assert all(np.array_equal(out[0], f) for f in out)
        x, y, w, h = box = crop.box(60, 40, np.random.default_rng(seed))
        boxes.add(box)
        assert x >= 0 and y >= 0 and x + w <= 60 and y + h <= 40
    assert len(boxes) > 20


def test_colour_jitter_matches_a_plain_computation_for_brightness():
    clip = ramp()
    jitter = augment.ColourJitter(0.3, 0, 0, 0)
    out, _ = jitter(clip, 0, np.random.default_rng(1))
    factor = 1 + np.random.default_rng(1).uniform(-0.3, 0.3)
    assert np.abs(out - np.clip(clip * factor, 0, 255)).max() <= 0.51


def test_colour_jitter_leaves_grey_grey_and_shape_alone():
    grey = np.repeat(ramp()[..., :1], 3, -1)
    out, _ = augment.ColourJitter(0, 0, 0.5, 0.2)(grey, 0, np.random.default_rng(2))
    assert out.shape == grey.shape and np.abs(out.astype(int) - grey).max() <= 1


def test_centre_crop_keeps_the_centre():
    clip = np.zeros((2, 60, 100, 3), np.uint8)
    clip[:, 28:32, 48:52] = 255
    out, _ = augment.CentreCrop((32, 32))(clip, 0)
    assert out.shape == (2, 32, 32, 3)
    y, x = np.nonzero(out[0, ..., 0] > 60)
    assert abs(x.mean() - 15.5) < 1 and abs(y.mean() - 15.5) < 1


def test_normalise_matches_its_formula():
    clip = ramp()
    expected = ((clip / 255.0 - augment.MEAN) / augment.STD).transpose(0, 3, 1, 2)
    out = augment.normalise(clip)
    assert out.dtype == np.float32 and np.abs(out - expected).max() < 1e-5


def test_directions_of_classes_in_any_script_are_declared_and_kept_apart():
    assert augment.mirror_map(["влево", "вправо", "👍"], [("влево", "вправо")]).tolist() == [1, 0, 2]
    assert augment.mirror_map(["👈", "👉"], [("👈", "👉")]).tolist() == [1, 0]
    assert augment.mirror_map(["Wave", "wave"]).tolist() == [0, 1]
    with pytest.raises(InputError, match="more than one class"):
        augment.mirror_map(["Swiping Left", "Swiping Right", "swiping_right"])


def test_a_squashed_crop_takes_its_share_of_any_shape():
    crop, rng = augment.MultiScaleCrop((8, 6), scales=(1.0, 0.5), distort=1, fixed=False, squash=True), np.random.default_rng(0)
    boxes = {crop.box(160, 90, rng)[2:] for _ in range(200)}
    assert boxes == {(160, 90), (160, 45), (80, 90), (80, 45)}
    clip, _ = crop(np.zeros((2, 90, 160, 3), np.uint8), 0, rng)
    assert clip.shape == (2, 6, 8, 3)


@pytest.mark.parametrize("look", augment.Disguise.LOOKS)
def test_a_disguise_changes_all_frames_alike_and_keeps_the_movement(look):
    rng = np.random.default_rng(3)
    clip = np.full((4, 24, 32, 3), (90, 120, 60), np.uint8)
    for t in range(4):
        clip[t, 8:16, 6 * t + 2:6 * t + 8] = (200, 150, 120)
    disguise = augment.Disguise(1.0)
    disguise.LOOKS = (look,)
    out, label = disguise(clip, 5, rng)
    assert label == 5 and out.shape == clip.shape and out.dtype == np.uint8 and not np.array_equal(out, clip)
    moved = np.abs(np.diff(out.astype(int), axis=0)).sum((1, 2, 3))
    assert (moved > 0).all()  # the block is seen to move in every look
    still = np.repeat(clip[:1], 4, 0)
    frozen, _ = disguise(still, 5, np.random.default_rng(3))
    assert all(np.array_equal(frozen[0], f) for f in frozen)
    assert np.array_equal(augment.Disguise(0.0)(clip, 5, rng)[0], clip)


def test_a_stutter_loses_and_repeats_frames_in_order_with_what_is_known_of_them():
    clip = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    lost = 0
    for seed in range(20):
        hands = np.arange(12, dtype=np.float32)[:, None].repeat(20, 1)
        out, label = augment.Stutter(1.0)(clip, 3, np.random.default_rng(seed), hands)
        numbers = out[:, 0, 0, 0].astype(int)
        assert label == 3 and len(out) == 12 and (np.diff(numbers) >= 0).all() and np.array_equal(hands[:, 0], numbers)
        assert np.abs(numbers - np.arange(12)).max() <= 2
        lost += len(set(numbers)) < 12
    assert lost >= 18 and augment.Stutter(0.0)(clip, 3, np.random.default_rng(0))[0] is clip
