"""Few clips of one's own: the recipe, what is mixed in, which classes stay, what is said at the end."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")
pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")

from tsm_edge.card import Card  # noqa: E402
from tsm_edge.checkpoints import load_checkpoint  # noqa: E402
from tsm_edge.training import personal  # noqa: E402
from tsm_edge.training.data.for_training import long_ones_oftener  # noqa: E402
from tsm_edge.training.data.listing import Item, find_items  # noqa: E402
from tsm_edge.training.data.mixed import Mixed  # noqa: E402
from tsm_edge.training.data.sampling import Sampler, fixed_rate  # noqa: E402
from tsm_edge.training.options import parser  # noqa: E402
from tsm_edge.training.train import _main, _rows_of, make_network  # noqa: E402

JESTER = Card({"name": "mobilenet_v2", "classes": ["Swiping Left", "Swiping Right", "No gesture"], "num_classes": 3, "fps": 8.0})


def options(*more, data="clips"):
    args = parser().parse_args(["--data", data, *map(str, more)])
    args.arch = "mobilenet_v2"
    return args


def test_few_clips_with_init_get_their_own_recipe_and_what_was_said_stays():
    args = options("--lr", 0.005, "--freeze", 2)
    assert personal.choose_recipe(args, JESTER, 20, ["no-gesture", "wave"])
    assert (args.optimizer, args.lr, args.freeze, args.batch_norm, args.sampling, args.fps) == ("adamw", 0.005, 2, "frozen", "rate", 8.0)
    assert args.mix == 1.0 and args.batch == 8 and args.rate_jitter == 0.3
    plain = options()
    assert personal.choose_recipe(plain, JESTER, 20, ["wave"]) and plain.mix == 0 and plain.lr_batch == plain.batch and plain.freeze == 7


@pytest.mark.parametrize("card, clips, data", [(None, 20, "clips"), (JESTER, personal.FEW + 1, "clips"), (JESTER, 0, "gestures")])
def test_all_others_train_as_before(card, clips, data):
    args = options(data=data)
    assert not personal.choose_recipe(args, card, clips)
    assert {name: getattr(args, name) for name in personal.USUAL} == personal.USUAL


def test_classes_stay_where_the_clips_are_of_some_of_them():
    assert personal.classes_to_keep(["Swiping Left", "Stop Sign"], ["stop-sign"]) == ["Swiping Left", "Stop Sign"]
    assert personal.classes_to_keep(["Swiping Left", "Stop Sign"], ["stop-sign", "swipe-left"]) == ["stop-sign", "swipe-left"]
    assert personal.classes_to_keep([], ["b", "a"]) == ["b", "a"]


def test_a_mixed_epoch_has_every_real_clip_as_often_and_every_rendered_one_once():
    class Real:
        items = [1, 2, 3]

        def __len__(self):
            return 3

        def __getitem__(self, where):
            return ("real", *where), 0

    mixed = Mixed(Real(), [("a", 0), ("b", 1)], rows=[5, 7], repeat=2)
    got = [mixed[4, i] for i in range(len(mixed))]
    assert got[:6] == [(("real", 8 + k // 3, k % 3), 0) for k in range(6)]  # another epoch's chance for each time
    assert got[6:] == [("a", 5), ("b", 7)]


def test_films_longer_than_a_clip_count_as_many(tiny, clips):
    items = find_items(clips)[0]
    assert long_ones_oftener(items, 100.0) == items
    several = long_ones_oftener(items, 0.1, most=3)
    assert len(several) == 3 * len(items) and set(several) == set(items)
    assert long_ones_oftener([Item("/nowhere.mp4", 0)], 1.0) == [Item("/nowhere.mp4", 0)]


def test_rates_are_jittered_within_bounds_and_only_with_chance():
    assert np.array_equal(fixed_rate(100, 5, 30, 10, None, 0.5), fixed_rate(100, 5, 30, 10))
    steps = {int(np.diff(fixed_rate(1000, 5, 30, 3, np.random.default_rng(k), 0.3)).mean()) for k in range(200)}
    assert 7 <= min(steps) < 9 and 11 < max(steps) <= 13  # 10 frames apart without jitter
    sampler = Sampler("uniform", 4, jitter=0.5)
    spans = [np.ptp(sampler(100, np.random.default_rng(k))) for k in range(100)]
    assert min(spans) < 60 and max(spans) < 100 and all(s[0] >= 0 and s[-1] < 100 for s in (sampler(100, np.random.default_rng(k))
                                                                                         for k in range(20)))


def test_rows_of_classes_that_stay_are_kept(checkpoint):
    path = checkpoint(classes=["a", "b", "c"])
    source = load_checkpoint(path)
    args = SimpleNamespace(arch="mobilenet_v2", width=0.35, input_size=(32, 32), shift="online", fold_div=8, frames=4, dropout=0.0,
                           init=str(path), resize="crop")
    torch.manual_seed(1)
    net, said = make_network(args, source, ["C", "new", "a"], 4.0)
    theirs = source.state_dict["classifier.weight"]
    assert torch.equal(net.classifier.weight[0], theirs[2]) and torch.equal(net.classifier.weight[2], theirs[0])
    assert not torch.equal(net.classifier.weight[1], theirs[1]) and "the classifier new for new alone" in said
    assert _rows_of([], ["a"]) == {}


def test_what_is_told_at_the_end():
    labels = np.array([0, 0, 1, 1, 2])
    lines = personal.told(["wave", "point", "rest"], (labels, np.array([0, 1, 1, 0, 2])), (labels, np.array([0, 1, 1, 1, 2])), [8, 8, 3])
    assert lines[0] == "held out: 4 of 5 right, before 3" and "  wave was taken for point (1 of 2)" in lines
    assert lines[-1] == "more clips would help: wave, rest"
    empty = np.zeros(0, int)
    assert "no clip was held out" in personal.told(["a"], None, (empty, empty), [3])[0]


def test_when_an_event_begins_is_chosen_by_held_out_films(clips, checkpoint):
    from tsm_edge.training.networks import open_network

    net = open_network(checkpoint(fps=4.0))
    net.card = net.card.but(events={"window": 2, "hold": 1, "on": 0.99, "off": 0.0, "merge": {}, "ignore": [], "background": []})
    folders = sorted(p for p in clips.iterdir() if p.is_dir())
    items = [Item(str(path), label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.avi"))[:2]]
    settings, said = personal.settle_events(net, items)
    before = net.card.events
    assert {k: settings[k] for k in ("window", "hold", "background")} == {k: before[k] for k in ("window", "hold", "background")}
    assert settings["on"] in (0.5, 0.6, 0.7, 0.8, 0.9, 0.99) and f"of {len(items)}" in said and "(before: 0.99)" in said
    net.card = net.card.but(events={**before, "background": [1, 2]})
    kept, why = personal.settle_events(net, items)
    assert kept is None and "fewer than 4" in why
    net.card = net.card.but(events=before)
    kept, why = personal.settle_events(net, [Item(f"gone-{k}.mp4", 0) for k in range(4)])
    assert kept is None and "no clip can be played" in why and "gone-0" in why


def test_the_checkpoint_has_the_events_that_were_chosen(tiny, clips, checkpoint, tmp_path, capsys, monkeypatch):
    asked = []

    def chosen(net, items):
        asked.extend(items)
        return {**net.card.events, "on": 0.77}, "events begin at 0.77"

    monkeypatch.setattr(personal, "settle_events", chosen)
    argv = ["--data", clips, "--output", tmp_path / "run", "--init", checkpoint(), "--epochs", 1, "--batch", 4, "--threads", 1,
            "--device", "cpu", "--val-data", clips]
    assert _main([str(v) for v in argv]) == 0
    assert load_checkpoint(tmp_path / "run" / "final.pth").card.events["on"] == 0.77 and "begin at 0.77" in capsys.readouterr().err
    assert {Path(item.path) for item in asked} == set(clips.glob("*/*.avi"))


@pytest.mark.parametrize("folders, kept", [(("go-left", "go-right", "stay"), False), (("Swiping Left", "Thumb Up", "No gesture"), True)])
def test_a_run_on_few_clips_says_what_it_chose_and_ends_with_a_report(tiny, clips, checkpoint, tmp_path, capsys, folders, kept):
    before = ["Swiping Left", "Thumb Up", "No gesture", "Swiping Right"]
    path, data = checkpoint(classes=before), tmp_path / "clips"
    data.mkdir()
    for name, folder in zip(folders, sorted(p for p in clips.iterdir() if p.is_dir())):
        (data / name).symlink_to(folder)
    argv = ["--data", data, "--output", tmp_path / "run", "--init", path, "--epochs", 1, "--batch", 4, "--threads", 1, "--device", "cpu"]
    assert _main([str(v) for v in argv]) == 0
    said = capsys.readouterr().err
    assert "recipe for few clips" in said and "optimizer adamw" in said and f"mix {int(kept)}" in said and "held out:" in said
    assert "events begin " in said
    card = load_checkpoint(tmp_path / "run" / "final.pth").card
    assert card.classes == (before if kept else sorted(folders)) and card.fps == 4.0
    old, new = load_checkpoint(path).state_dict, load_checkpoint(tmp_path / "run" / "final.pth").state_dict
    assert torch.equal(old["features.2.conv.0.weight"], new["features.2.conv.0.weight"])  # early layers stay
    assert not torch.equal(old["features.17.conv.0.weight"], new["features.17.conv.0.weight"])
