"""The loss on the rendered hand: its targets follow the picture, it counts when it should, a run with it can be resumed."""
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from torch.nn.functional import cross_entropy  # noqa: E402

from tsm_edge import create_model  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.training.data.augment import ColourJitter, Compose, Mirror, MultiScaleCrop, mirror_map  # noqa: E402
from tsm_edge.training.gestures.clips import render_clip  # noqa: E402
from tsm_edge.training.gestures.targets import TARGETS, crop_hands, mirror_hands  # noqa: E402
from tsm_edge.training.hand_loss import WithHands, variance_of  # noqa: E402
from tsm_edge.training.loop import Options, Trainer  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
X, Y, SIZE, MOVE_X = (TARGETS.index(name) for name in ("x", "y", "size", "move x"))


@pytest.fixture(scope="module")
def swipe():
    clip, info = render_clip("Swiping Left", 8, (96, 72), 11, 4.0, info=True, variety=0.0)
    return clip, info["targets"]


def pixels(hands, size):
    """Palm in pixels, hand's length in pixels, of targets for a picture of `size`."""
    w, h = size
    return (hands[:, X] + 1) * w / 2, (hands[:, Y] + 1) * h / 2, 2 ** (hands[:, SIZE] - 1.5) * h


def test_a_crop_moves_the_palm_as_its_pixels(swipe):
    hands, size, box = swipe[1].copy(), (96, 72), (20, 9, 60, 50)
    crop_hands(hands, size, box)
    seen = hands[:, 0] > 0
    assert 2 <= seen.sum()
    before, after = pixels(swipe[1][seen], size), pixels(hands[seen], box[2:])
    np.testing.assert_allclose(after[0], before[0] - box[0], atol=1e-3)
    np.testing.assert_allclose(after[1], before[1] - box[1], atol=1e-3)
    np.testing.assert_allclose(after[2], before[2], rtol=1e-4)  # the crop was not resized: pixels stay pixels
    both = seen[1:] & seen[:-1]
    moved = np.clip(2 * np.diff(hands[:, X])[both], -2, 2)
    told = hands[1:, MOVE_X][both]
    free = (np.abs(told) < 1.99) & (np.abs(swipe[1][1:, MOVE_X][both]) < 1.99)
    assert free.any()
    np.testing.assert_allclose(told[free], moved[free], atol=0.12)  # the hand trembles between the two measurements


def test_hands_outside_the_crop_are_not_asked_for(swipe):
    hands = swipe[1].copy()
    crop_hands(hands, (96, 72), (0, 0, 12, 12))
    assert not hands[hands[:, 0] == 0].any() and (hands[:, 0] == 0).any()


def test_a_mirrored_clip_has_mirrored_targets(swipe):
    hands = swipe[1].copy()
    mirror_hands(hands)
    for name in ("x", "way x", "thumb x", "move x", "move turn"):
        np.testing.assert_array_equal(hands[:, TARGETS.index(name)], -swipe[1][:, TARGETS.index(name)])
    same = [i for i, name in enumerate(TARGETS) if name not in ("x", "way x", "thumb x", "move x", "move turn")]
    np.testing.assert_array_equal(hands[:, same], swipe[1][:, same])


def test_transforms_draw_the_same_chance_with_targets_and_without(swipe):
    classes = ("Swiping Left", "Swiping Right")
    change = Compose(MultiScaleCrop((48, 36), fixed=False), Mirror(mirror_map(classes)), ColourJitter())
    for seed in range(6):
        plain, label = change(swipe[0], 0, np.random.default_rng(seed))
        hands = swipe[1].copy()
        told, label_too = change(swipe[0], 0, np.random.default_rng(seed), hands)
        np.testing.assert_array_equal(plain, told)
        assert label == label_too
        speed = hands[np.abs(hands[:, MOVE_X]) > 0.3, MOVE_X]
        way = speed if label == 0 else -speed  # the performer's left is the greater column
        assert not len(way) or (way > 0).mean() > 0.5


class Waving:
    """Noise with targets that the noise does not tell."""

    def __init__(self, n=12):
        rng = np.random.default_rng(5)
        self.clips, self.labels = rng.integers(0, 255, (n, 4, 32, 32, 3), np.uint8), np.arange(n) % 3
        self.targets = rng.normal(0, 1, (n, 4, len(TARGETS))).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.clips[i], int(self.labels[i])


def trainer(folder, data=None, **options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = create_model("mobilenet_v2", 3, width=0.35, input_size=32, n_segment=4)
    options = Options(**{"epochs": 2, "batch": 4, "warmup_epochs": 0.0, "lr": 0.01, "lr_batch": 4, "hand_loss": 0.5, "hand_epochs": 1,
                         "weight_decay": 0.0, **options})
    return Trainer(net, data or Waving(), None, options, folder, n_segment=4, mean=MEAN, std=STD, log=lambda line: None)


def test_labels_do_not_count_in_the_hands_own_epochs(tmp_path):
    t = trainer(tmp_path, epochs=1)
    classifier, features = t.net.classifier.weight.clone(), t.net.features[1].conv[0].weight.clone()
    pooled = t.whole.pooled.weight.clone()
    t.run()
    assert torch.equal(t.net.classifier.weight, classifier)
    assert not torch.equal(t.net.features[1].conv[0].weight, features) and not torch.equal(t.whole.pooled.weight, pooled)
    t = trainer(tmp_path / "both", epochs=1, hand_epochs=0)
    t.folder.mkdir()
    classifier = t.net.classifier.weight.clone()
    t.run()
    assert not torch.equal(t.net.classifier.weight, classifier)


def test_a_run_with_hands_goes_on_to_the_same_bits(tmp_path):
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = trainer(tmp_path / "straight")
    straight.run()
    stopped = trainer(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(lambda step, *_: setattr(stopped, "stop", step == 4))
    again = trainer(tmp_path / "stopped")
    assert again.resume() and again.step == 4
    again.run()
    wanted = straight.whole.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.whole.state_dict().items())


def test_the_hand_loss_is_the_plain_formula():
    torch.manual_seed(0)
    net = create_model("mobilenet_v2", 3, width=0.35, input_size=32, n_segment=4)
    targets = np.random.default_rng(0).normal(0, 2, (3, 4, len(TARGETS))).astype(np.float32)
    whole = WithHands(net, (32, 32), variance_of(targets)).eval()
    _, pooled, spread = whole(torch.rand(12, 3, 32, 32))
    wanted = 0.0
    for weight, found in ((1.0, pooled), (0.5, spread)):
        found = found.detach().numpy().reshape(3, 4, -1)
        errors = [(found[n, t, k] - targets[n, t, k]) ** 2 / (targets[:, 1:, k].astype(float).var() + 1e-3)
                  for n in range(3) for t in range(1, 4) for k in range(len(TARGETS))]
        wanted += weight * np.mean(errors)
    assert float(whole.hand_loss(pooled, spread, torch.from_numpy(targets)).detach()) == pytest.approx(wanted, rel=1e-4)


def test_a_hand_that_is_seen_outside_its_stroke_is_not_taught_to_be_at_rest(tmp_path):
    t = trainer(tmp_path, frame_loss=1.0, hand_epochs=0)
    t.rest, t.whole.hand_loss = 0, lambda *_: torch.zeros(())
    x, labels, late = torch.rand(8, 3, 32, 32), torch.tensor([1, 2]), torch.tensor([[1.5, 1.9]] * 2)
    hands = torch.zeros(2, 4, len(TARGETS))
    t.net.eval()
    logits = t.net(x).detach().view(2, 4, 3)
    clip = cross_entropy(logits.mean(1), labels, label_smoothing=t.options.label_smoothing)
    resting = cross_entropy(logits.flatten(0, 1), torch.zeros(8, dtype=torch.int64))
    assert float(t._loss(x, labels, late, hands).detach()) == pytest.approx(float(clip + resting), rel=1e-5)
    hands[..., TARGETS.index("visible")] = 1
    assert float(t._loss(x, labels, late, hands).detach()) == pytest.approx(float(clip), rel=1e-5)


def test_clips_without_known_hands_are_refused(tmp_path):
    data = Waving()
    del data.targets
    with pytest.raises(InputError) as error:
        trainer(tmp_path, data)
    assert "--hand-loss" in error.value.do
