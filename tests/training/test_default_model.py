"""The model that comes with the package, on clips and backgrounds that it has not seen."""
import json

import numpy as np
import pytest

for _name in ("torch", "cv2"):
    pytest.importorskip(_name, reason=f"{_name} (extra [train]) is not installed")

import tsm_edge  # noqa: E402
from tsm_edge.card import background_of  # noqa: E402
from tsm_edge.checkpoints import load_checkpoint  # noqa: E402
from tsm_edge.default import find_default  # noqa: E402
from tsm_edge.training.evaluate import clips  # noqa: E402
from tsm_edge.training.evaluate import run as ev  # noqa: E402
from tsm_edge.training.evaluate.scores import clip_logits  # noqa: E402
from tsm_edge.training.gestures.clips import SPLITS, GestureDataset, render_clip  # noqa: E402
from tsm_edge.training.networks import open_network  # noqa: E402


@pytest.fixture(scope="module")
def model():
    import torch

    torch.set_num_threads(1)
    return tsm_edge.load()


@pytest.fixture(scope="module")
def held_out(model):
    """Six clips a class of the test split, other seeds than the figures of the model card."""
    data = GestureDataset("test", 6, model.classes, 16, (160, 120), 2.0, seed=3)
    items = [data[i] for i in range(len(data))]
    return clips.Clips(lambda i: items[i][0], [label for _, label in items], model.classes, 8.0)


def test_it_is_small_enough_to_ship_and_says_where_it_comes_from(model):
    assert find_default().stat().st_size < 6e6
    loaded = load_checkpoint(find_default())
    assert loaded.card.trained and loaded.card.shift == "online" and len(model.classes) == 11
    assert loaded.card.camera == "direct" and loaded.card.resize == "squash" and loaded.card.fps == 8.0
    assert not any("/" in str(value) for value in loaded.extra["training"].values())


def test_it_recognises_clips_it_has_not_seen_and_steps_as_it_was_trained(model, held_out):
    stepped = clip_logits(ev.step_logits(model, held_out)).argmax(1)
    whole = clip_logits(ev.clip_forward(open_network(find_default()), held_out)).argmax(1)
    right = stepped == held_out.labels
    assert right.mean() > 0.88, f"{right.mean():.2%} of {len(right)}"  # 95 % over a thousand clips
    assert (stepped == whole).mean() > 0.99
    swipes = [i for i, c in enumerate(held_out.labels) if model.classes[c].startswith("Swiping")]
    assert right[swipes].mean() > 0.9


def test_a_swipe_played_backwards_is_the_other_swipe(model, held_out):
    index = {name: i for i, name in enumerate(model.classes)}
    some = [i for i, c in enumerate(held_out.labels) if model.classes[c] in ("Swiping Left", "Swiping Right")]
    turned = clips.Clips(lambda i: held_out.read(some[i]), held_out.labels[some], model.classes, 8.0)
    found = clip_logits(ev.step_logits(model, turned, backwards=True)).argmax(1)
    other = {index["Swiping Left"]: index["Swiping Right"], index["Swiping Right"]: index["Swiping Left"]}
    assert np.mean([a == other[c] for a, c in zip(found, turned.labels)]) >= 0.9


def test_rest_is_no_event_and_a_gesture_is_one(model):
    from tsm_edge.runtimes.events import GestureEvents

    def events(label, seed):
        stream, made = model.stream(max_gap_seconds=0, fps=0), GestureEvents.of(model, 8.0)
        clip = render_clip(label, 32, (160, 120), SPLITS["test"][0] + seed, 8.0)
        return [e.label for f in clip for e in made.update(stream.step(f)) if e.kind == "start"]

    assert [events("No gesture", seed) for seed in range(4)] == [[]] * 4
    names = [name for i, name in enumerate(model.classes) if i not in background_of(model.classes)]
    found = {(name, seed): events(name, seed) for name in names for seed in (40, 41, 42, 43)}
    assert np.mean([name in events for (name, _), events in found.items()]) > 0.8, found
    # a palm that waits before it is pushed is a stop sign, too, and the way back from a swipe up may be one down
    assert np.mean([events == [name] for (name, _), events in found.items()]) > 0.5, found


def test_the_first_run_recognises_a_gesture(tmp_path, capsys):
    """gestures video, export without a checkpoint, demo: as in the README, for this machine."""
    for name in ("onnx", "onnxruntime", "tvm"):
        pytest.importorskip(name, reason=f"{name} (extra [export]) is not installed")
    from tsm_edge.demo import cli as demo
    from tsm_edge.export import cli as export
    from tsm_edge.training.gestures import cli

    video, bundle, log = (str(tmp_path / name) for name in ("clip.mp4", "host", "events.jsonl"))
    made = ["video", "--label", "swiping-left", "--split", "test", "--size", "640x480", "--output", video]
    assert cli._main(made) == 0
    assert export._main(["--target", "host", "--output", bundle]) == 0
    assert demo._main([bundle, "--source", video, "--headless", "--events", log]) == 0
    assert "before a camera that does not mirror" in capsys.readouterr().err
    starts = [event for event in map(json.loads, open(log)) if event["event"] == "start"]
    assert [event["label"] for event in starts] == ["Swiping Left"]
