"""Tiny clips, runs and a checkpoint for the tests of training."""
import pytest


@pytest.fixture(scope="session")
def tiny():
    """The module tiny_runs."""
    pytest.importorskip("torch", reason="torch (extra [train]) is not installed").set_num_threads(1)
    pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")
    import tiny_runs

    return tiny_runs


@pytest.fixture(scope="session")
def clips(tiny, tmp_path_factory):
    """A folder per class, five short videos in each."""
    return tiny.write_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    """checkpoint(shift="online", past=None, classes=..., size=32) -> path of a small network whose answers depend on the clip."""
    import torch

    from tsm_edge import create_model
    from tsm_edge.checkpoints import save_checkpoint
    from tsm_edge.sensitive import image_like_frames, make_sensitive

    def make(shift="online", past=None, classes=tiny.CLASSES, size=32, frames=4, fps=4.0):
        torch.manual_seed(3)
        net = create_model("mobilenet_v2", len(classes), width=0.35, input_size=size, shift=shift, past=past, n_segment=frames,
                           classes=list(classes))
        make_sensitive(net, seed=3, frames=image_like_frames(2 * frames, size, seed=3))
        net.card = net.card.but(trained=True, fps=fps)
        path = tmp_path_factory.mktemp("checkpoint") / "net.pth"
        save_checkpoint(path, net)
        return path

    return make
