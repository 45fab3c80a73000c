"""tsm-eval: one checkpoint through every engine, stepping against whole clips, streams, wrong input."""
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge.checkpoints import load_checkpoint  # noqa: E402
from tsm_edge.errors import TsmEdgeError  # noqa: E402
from tsm_edge.training.evaluate import clips as clip_room  # noqa: E402
from tsm_edge.training.evaluate import run as ev  # noqa: E402
from tsm_edge.training.evaluate import streams  # noqa: E402
from tsm_edge.training.evaluate.scores import clip_logits  # noqa: E402


def run(capsys, *argv):
    assert ev._main([str(v) for v in (*argv, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def options(model, data, *more):
    return ev.parser().parse_args([str(model), "--data", str(data), *map(str, more)])


@pytest.fixture(scope="module")
def online(checkpoint):
    return checkpoint()


def test_stepping_equals_the_network_over_whole_clips(online, clips):
    args = options(online, clips)
    model = ev.open_model(args)
    some = clip_room.open_clips(args, model)
    stepped, whole = ev.step_logits(model, some), ev.clip_forward(model.net, some)
    assert stepped.shape == (15, 4, 3) and np.ptp(whole, axis=0).min() > 0
    assert np.abs(stepped - whole).max() < 1e-4 * np.abs(whole).max()


def test_accuracy_is_what_a_plain_loop_counts(online, clips, tiny, capsys):
    import cv2

    from tsm_edge.runtimes import load

    found = run(capsys, online, "--data", clips)
    model, right, early = load(online), 0, 0
    for label, name in enumerate(tiny.CLASSES):
        for path in sorted((clips / name).iterdir()):
            film, frames = cv2.VideoCapture(str(path)), []
            while True:
                good, frame = film.read()
                if not good:
                    break
                frames.append(np.ascontiguousarray(frame[..., ::-1]))
            stream = model.stream(fps=0, max_gap_seconds=0)
            logits = np.array([stream.step(frames[t]).logits for t in (1, 3, 5, 7)])  # the middles of four segments
            right += int(logits.mean(0).argmax()) == label
            early += int(logits[:2].mean(0).argmax()) == label
    assert found["clips"] == 15 and found["top1"] == pytest.approx(right / 15) and found["early"]["50%"] == pytest.approx(early / 15)
    assert found["early"]["100%"] == found["top1"] == found["clip_top1"]
    assert np.trace(found["confusion"]) == right


def test_the_step_graph_gives_what_the_checkpoint_gives(online, clips, tmp_path, capsys):
    pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tsm_edge import create_model
    from tsm_edge.export.graph.write import export_onnx
    from tsm_edge.runtimes.engines.torch import describe
    from tsm_edge.step import StepNetwork

    net = create_model("mobilenet_v2", checkpoint=online).eval()
    step = StepNetwork(net, input_size=(32, 32))
    export_onnx(step, tmp_path / "model.onnx", describe(net, step.cache_specs))
    graph, own = (run(capsys, model, "--data", clips) for model in (tmp_path / "model.onnx", online))
    assert graph["engine"] == "onnxruntime" and "clip_top1" not in graph
    assert all(graph[k] == own[k] for k in ("top1", "top5", "early", "confusion"))


@pytest.mark.parametrize("shift", ["offline", None])
def test_networks_that_see_whole_clips_are_measured_as_such(checkpoint, clips, shift, capsys):
    path = checkpoint(shift=shift)
    found = run(capsys, path, "--data", clips)
    assert found["shift"] == shift and "clip_top1" not in found
    from tsm_edge.training.networks import open_network

    net = open_network(path)
    args = options(path, clips)
    some = clip_room.open_clips(args, ev.open_model(args))
    answers = clip_logits(ev.clip_forward(net, some)).argmax(1)
    assert found["top1"] == pytest.approx(float((answers == some.labels).mean()))
    with pytest.raises(TsmEdgeError, match="only online networks"):
        ev._main([str(path), "--data", str(clips), "--stream", "5"])


def test_the_weights_of_an_offline_network_are_run_online_too(checkpoint, clips, capsys):
    found = run(capsys, checkpoint(shift="offline"), "--data", clips, "--past", "1:2")
    assert 0 <= found["online_top1"] <= 1


def test_clips_are_joined_into_a_stream_of_the_asked_length(online, clips, capsys):
    found = run(capsys, online, "--data", clips, "--stream", 30)["stream"]
    assert found["seconds"] == pytest.approx(30) and found["gestures"] == 28  # one a second; the last have no time to be answered


def test_own_classes_are_played_backwards_with_their_opposites_declared(online, clips, capsys):
    found = run(capsys, online, "--data", clips, "--backwards", "--opposites", "go-left=go-right")
    assert set(found["backwards"]["per_class"]) == {"go-left", "go-right"}
    with pytest.raises(TsmEdgeError, match="not declared"):
        ev._main([str(online), "--data", str(clips), "--backwards"])


class Oracle:
    """A model that knows the clips: it answers with the brightness of the frame. The last class is the background."""

    net, shift, training = None, "online", {}

    def __init__(self, classes, fps=4.0):
        self.classes = list(classes)
        self.manifest = {"stream": {"fps": fps}, "events": {"window": 1, "hold": 1, "on": 0.5, "off": 0.4, "merge": {}, "ignore": [],
                                                            "background": [len(classes) - 1]}}

    def stream(self, **options):
        return self

    def reset(self):
        pass

    def close(self):
        pass

    def step(self, frame):
        from tsm_edge.runtimes.interface import Result

        scores = np.eye(len(self.classes), dtype=np.float32)[int(frame[0, 0, 0])]
        index = int(scores.argmax())
        return Result(label=self.classes[index], index=index, score=1.0, scores=scores, logits=10 * scores, reset=False, skipped=False,
                      timings={})


@pytest.mark.parametrize("rest", ["No gesture", "no-gesture", "Покой"])
def test_a_perfect_model_has_perfect_figures_on_a_joined_stream(rest):
    names = ["left", "right", rest]  # the background is what the events' settings say, however it is called
    made = [np.concatenate([np.full((3, 2, 2, 3), 2, np.uint8), np.full((5, 2, 2, 3), k, np.uint8)]) for k in range(3)]
    some = clip_room.Clips(lambda i: made[i], [0, 1, 2], names, 4.0)
    oracle = Oracle(names)
    found = streams.joined(oracle, some, 60.0).figures(oracle.manifest["events"])
    assert found["exactly_one"] == found["recognised"] == 1.0 and found["false_events"] == 0
    assert found["delay"] == pytest.approx(3 / 4 - 2, abs=1e-6)  # from the fourth of eight frames, four a second


def test_the_best_settings_see_through_glitches_that_the_first_ones_report():
    """Every gesture is broken by a frame of another label, and rest by one of a gesture."""
    settings = {"window": 1, "hold": 1, "on": 0.3, "off": 0.1, "merge": {}, "ignore": [], "background": [2]}
    names = ["a", "b", "No gesture"]
    labels, intervals = [], []
    for k in range(12):
        labels += [2, 2, 2, 1 - k % 2, 2, 2, 2, 2]
        intervals.append({"label": names[k % 2], "start": len(labels) / 8, "end": (len(labels) + 9) / 8})
        labels += [k % 2] * 4 + [1 - k % 2] + [k % 2] * 4
    labels += [2] * 16
    stream = streams.AnsweredStream(5 * np.eye(3, dtype=np.float32)[labels], intervals, names, 8.0)
    before = stream.figures(settings)
    assert before["exactly_one"] == 0 and before["false_events"] > 12
    chosen, after = stream.best_settings(settings)
    assert after["exactly_one"] == 1 and after["false_events"] == 0 and after == stream.figures(chosen)
    assert {k: chosen[k] for k in ("merge", "ignore", "background")} == {k: settings[k] for k in ("merge", "ignore", "background")}


def test_tuned_events_are_in_the_checkpoint_that_was_asked_for(checkpoint, clips, tmp_path, capsys):
    path = checkpoint()
    found = run(capsys, path, "--data", clips, "--stream", 20, "--tune-events", tmp_path / "tuned.pth")
    tuned, was = load_checkpoint(tmp_path / "tuned.pth"), load_checkpoint(path)
    assert tuned.card.events == found["events"] and all(np.array_equal(tuned.state_dict[k], v) for k, v in was.state_dict.items())
    again = run(capsys, tmp_path / "tuned.pth", "--data", clips, "--stream", 20)
    assert again["stream"] == found["stream"] and again["top1"] == found["top1"]
    with pytest.raises(TsmEdgeError, match="needs a stream"):
        ev._main([str(path), "--data", str(clips), "--tune-events", str(tmp_path / "x.pth")])


def test_rendered_gestures_are_evaluated_with_streams_and_played_backwards(checkpoint, tmp_path, capsys):
    path = checkpoint(classes=("Swiping Left", "Swiping Right", "No gesture"))
    found = run(capsys, path, "--data", "gestures", "--clips-per-class", 1, "--stream", 6, "--backwards",
                "--confusion", tmp_path / "c.png", "--attention", tmp_path / "a.png")
    assert found["clips"] == 3 and set(found["backwards"]["per_class"]) == {"Swiping Left", "Swiping Right"}
    assert found["stream"]["seconds"] == pytest.approx(6)
    assert (tmp_path / "c.png").read_bytes()[:4] == (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert ev._main([str(path), "--data", "gestures", "--clips-per-class", "1", "--backwards", "--stream", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("MEASURED top-1")


def test_merged_classes_are_the_other_one_on_a_stream():
    names = ["left", "links", "rest", "pause"]
    settings = {"window": 1, "hold": 1, "on": 0.3, "off": 0.1, "merge": {"1": 0, "3": 2}, "ignore": [], "background": [2]}
    labels = [2] * 8 + [1] * 8 + [3] * 16
    intervals = [{"label": names[k], "start": start, "end": end} for k, start, end in ((2, 0, 1), (1, 1, 2), (3, 2, 4))]
    found = streams.AnsweredStream(9 * np.eye(4, dtype=np.float32)[labels], intervals, names, 8.0).figures(settings)
    assert (found["gestures"], found["exactly_one"], found["false_events"]) == (1, 1.0, 0)


def write_numbered(path, n, fps):
    """A video whose frames say their number: brightness 5, 10, 15, ..."""
    from tsm_edge.training.gestures.cli import write_video

    write_video(path, [np.full((32, 32, 3), 5 * (i + 1), np.uint8) for i in range(n)], fps)


def frame_numbers(clip):
    return np.round(clip.mean((1, 2, 3)) / 5 - 1).astype(int).tolist()


@pytest.mark.parametrize("training, more, wanted, words", [
    ({}, (), [5, 15, 25, 35], "uniform"),  # the middles of four parts of forty
    ({"sampling": "dense", "sampling_stride": 3}, (), [15, 18, 21, 24], "dense, 3 frames apart"),  # in the clip's middle
    ({"sampling": "rate", "sampling_stride": 8}, (), [12, 17, 22, 27], "2 frames a second"),  # of ten
    ({"sampling": "dense", "sampling_stride": 3}, ("--sampling", "uniform"), [5, 15, 25, 35], "uniform"),
    ({}, ("--sampling", "dense", "--sampling-stride", 2), [16, 18, 20, 22], "dense, 2 frames apart"),
])
def test_clips_are_sampled_as_in_training(tmp_path, training, more, wanted, words):
    for name in ("a", "b"):
        write_numbered(tmp_path / name / "0.avi", 40, 10)
    model = Oracle(["a", "b"], fps=2.0)
    model.training = training
    some = clip_room.open_clips(options("x", tmp_path, "--frames", 4, *more), model)
    assert frame_numbers(some.read(1)) == wanted and some.sampling == words


def test_a_joined_stream_has_whole_clips_at_the_models_rate(tmp_path):
    write_numbered(tmp_path / "a" / "0.avi", 40, 10)
    write_numbered(tmp_path / "b" / "0.avi", 20, 10)
    some = clip_room.open_clips(options("x", tmp_path, "--frames", 4), Oracle(["a", "b"], fps=2.0))
    assert frame_numbers(some.film(0, 99)) == [0, 5, 10, 15, 20, 25, 30, 35]  # two of ten frames a second, four seconds long
    assert frame_numbers(some.film(1, 99)) == [0, 5, 10, 15] and len(some.film(0, 3)) == 3


def test_the_sampling_is_that_of_the_checkpoint(checkpoint, clips, tmp_path, capsys):
    from tsm_edge.checkpoints import save_checkpoint
    from tsm_edge.training.networks import open_network

    path = checkpoint()
    assert run(capsys, path, "--data", clips)["sampling"] == "uniform"
    save_checkpoint(tmp_path / "dense.pth", open_network(path), training={"sampling": "dense", "sampling_stride": 2})
    assert run(capsys, tmp_path / "dense.pth", "--data", clips)["sampling"] == "dense, 2 frames apart"


def test_clips_without_labels_are_refused(online, clips, tiny, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{clips / tiny.CLASSES[0] / '000.avi'} {tiny.CLASSES[0]}\n/elsewhere/001.avi\n")
    with pytest.raises(TsmEdgeError, match="does not say what its clips show(.|\n)*1 clips without a label, first /elsewhere"):
        ev._main([str(online), "--data", str(listed)])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("shift", ["online", "offline"])
def test_weights_that_diverged_are_refused(checkpoint, clips, tmp_path, shift):
    from tsm_edge.checkpoints import save_checkpoint
    from tsm_edge.training.networks import open_network

    net = open_network(checkpoint(shift=shift))
    torch.nn.init.constant_(net.classifier.weight, 3e38)  # finite, but no sum of them is
    save_checkpoint(tmp_path / "bad.pth", net)
    with pytest.raises(TsmEdgeError, match="answers are no numbers"):
        ev._main([str(tmp_path / "bad.pth"), "--data", str(clips)])


def test_a_stream_of_nonsense_or_without_gestures_is_refused():
    model, names = Oracle(["a", "b", "rest"]), ["a", "b", "rest"]
    with pytest.raises(TsmEdgeError, match="answers are no numbers"):
        streams.AnsweredStream(np.full((8, 3), np.nan, np.float32), [], names, 4.0)
    rest = streams.AnsweredStream(np.eye(3, dtype=np.float32)[[2] * 40], [{"label": "rest", "start": 0, "end": 10}], names, 4.0)
    assert rest.figures(model.manifest["events"])["exactly_one"] is None
    with pytest.raises(TsmEdgeError, match="no whole gesture"):
        rest.best_settings(model.manifest["events"])
    with pytest.raises(TsmEdgeError, match="knows no gesture"):
        streams.rendered(Oracle(["No gesture"]), 5.0, (32, 32))


@pytest.mark.parametrize("wrong, words", [
    (("--stream", "nan"), "--stream cannot be used"), (("--stream", "inf"), "--stream cannot be used"),
    (("--stream", "0.1"), "--stream cannot be used"), (("--stream", "-1"), "--stream cannot be used"),
    (("--seed", "-1"), "--seed cannot be used"), (("--sampling-stride", "0"), "--sampling-stride cannot be used"),
    (("--confusion", "/nowhere/c.png"), "c.png cannot be written"), (("--confusion", "c.docx"), "c.docx cannot be written"),
    (("--attention", "a.gif"), "a.gif cannot be written"), (("--attention", "/nowhere/a.png"), "a.png cannot be written"),
    (("--attention", f"{'x' * 300}.png"), "cannot be written"),
    (("--stream", "9", "--tune-events", "/nowhere/x.pth"), "x.pth cannot be written"),
    (("--stream", "9", "--tune-events", "tuned"), "tuned cannot be written"), (("--tune-events", "x.pth"), "needs a stream"),
])
def test_numbers_and_paths_are_refused_before_any_work(wrong, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ev, "open_model", lambda args: pytest.fail("the model was opened"))
    with pytest.raises(TsmEdgeError) as error:
        ev._main(["x.pth", "--data", "gestures", *wrong])
    assert words in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shift, wrong, words", [
    ("online", ("--attention", "a.png", "--attention-class", "go-up"), "unknown class"),
    ("online", ("--past", "1:2"), "--past cannot"), ("offline", ("--stream", "5"), "only online networks"),
    ("offline", ("--engine", "native"), "native engine cannot run"), ("offline", ("--engine", "navite"), "did you mean 'native'"),
])
def test_what_a_model_cannot_do_is_refused_before_any_work(checkpoint, shift, wrong, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ev, "open_clips", lambda args, model: pytest.fail("the clips were opened"))
    with pytest.raises(TsmEdgeError) as error:
        ev._main([str(checkpoint(shift=shift)), "--data", "gestures", *wrong])
    assert words in str(error.value)


@pytest.mark.parametrize("wrong, words", [
    (("--data", "/nowhere"), "no data set"), (("--past", "x"), "--past cannot"), (("--past", "0:1"), "--past cannot"),
    (("--clips-per-class", "0"), "cannot be used"), (("--confusion", "/nowhere/c.png"), "cannot be written"),
    (("--data", "gestures"), "do not know the model's classes"), (("--engine", "navite"), "did you mean 'native'"),
])
def test_wrong_input_is_refused_with_what_to_do(online, clips, wrong, words):
    with pytest.raises(TsmEdgeError) as error:
        ev._main([str(online), "--data", str(clips), *wrong])
    assert words in str(error.value) and error.value.do
