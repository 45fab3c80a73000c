"""Attention maps are the logits, spread over the picture."""
import signal

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge import create_model  # noqa: E402
from tsm_edge.attention import attention_maps  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.training.evaluate.clips import Clips  # noqa: E402
from tsm_edge.training.evaluate.heat import overlay, write_attention  # noqa: E402


@pytest.mark.parametrize("name, options", [("mobilenet_v2", {"width": 0.35}), ("mobilenet_v2", {"width": 0.35, "shift": "offline"}),
                                           ("resnet18", {"shift": None})])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(name, options):
    torch.set_num_threads(1)
    frames = image_like_frames(4, (64, 64), seed=1)
    net = create_model(name, 5, input_size=64, n_segment=4, **options).eval()
    make_sensitive(net, seed=0, frames=frames)
    head = net.classifier if name == "mobilenet_v2" else net.fc
    torch.nn.init.normal_(head.bias)
    x = torch.from_numpy(frames)
    with torch.no_grad():
        wanted = net(x).numpy()
    maps, logits = attention_maps(net, x)
    assert maps.shape == (4, 5, 2, 2) and np.ptp(wanted) > 0.1
    by_hand = maps.astype(np.float64).mean((2, 3)) + head.bias.detach().numpy()
    scale = np.abs(wanted).max()
    assert np.abs(by_hand - wanted).max() < 1e-5 * scale and np.abs(logits - wanted).max() < 1e-5 * scale
    with torch.no_grad():  # one place by hand: the classifier's weights over that place's features
        place = net.forward_features(x)[2, :, 1, 0] @ head.weight[3]
    assert maps[2, 3, 1, 0] == pytest.approx(float(place), rel=1e-4, abs=1e-5)


def test_the_overlay_is_warm_where_the_evidence_is():
    frame = np.full((64, 64, 3), 90, np.uint8)
    evidence = np.full((4, 4), -1.0)
    evidence[0, 3] = 1.0
    shown = overlay(frame, evidence, 1.0)
    assert shown.shape == frame.shape and shown[4, 60].mean() > 140 and shown[40, 20].mean() < 90


@pytest.mark.parametrize("shape", [(40, 160), (160, 40)])
def test_heat_is_painted_only_over_what_the_network_sees(shape, tmp_path):
    """A long picture is cropped to its middle: the rest of the strip stays as it is."""
    torch.set_num_threads(1)
    net = create_model("mobilenet_v2", 2, width=0.35, input_size=32, classes=["a", "b"]).eval()
    clips = Clips(lambda i: np.full((5, *shape, 3), 200, np.uint8), [0], ["a", "b"], 4.0)
    write_attention(tmp_path / "a.png", net, clips)
    frame = cv2.imread(str(tmp_path / "a.png"))[:, 144:288]  # the second: no text
    across = frame if shape[0] < shape[1] else frame.transpose(1, 0, 2)
    # 37 pixels are scaled to; the middle 32 of 148 are seen: 56.5 to 88.5 of the strip's 144
    assert (across[:, :54] == 200).all() and (across[:, 91:] == 200).all() and (across[16:-16, 60:85] < 190).any(-1).all()


def clips_and_net(n=3):
    net = create_model("mobilenet_v2", n, width=0.35, input_size=32, classes=["a", "b", "c"][:n]).eval()
    made = [image_like_frames(5, (40, 36), seed=k, dtype="uint8") for k in range(2 * n)]
    return Clips(lambda i: made[i], [i % n for i in range(2 * n)], net.card.classes, 4.0), net


def test_strips_and_films_are_written(tmp_path):
    torch.set_num_threads(1)
    clips, net = clips_and_net()
    write_attention(tmp_path / "a.png", net, clips)
    assert cv2.imread(str(tmp_path / "a.png")).shape == (3 * 144, 5 * 144, 3)  # a row a class, a column a frame
    write_attention(tmp_path / "a.mp4", net, clips, name="b")
    film = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    good, frame = film.read()
    count = 1
    while film.grab():
        count += 1
    assert good and frame.shape == (2 * 144, 2 * 144, 3) and count == 5


def test_on_a_full_disk_nothing_is_written_and_it_is_said(tmp_path):
    resource = pytest.importorskip("resource", reason="no limit on files here")
    clips, net = clips_and_net()
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1][1]))  # no file may be longer
        for name in ("a.png", "a.mp4"):
            with pytest.raises(InputError):
                write_attention(tmp_path / name, net, clips)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    assert not list(tmp_path.iterdir())


def test_wrong_requests_are_refused(tmp_path):
    clips, net = clips_and_net()
    with pytest.raises(InputError, match="png or .mp4"):
        write_attention(tmp_path / "a.gif", net, clips)
    with pytest.raises(InputError, match="network itself"):
        write_attention(tmp_path / "a.png", None, clips)
    with pytest.raises(InputError, match="unknown class"):
        write_attention(tmp_path / "a.png", net, clips, name="z")
    with pytest.raises(InputError, match="cannot be written"):
        write_attention(tmp_path / "nowhere" / "a.png", net, clips)
    with pytest.raises(InputError, match="no attention maps"):
        attention_maps(torch.nn.Linear(2, 2), torch.zeros(1, 2))
