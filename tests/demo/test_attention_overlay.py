"""tsm-demo --attention: the heat is the logit, spread over the right pixels; what has no feature map is refused."""
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge import create_model  # noqa: E402
from tsm_edge.checkpoints import save_checkpoint  # noqa: E402
from tsm_edge.demo.heat import Heat  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.runtimes.engines.torch import TorchModel  # noqa: E402
from tsm_edge.runtimes.interface import Result  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402

ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}, "OMP_NUM_THREADS": "1"}


def network(name="mobilenet_v2", **options):
    net = create_model(name, 5, input_size=64, **options).eval()
    make_sensitive(net, seed=0, frames=image_like_frames(8, (64, 64), seed=1))
    torch.nn.init.normal_(net.classifier.bias if name == "mobilenet_v2" else net.fc.bias)
    return net


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    save_checkpoint(path, network(width=0.35))
    return path


def demo(*arguments):
    done = subprocess.run([sys.executable, "-m", "tsm_edge.demo.cli", *map(str, arguments)], capture_output=True, text=True,
                          env=ENVIRONMENT, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name, options", [("mobilenet_v2", {"width": 0.35}), ("resnet18", {})])
def test_the_streams_maps_average_to_its_logits_and_the_step_is_the_normal_step(name, options):
    net = network(name, **options)
    bias = (net.classifier if name == "mobilenet_v2" else net.fc).bias.detach().numpy()
    step, stream = StepNetwork(net), TorchModel(net).stream()
    caches = step.zero_caches()
    for x in torch.from_numpy(image_like_frames(3, (64, 64), seed=2))[:, None]:
        logits = stream.step_tensor(x.numpy())
        with torch.inference_mode():
            wanted, *caches = step(x, *caches)
        assert np.array_equal(logits, wanted[0].numpy())
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(stream.state().values(), caches))
        maps = stream.attention()
        assert maps.shape == (5, 2, 2) and np.ptp(maps) > 0.1
        assert np.abs(maps.astype(np.float64).mean((1, 2)) + bias - logits).max() < 1e-5 * np.abs(logits).max()


def test_two_streams_of_one_model_keep_their_own_maps_and_none_before_a_step():
    model = TorchModel(network(width=0.35))
    a, b = model.stream(), model.stream()
    with pytest.raises(InputError, match="no attention yet"):
        a.attention()
    x = image_like_frames(2, (64, 64), seed=3)
    a.step_tensor(x[:1])
    before = a.attention()
    b.step_tensor(x[1:])
    assert np.array_equal(a.attention(), before) and not np.array_equal(b.attention(), before)
    a.reset()
    with pytest.raises(InputError, match="no attention yet"):
        a.attention()


class Fake:
    """A model whose input is 64x64, cut from a picture whose shorter side is 80."""

    classes = ["a", "Swiping Left"]

    def __init__(self, resize="crop"):
        self.manifest = {"input": {"width": 64, "height": 64, "resize": resize, "shorter_side": 80}}


RESULT = Result("Swiping Left", 1, 1.0, np.array([0, 1.0]), np.array([0, 1.0]), False, False, {})


@pytest.mark.parametrize("resize, rows, columns", [("crop", (40, 360), (140, 460)), ("squash", (0, 400), (0, 600))])
def test_the_heat_lies_on_the_pixels_that_the_network_saw(resize, rows, columns):
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 2, 6] = 3
    frame = np.full((400, 600, 3), 100, np.uint8)
    painted = frame.copy()
    assert Heat(Fake(resize)).paint(painted, maps, RESULT) == "Swiping Left"
    change = np.abs(painted.astype(int) - frame).sum(2)
    outside = np.ones((400, 600), bool)
    outside[rows[0]:rows[1], columns[0]:columns[1]] = False
    assert not change[outside].any()
    y, x = ((change * axis).sum() / change.sum() for axis in np.mgrid[:400, :600])
    cell = (rows[1] - rows[0]) / 8, (columns[1] - columns[0]) / 8
    assert abs(y - (rows[0] + 2.5 * cell[0])) < 0.1 * cell[0] and abs(x - (columns[0] + 6.5 * cell[1])) < 0.1 * cell[1]


def test_a_spot_in_the_frame_is_heated_where_it_is():
    """Preprocessing and its undoing agree: the network's input itself, as the map, warms the spot it was made from."""
    from tsm_edge.runtimes.preprocess import preprocess

    spec = {**Fake().manifest["input"], "filter": "antialias", "mean": [0, 0, 0], "std": [1, 1, 1]}
    frame = np.zeros((400, 600, 3), np.uint8)
    frame[100:120, 380:410] = 255
    image = np.full_like(frame, 100)
    Heat(Fake()).paint(image, np.stack([np.zeros((64, 64), np.float32), preprocess(frame, spec)[0]]), RESULT)
    change = np.abs(image.astype(int) - 100).sum(2)
    y, x = ((change * axis).sum() / change.sum() for axis in np.mgrid[:400, :600])
    assert abs(y - 109.5) < 1 and abs(x - 394.5) < 1


def test_a_named_class_is_shown_whatever_comes_first_and_a_mistyped_one_refused():
    frame = np.full((40, 60, 3), 100, np.uint8)
    assert Heat(Fake(), "a").paint(frame, np.zeros((2, 2, 2), np.float32), RESULT) == "a" and (frame == 100).all()
    with pytest.raises(InputError, match="Swiping Left"):
        Heat(Fake(), "Swiping Lift")


def test_a_film_with_heat_differs_only_by_the_heat_and_its_legend(checkpoint, tmp_path):
    shapes = []
    for name, more in (("plain", []), ("heat", ["--attention-class", "class 3"])):
        code, err = demo(checkpoint, "--source", "test://swiping-left", "--headless", "--output", tmp_path / f"{name}.mp4",
                         "--max-frames", 6, "--input-width", 320, "--input-height", 240, *more)
        assert code == 0 and "PASSED" in err, err
        film = cv2.VideoCapture(str(tmp_path / f"{name}.mp4"))
        assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 6
        shapes.append(film.read()[1].astype(int))
    assert "attention=class 3" in err
    change = np.abs(shapes[0] - shapes[1]).sum(2)
    assert change[85:115, 60:260].max() > 30 and change[85:115, :20].mean() < 10  # the sides are never seen by the network


@pytest.mark.parametrize("kind", ["bundle", "zip", "onnx"])
def test_what_gives_logits_only_is_refused_by_name(kind, tmp_path):
    path = {"bundle": tmp_path / "dist", "zip": tmp_path / "d.zip", "onnx": tmp_path / "m.onnx"}[kind]
    path.mkdir() if kind == "bundle" else path.write_bytes(b"")
    code, err = demo(path, "--attention", "--source", "test://swiping-left", "--headless", "--output", tmp_path / "x.mp4")
    assert code == 2 and str(path) in err and "pass the checkpoint it was made from" in err
    assert not (tmp_path / "x.mp4").exists()


def test_other_engines_and_headless_without_a_film_are_refused(checkpoint):
    code, err = demo(checkpoint, "--attention", "--engine", "onnxruntime", "--headless", "--output", "x.mp4")
    assert code == 2 and "gives no attention" in err
    code, err = demo(checkpoint, "--attention", "--headless")
    assert code == 2 and "--output" in err


def test_the_stream_of_another_engine_says_what_to_load_instead(bundle):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    from tsm_edge.runtimes import load

    with pytest.raises(InputError, match="last feature map"):
        load(bundle, "onnxruntime").stream().attention()
