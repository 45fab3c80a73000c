"""The loop's parts against plain formulas, and what it leaves alone."""
import math
import os
import resource
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge import create_model  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.training import loop  # noqa: E402
from tsm_edge.training.batches import Batches, frame_targets, normalise  # noqa: E402
from tsm_edge.training.loop import Options, Trainer, evaluate_clips, learning_rate  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Squares:
    """Twelve clips of noise with labels."""

    def __init__(self, n=12, strokes=False):
        rng = np.random.default_rng(5)
        self.clips, self.labels = rng.integers(0, 255, (n, 4, 32, 32, 3), np.uint8), np.arange(n) % 3
        if strokes:
            self.strokes = np.stack([np.full(n, 0.2), np.full(n, 0.7)], 1).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.clips[i], int(self.labels[i])


def trainer(folder, data=None, seed=0, dropout=0.2, settings=None, **options):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = create_model("mobilenet_v2", 3, width=0.35, input_size=32, n_segment=4, dropout=dropout)
    options = Options(**{"epochs": 1, "batch": 4, "warmup_epochs": 0.0, "lr": 0.05, "lr_batch": 4, **options})
    return Trainer(net, data or Squares(), None, options, folder, n_segment=4, mean=MEAN, std=STD, settings=settings, log=lambda line: None)


def weights(t):
    return {name: value.clone() for name, value in t.net.state_dict().items()}


@pytest.mark.parametrize("warm", [0.0, 0.5, 2.0])
def test_learning_rate_is_a_linear_warm_up_then_half_a_cosine(warm):
    options, per_epoch = Options(epochs=5, batch=96, lr=0.02, lr_batch=32, warmup_epochs=warm), 6
    peak, w, total = 0.02 * 96 / 32, warm * per_epoch, 5 * per_epoch
    for step in range(total):
        if step + 1 <= w:
            wanted = 0.1 * peak + 0.9 * peak * (step + 1) / w
        else:
            wanted = 0.001 * peak + 0.999 * peak * math.cos(math.pi / 2 * (step - w) / (total - w)) ** 2
        assert learning_rate(options, step, per_epoch) == pytest.approx(wanted, rel=1e-12)
    if warm:
        assert learning_rate(options, int(w) - 1, per_epoch) == pytest.approx(peak)


@pytest.mark.parametrize("known", [False, True])
def test_frame_targets_equal_a_naive_loop(known):
    rng = np.random.default_rng(1)
    marks = np.sort(rng.uniform(0, 1, (40, 2)), axis=1).astype(np.float32)
    labels, frames, rest = rng.integers(0, 9, 40), 13, 7
    seen = rng.random((40, frames)) < 0.5 if known else np.zeros((40, frames), bool)
    wanted = np.full((40, frames), -100)
    for n in range(40):
        start, end = marks[n]
        for f in range(frames):
            t = np.float32((f + 0.5) / frames)
            if not seen[n, f] and (t < start or t > end + np.float32(0.25)):
                wanted[n, f] = rest
            if min((start + end) / 2, start + np.float32(0.2)) <= t <= end + np.float32(0.1):
                wanted[n, f] = labels[n]
    found = frame_targets(torch.from_numpy(labels), torch.from_numpy(marks), frames, rest, torch.from_numpy(seen) if known else None)
    assert np.array_equal(found.numpy(), wanted) and (wanted == -100).any()


def test_a_batch_without_decided_frames_gives_a_finite_loss(tmp_path):
    t = trainer(tmp_path, frame_loss=1.0)
    late = torch.tensor([[1.5, 1.9]] * 2)  # strokes that the clip does not hold, and no class of rest
    assert torch.isfinite(t.loss(torch.randn(8, 3), torch.tensor([0, 1]), late))


def test_normalise_is_the_plain_formula():
    frames = torch.randint(0, 255, (2, 3, 5, 6, 3), dtype=torch.uint8)
    wanted = ((frames.numpy() / 255.0 - MEAN) / STD).reshape(6, 5, 6, 3).transpose(0, 3, 1, 2)
    assert np.abs(normalise(frames, MEAN, STD).numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_micro_batches_of_two_processes_are_those_of_one_that_accumulates(accumulate):
    data = Squares(24)
    alone = Batches(data, None, Options(batch=8, accumulate=2 * accumulate, seed=3), epoch=1, first_step=0, rank=0, world=1)
    shared = [Batches(data, None, Options(batch=8, accumulate=accumulate, seed=3), 1, 0, rank, 2) for rank in (0, 1)]
    for i in range(len(alone)):  # in turns, as dropout's seeds count
        assert torch.equal(alone[i][0], shared[i % 2][i // 2][0])
    order = torch.cat([alone[i][1] for i in range(len(alone))])
    assert len(order) == 24 and sorted(alone.micro.ravel()) == list(range(24))
    later = Batches(data, None, alone.options, epoch=1, first_step=2, rank=0, world=1)
    assert np.array_equal(later.micro, alone.micro[2 * 2 * accumulate:])


def test_frozen_parts_stay_as_they_are_statistics_included(tmp_path):
    t = trainer(tmp_path, freeze=3, epochs=2)
    make_sensitive(t.net, seed=0, frames=image_like_frames(8, (32, 32), seed=0))  # else gradients vanish on the way
    before = weights(t)
    t.run()
    changed = {name for name, value in t.net.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("features.0.", "features.1.", "features.2.")) for name in changed)
    assert any(name.startswith("features.3.") for name in changed) and "classifier.weight" in changed


def test_head_only_changes_nothing_but_the_classifier(tmp_path):
    t = trainer(tmp_path, head_only=True)
    before = weights(t)
    t.run()
    changed = {name for name, value in t.net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("kind, moving", [("train", None), ("partial", 1), ("frozen", 0)])
def test_partial_batch_norm_moves_the_first_alone(tmp_path, kind, moving):
    t = trainer(tmp_path, batch_norm=kind)
    make_sensitive(t.net, seed=0, frames=image_like_frames(8, (32, 32), seed=0))  # else gradients vanish on the way
    norms = [name for name, m in t.net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = weights(t)
    t.run()
    after = t.net.state_dict()
    moved = [n for n in norms if not torch.equal(after[n + ".running_mean"], before[n + ".running_mean"])]
    scaled = [n for n in norms if not torch.equal(after[n + ".weight"], before[n + ".weight"])]
    assert moved == norms[:moving] and scaled == norms[:moving]
    assert not torch.equal(after["features.3.conv.0.weight"], before["features.3.conv.0.weight"])


def test_averaged_weights_follow_the_formula(tmp_path):
    t = trainer(tmp_path, ema=0.9, epochs=2)
    slow, seen = t.average.state_dict()["classifier.weight"].clone(), []
    step = t._train_step

    def watched(micro):
        seen.append((t.step, None))
        loss = step(micro)
        seen[-1] = (seen[-1][0], t.net.state_dict()["classifier.weight"].clone())
        return loss

    t._train_step = watched
    t.run()
    for k, fast in seen:
        decay = min(0.9, (1 + k) / (10 + k))
        slow = decay * slow + (1 - decay) * fast
    assert len(seen) == 6 and torch.allclose(t.average.state_dict()["classifier.weight"], slow, atol=1e-6)
    assert not torch.allclose(t.net.state_dict()["classifier.weight"], slow, atol=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    # with batch norm frozen a step over micro-batches is the step over the batch
    whole, parts = (trainer(tmp_path / str(n), accumulate=n, batch_norm="frozen", dropout=0.0) for n in (1, 2))
    for t in (whole, parts):
        t.folder.mkdir()
        t.run()
    assert parts.history == pytest.approx(whole.history, abs=1e-5)
    for name, value in whole.net.state_dict().items():
        assert torch.allclose(value, parts.net.state_dict()[name], atol=1e-5), name


def test_resuming_at_every_step_gives_the_same_bits(tmp_path):
    def run(folder, **more):
        t = trainer(folder, Squares(strokes=True), epochs=2, ema=0.9, frame_loss=0.5, optimizer="adamw", lr=1e-3)
        t.save_every, t.rest = 1, 2
        t.resume()
        for _ in range(20):
            try:
                t.run(**more)
            except KeyboardInterrupt:
                t = trainer(folder, Squares(strokes=True), epochs=2, ema=0.9, frame_loss=0.5, optimizer="adamw", lr=1e-3)
                t.rest = 2
                assert t.resume()
                t.stop = True  # after the next step, again
                continue
            return t

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = run(tmp_path / "a")
    broken = trainer(tmp_path / "b", Squares(strokes=True), epochs=2, ema=0.9, frame_loss=0.5, optimizer="adamw", lr=1e-3)
    broken.rest, broken.stop = 2, True
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    broken = run(tmp_path / "b")
    for name, value in straight.net.state_dict().items():
        assert torch.equal(value, broken.net.state_dict()[name]), name
    for name, value in straight.average.state_dict().items():
        assert torch.equal(value, broken.average.state_dict()[name]), name
    assert straight.history == broken.history


def test_a_run_with_other_options_is_not_gone_on_with(tmp_path):
    t = trainer(tmp_path, settings={"data": "clips"})
    t.run()
    with pytest.raises(InputError) as error:
        trainer(tmp_path, settings={"data": "others"}, lr=0.07).resume()
    assert error.value.found == "data=clips, lr=0.05" and error.value.expected == "data=others, lr=0.07" and error.value.do
    again = trainer(tmp_path, settings={"data": "clips"})
    assert again.resume() and again.step == 3


def test_a_run_may_go_on_with_micro_batches_of_the_same_size_only(tmp_path):
    trainer(tmp_path, accumulate=2).run()
    assert trainer(tmp_path, accumulate=2).resume()
    with pytest.raises(InputError, match="clips a micro-batch=2"):
        trainer(tmp_path, accumulate=1).resume()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello" * 99])
def test_a_damaged_state_is_refused(tmp_path, damage):
    t = trainer(tmp_path)
    t.run()
    path = tmp_path / "last.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="cannot be read") as error:
        trainer(tmp_path).resume()
    assert "remove it" in error.value.do


def test_divergence_is_said_at_once(tmp_path):
    t = trainer(tmp_path)
    t._train_step = lambda micro: float("nan")
    with pytest.raises(InputError, match="diverged"):
        t.run()


def test_weights_that_the_last_update_spoils_are_not_saved(tmp_path):
    t = trainer(tmp_path, Squares(4), lr=1e38)  # one step, and its loss is fine
    t.save = lambda path, net, metrics: path.write_text("saved")
    with pytest.raises(InputError, match="diverged at step 1"):
        t.run()
    assert math.isfinite(t.losses[0] if t.losses else t.history[0]) and not list(tmp_path.iterdir())


def test_a_network_that_answers_with_nan_has_no_accuracy():
    with pytest.raises(InputError, match="no number"):
        evaluate_clips(lambda_net(lambda x: torch.full((len(x), 3), float("nan"))), Squares(3), MEAN, STD)


def lambda_net(function):
    net = torch.nn.Module()
    net.forward = function
    return net


def test_clips_that_cannot_be_read_do_not_count():
    class Holes(Squares):
        def __getitem__(self, i):
            return None if i % 2 else super().__getitem__(i)

    net = lambda_net(lambda x: torch.eye(3)[[0]].repeat(len(x), 1))  # says 0, whatever it sees
    # labels 0 1 2 0 1 2 ...: of clips 0, 2, 4 the first is right, and clips 0, 2, 4, 6 have two of four
    assert evaluate_clips(net, Holes(6), MEAN, STD, batch=2) == pytest.approx(1 / 3)
    assert evaluate_clips(net, Holes(7), MEAN, STD) == pytest.approx(2 / 4)
    with pytest.raises(InputError, match="not one validation clip"):
        evaluate_clips(net, [None, None], MEAN, STD)


def test_processes_that_find_different_states_do_not_go_on(tmp_path, monkeypatch):
    trainer(tmp_path).run()
    there, steps = trainer(tmp_path), iter([[3, 0], [3, 3]])
    monkeypatch.setattr(loop.dist, "all_gather", lambda out, mine: [o.fill_(v) for o, v in zip(out, next(steps))])
    there.world = 2  # the second finds no state, then the same
    with pytest.raises(InputError, match=r"steps \[0, 3\]"):
        there.resume()
    assert there.resume()


def test_a_state_of_an_earlier_version_is_named(tmp_path):
    trainer(tmp_path).run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["version"], state["accuracy"]  # as it was before there were versions
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(InputError, match="another version of tsm-edge"):
        trainer(tmp_path).resume()


def test_a_finished_run_keeps_its_result_and_makes_its_network_again(tmp_path):
    def make():
        t, names = trainer(tmp_path), []
        t.val = Squares(6)
        t.save = lambda path, net, metrics: (names.append((path.name, metrics)), path.write_bytes(b"net"))
        return t, names

    first, saved = make()
    accuracy = first.run()
    assert [name for name, _ in saved] == ["best.pth", "final.pth"] and 0 <= accuracy <= 1
    again, names = make()
    assert again.resume() and again.run() == accuracy and not names
    (tmp_path / "final.pth").unlink()
    again, names = make()
    assert again.resume() and again.run() == accuracy
    assert names == [("final.pth", {"epoch": 1, "validation_top1": accuracy})]


class Unreadable(Squares):
    """What is wrong with a clip is found in whichever process decodes it."""

    def __getitem__(self, i):
        raise InputError("no clip of the data set can be read", found="12 clips", expected="readable ones", do="check paths")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_worker_processes_are_the_errors_of_the_run(tmp_path, workers):
    t = trainer(tmp_path, Unreadable())
    t.workers = workers
    with pytest.raises(InputError) as error:
        t.run()
    assert error.value.problem == "no clip of the data set can be read" and error.value.do == "check paths"


class Deadly(Squares):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_process_that_is_killed_is_said(tmp_path):
    t = trainer(tmp_path, Deadly())
    t.workers = 1
    with pytest.raises(InputError, match="process that decodes clips has ended"):
        t.run()


def test_a_full_disk_ends_the_run_in_words(tmp_path):
    t, limit = trainer(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(InputError, match="last.pt cannot be written"):
            t.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_batches_that_cannot_be_cut_are_refused(tmp_path):
    with pytest.raises(InputError, match="micro-batches"):
        trainer(tmp_path, batch=4, accumulate=3)
    with pytest.raises(InputError, match="fewer clips"):
        trainer(tmp_path, batch=16)


def test_clip_accuracy_is_that_of_the_averaged_logits():
    data = Squares(5)

    class Echo(torch.nn.Module):
        def forward(self, x):  # the first clip's four frames say 0, 0, 1 and strongly 2: its mean says 2
            out = torch.zeros(len(x), 3)
            out[:, 0] = 1.0
            out[3, 2] = 9.0
            return out

    data.labels = np.array([2, 0, 0, 1, 1])
    assert evaluate_clips(Echo(), data, MEAN, STD, batch=5) == pytest.approx(3 / 5)
