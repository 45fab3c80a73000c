"""tsm-train as a user starts it: killed and gone on with, on two processes, from other checkpoints, with wrong input."""
import argparse
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge.card import Card  # noqa: E402
from tsm_edge.checkpoints import load_checkpoint  # noqa: E402
from tsm_edge.errors import InputError, TsmEdgeError  # noqa: E402
from tsm_edge.training.data.augment import CentreCrop  # noqa: E402
from tsm_edge.training.data.datasets import ClipDataset  # noqa: E402
from tsm_edge.training.data.for_training import Changed, _exact, clip_rate, hold_out  # noqa: E402
from tsm_edge.training.data.listing import Item, find_items  # noqa: E402
from tsm_edge.training.data.sampling import Sampler  # noqa: E402
from tsm_edge.training.loop import evaluate_clips  # noqa: E402
from tsm_edge.training.networks import open_network  # noqa: E402
from tsm_edge.training.options import check, fill_in, fill_in_steps, parser  # noqa: E402
from tsm_edge.training.progress import Curves  # noqa: E402
from tsm_edge.training.train import _main, events_of  # noqa: E402


def options(tiny, clips, folder, *more):
    return [str(v) for v in ("--data", clips, "--output", folder, *tiny.NETWORK, "--epochs", 2, "--batch", 4, "--threads", 1,
                             "--device", "cpu", *more)]


def same_weights(a, b):
    a, b = load_checkpoint(a).state_dict, load_checkpoint(b).state_dict
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def wait_for(path, process, seconds=120):
    for _ in range(seconds * 20):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {path} after {seconds} s")


@pytest.fixture(scope="module")
def straight(tiny, clips, tmp_path_factory):
    """A run of six steps that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert _main(options(tiny, clips, folder, "--ema", 0.9)) == 0
    return folder


def test_a_run_killed_in_the_middle_ends_with_the_same_bits(tiny, clips, straight, tmp_path):
    argv = options(tiny, clips, tmp_path / "run", "--ema", 0.9, "--save-every", 2)
    process = subprocess.Popen(tiny.command(*argv), env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(tmp_path / "run" / "last.pt", process)
    process.kill()
    process.communicate()
    step = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert 0 < step < 6 and not (tmp_path / "run" / "final.pth").exists()
    assert _main(argv) == 0
    assert same_weights(tmp_path / "run" / "final.pth", straight / "final.pth")
    assert same_weights(tmp_path / "run" / "best.pth", straight / "best.pth")


def test_control_c_saves_the_state_and_says_so(tiny, clips, straight, tmp_path):
    argv = options(tiny, clips, tmp_path / "run", "--ema", 0.9, "--workers", 1, "--save-every", 1)
    process = subprocess.Popen(tiny.command(*argv), env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a suite in the background has it ignored
    wait_for(tmp_path / "run" / "last.pt", process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said, said
    step = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert f"the state of step {step} is in" in said
    assert _main(argv) == 0
    assert same_weights(tmp_path / "run" / "final.pth", straight / "final.pth")


def test_two_processes_give_the_losses_of_one_with_the_same_batch(tiny, clips, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def losses(folder):
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        return [event.value for event in events.Scalars("loss")]

    _main(options(tiny, clips, tmp_path / "one", "--accumulate", 2))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 0,
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "tsm_edge.training.train"]
    tiny.run(*options(tiny, clips, tmp_path / "two"), before=[str(v) for v in launcher])
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6 and one == pytest.approx(two, abs=1e-5)
    a, b = (load_checkpoint(tmp_path / n / "final.pth").state_dict for n in ("one", "two"))
    learnt = [k for k in a if k.endswith(("weight", "bias"))]
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in learnt)
    # each process validated its share of the clips; alone it comes to the same
    _, held = hold_out(find_items(clips)[0])
    val = Changed(ClipDataset(held, Sampler("uniform", 4), train=False), CentreCrop((32, 32)))
    net = open_network(tmp_path / "two" / "final.pth")
    alone = evaluate_clips(net, val, net.card.mean, net.card.std)
    assert load_checkpoint(tmp_path / "two" / "final.pth").extra["metrics"]["validation_top1"] == pytest.approx(alone)


def test_curves_and_checkpoints_are_written(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning rate", "validation top-1"}
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    loaded = load_checkpoint(straight / "final.pth")
    assert loaded.card.fps == 4.0  # four frames of a second
    assert loaded.card.shift == "online" and loaded.extra["metrics"]["epoch"] == 2 and loaded.extra["training"]["batch"] == 4
    assert sorted(p.name for p in straight.iterdir()) == ["best.pth", "final.pth", "last.pt", "tensorboard"]


def test_a_finished_run_is_not_trained_again(tiny, clips, straight, capsys):
    before = (straight / "final.pth").read_bytes()
    assert _main(options(tiny, clips, straight, "--ema", 0.9, "--json")) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["steps"] == 6 and (straight / "final.pth").read_bytes() == before
    assert result["validation_top1"] == load_checkpoint(straight / "final.pth").extra["metrics"]["validation_top1"]
    assert "is finished: nothing is trained" in said.err and "PASSED 6 steps (finished before), validation top-1" in said.err


def test_another_network_does_not_go_on_with_a_run(tiny, clips, straight):
    with pytest.raises(InputError, match="shift=online") as error:
        _main(options(tiny, clips, straight, "--ema", 0.9, "--shift", "none"))
    assert "shift=none" in error.value.expected


def test_a_network_of_both_directions_becomes_an_online_one(tiny, clips, checkpoint, tmp_path, capsys):
    offline = checkpoint(shift="offline")
    argv = ["--data", clips, "--output", tmp_path / "run", "--init", offline, "--epochs", 1, "--batch", 4, "--threads", 1, "--head-only"]
    assert _main([str(v) for v in argv]) == 0
    assert "trained with shifts both ways" in capsys.readouterr().err
    before, after = load_checkpoint(offline), load_checkpoint(tmp_path / "run" / "final.pth")
    assert after.card.shift == "online" and after.card.future is None
    assert tuple(after.card.past) == tuple(before.card.past) == (1, 2)  # what came from the past still does
    assert tuple(after.card.input_size) == (32, 32) and after.card.width == 0.35 and after.card.n_segment == 4
    changed = {k for k in before.state_dict if not torch.equal(before.state_dict[k], after.state_dict[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_another_class_list_gets_a_new_classifier(tiny, clips, checkpoint, tmp_path, capsys):
    other = checkpoint(classes=["a", "b", "c", "d"])
    argv = ["--data", clips, "--output", tmp_path / "run", "--init", other, "--epochs", 1, "--batch", 4, "--threads", 1, "--lr", 0.001]
    assert _main([str(v) for v in argv]) == 0
    assert "with a new classifier" in capsys.readouterr().err
    after = load_checkpoint(tmp_path / "run" / "final.pth")
    assert after.card.classes == list(tiny.CLASSES) and after.state_dict["classifier.weight"].shape[0] == 3


@pytest.mark.parametrize("wrong, words", [
    (("--init", "default"), "default model is not there"), (("--optimizer", "adam"), "did you mean 'adamw'"),
    (("--input-size", "7"), "8 to 2048"), (("--batch", "64"), "fewer clips"), (("--data", "/nowhere"), "no data set at"),
    (("--val-data", "gestures"), "bring their own"), (("--init", "nothing.pth"), "is not there"),
    (("--output", __file__), "--output cannot be used"), (("--output", f"{__file__}/x"), "--output cannot be used"),
    (("--device", "cuda:99"), "device is not there"), (("--device", "mps"), "unknown device"),
    (("--frames", "1", "--batch", "1"), "one picture at a time"),
])
def test_wrong_input_is_refused_with_what_to_do(tiny, clips, tmp_path, monkeypatch, wrong, words):
    from tsm_edge import default

    monkeypatch.setattr(default, "DEFAULT_CHECKPOINT", tmp_path / "gestures.pth")
    with pytest.raises(TsmEdgeError) as error:
        _main(options(tiny, clips, tmp_path / "run", *wrong))
    assert words in str(error.value) and error.value.found and error.value.expected and error.value.do


@pytest.mark.parametrize("option, wrong", [
    ("--frames", "0"), ("--fps", "-1 nan inf"), ("--lr", "0 -1 1e40 nan"), ("--lr-batch", "0"), ("--threads", "-1"), ("--workers", "-1"),
    ("--seed", "-1"), ("--dropout", "2"), ("--label-smoothing", "2 -1"), ("--momentum", "-1"), ("--sampling-stride", "0 -3"),
    ("--seconds", "0 -1 nan"), ("--clip-size", "-5 5"), ("--weight-decay", "-1"), ("--ema", "1.5 -0.5"), ("--warmup-epochs", "-1"),
    ("--variety", "5"), ("--epochs", "0"), ("--save-every", "0"), ("--hand-loss", "-1")])
def test_numbers_that_no_run_can_use_are_refused(option, wrong):
    for value in wrong.split():
        with pytest.raises(InputError, match=f"{option} cannot be used") as error:
            check(parser().parse_args(["--data", "clips", f"{option}={value}"]))
        assert " to " in error.value.expected


def test_numbers_that_runs_use_are_taken():
    check(parser().parse_args(["--data", "clips"]))
    check(parser().parse_args("--data clips --batch 12288 --lr 0.02 --lr-batch 128 --label-smoothing 0 --ema 0.999".split()))


def test_one_class_alone_is_refused(tiny, tmp_path):
    data = tiny.write_clips(tmp_path / "clips", 5, ("wave",))
    with pytest.raises(InputError, match="one class alone"):
        _main(options(tiny, data, tmp_path / "run"))


def test_clips_that_were_recorded_anew_are_another_run(tiny, tmp_path, monkeypatch):
    data, run = tmp_path / "clips", tmp_path / "run"
    tiny.write_clips(data)
    assert _main(options(tiny, data, run, "--epochs", 1)) == 0
    monkeypatch.chdir(tmp_path)
    assert _main(options(tiny, "./clips/", run, "--epochs", 1)) == 0  # the same by another name
    tiny.write_video(data / "stay" / "000.avi", tiny.moving_clip(2, np.random.default_rng(1), n_frames=12))  # a clip used for training
    with pytest.raises(InputError, match="belongs to another run\n  found:    data=12 clips"):
        _main(options(tiny, data, run, "--epochs", 1))


def test_clips_for_validation_that_cannot_be_read_do_not_count(tiny, tmp_path, capsys):
    data = tiny.write_clips(tmp_path / "clips")
    (data / "stay" / "004.avi").write_bytes(b"no video")  # one of the three that are held out
    assert _main(options(tiny, data, tmp_path / "run", "--epochs", 1)) == 0
    assert "validation: skipped 1 unreadable of 3 clips" in capsys.readouterr().err
    top1 = load_checkpoint(tmp_path / "run" / "final.pth").extra["metrics"]["validation_top1"]
    assert top1 in (0, 0.5, 1)  # of two clips
    for name in tiny.CLASSES:
        (data / name / "004.avi").write_bytes(b"no video")
    with pytest.raises(InputError, match="not one validation clip can be read"):
        _main(options(tiny, data, tmp_path / "other"))
    assert not (tmp_path / "other" / "last.pt").exists()


def test_the_width_of_init_is_not_that_of_another_network(checkpoint):
    args = parser().parse_args(["--data", "clips", "--init", str(checkpoint()), "--arch", "resnet18"])
    with pytest.raises(InputError, match="another network") as error:
        fill_in(args)
    assert error.value.do == "give --arch mobilenet_v2 --width 0.35, or neither"


def test_curves_that_cannot_be_written_do_not_end_a_run(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    curves = Curves(tmp_path, 1)
    curves.add_scalar("loss", 1.0, 1)
    curves.close()
    assert capsys.readouterr().err.count("no more TensorBoard curves") == 1


def test_seconds_that_differ_late_are_told_apart():
    assert (_exact(3.0), _exact(0.5)) == ("3", "0.5") and _exact(10 / 3) != _exact(3.333333) and float(_exact(10 / 3)) == 10 / 3


def test_clips_without_a_label_are_not_trained_on(tiny, clips, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{c}/{i:03d}.avi {c}\n" for c in tiny.CLASSES for i in range(5)) + "unknown/x.avi\n")
    with pytest.raises(InputError, match="1 clips without a label"):
        _main(options(tiny, listed, tmp_path / "run", "--root", clips, "--classes", _names(tmp_path, tiny.CLASSES)))


def _names(folder, names):
    path = folder / "names.txt"
    path.write_text("\n".join(names))
    return path


def test_held_out_clips_are_a_tenth_of_each_class_or_one_of_five():
    items = [Item(f"{label}/{k}", label) for label, n in enumerate((20, 7, 3)) for k in range(n)]
    rest, held = hold_out(items)
    assert sorted(rest + held, key=str) == sorted(items, key=str)
    assert [sum(i.label == label for i in held) for label in range(3)] == [2, 1, 0]


def test_the_rate_of_clips_is_what_the_sampler_takes(tiny, clips):
    items, _ = find_items(clips)  # 8 frames at 8 a second
    assert clip_rate(items, Sampler("uniform", 4)) == 4.0
    assert clip_rate(items, Sampler("dense", 4, stride=2)) == 4.0
    assert clip_rate(items, Sampler("rate", 4, fps=5.0)) == 5.0
    assert clip_rate([], Sampler()) == 0.0


@pytest.mark.parametrize("clips, world, accumulate, batch, epochs", [
    (4750, 1, 1, 32, 20), (27, 1, 1, 6, 50), (27, 2, 2, 4, 34), (3, 1, 1, 1, 67), (64, 3, 1, 15, 50)])
def test_few_clips_get_small_steps_and_enough_of_them(clips, world, accumulate, batch, epochs):
    args = argparse.Namespace(batch=None, epochs=None, accumulate=accumulate, mix=0)
    fill_in_steps(args, clips, world)
    assert (args.batch, args.epochs) == (batch, epochs) and batch % (world * accumulate) == 0
    args = argparse.Namespace(batch=12, epochs=3, accumulate=1, mix=0)
    fill_in_steps(args, clips)
    assert (args.batch, args.epochs) == (12, 3)


def test_a_second_is_averaged_for_events_whatever_the_rate():
    assert events_of(["wave", "No gesture"], 12.0)["window"] == 12 and events_of(["wave", "no-gesture"], 8 / 3)["window"] == 3
    assert events_of(["wave", "no-gesture"], 4.0)["background"] == [1]


def test_fine_tuning_keeps_the_event_settings_that_were_found_for_the_checkpoint():
    found = {"window": 5, "hold": 1, "on": 0.8, "off": 0.1, "merge": {}, "ignore": [], "background": [0, 2]}
    assert events_of(["no-gesture", "wave"], 10 / 3, Card({"events": found, "fps": 4.0})) == {**found, "window": 4, "background": [0]}
    assert events_of(["no-gesture", "wave"], 12.0, Card({"fps": 4.0})) == events_of(["no-gesture", "wave"], 12.0)


def test_the_bundle_gets_the_events_of_the_run(straight, tiny):
    from tsm_edge.runtimes import load

    model = load(straight / "final.pth")
    assert model.manifest["events"] == events_of(tiny.CLASSES, 4.0) and model.manifest["stream"]["fps"] == 4.0


@pytest.mark.slow
def test_shifts_learn_directions_that_single_frames_cannot_tell(tiny, tmp_path, capsys):
    data = tiny.write_clips(tmp_path / "train", 40, ("go-left", "go-right"))
    val = tiny.write_clips(tmp_path / "val", 10, ("go-left", "go-right"), seed=1)
    top1 = {}
    for shift in ("online", "none"):
        argv = ("--data", data, "--val-data", val, "--output", tmp_path / shift, "--shift", shift, "--width", 0.35, "--input-size", 32,
                "--frames", 8, "--epochs", 20, "--batch", 16, "--optimizer", "adamw", "--lr", 0.004, "--lr-batch", 16, "--threads", 1,
                "--device", "cpu", "--json")
        assert _main([str(v) for v in argv]) == 0
        top1[shift] = json.loads(capsys.readouterr().out)["validation_top1"]
    assert top1["online"] >= 0.9 and top1["none"] <= 0.7


def test_rendered_gestures_are_trained_on_with_strokes(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Swiping Left\nSwiping Right\nNo gesture\n")
    argv = ["--data", "gestures", "--classes", names, "--clips-per-class", 4, "--output", tmp_path / "run", "--width", 0.35,
            "--input-size", 32, "--frames", 4, "--epochs", 1, "--batch", 6, "--threads", 1, "--frame-loss", 0.5, "--mirror",
            "--optimizer", "adamw", "--lr", 0.001]
    assert _main([str(v) for v in argv]) == 0
    card = load_checkpoint(tmp_path / "run" / "final.pth").card
    assert card.fps == pytest.approx(4 / 3) and card.classes == ["Swiping Left", "Swiping Right", "No gesture"]
