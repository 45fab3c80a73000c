"""Training, the Python reference, its quick form and C, as the board's runner calls it, see the same part of a frame."""
import numpy as np
import pytest

from tsm_edge.picture import shorter_side
from tsm_edge.runtimes.library import Library, LibraryStream
from tsm_edge.runtimes.preprocess import Preprocessor, preprocess

SOURCES = ((101, 77), (77, 101), (31, 200), (200, 31), (53, 53), (27, 19), (160, 120), (333, 251))


def ramps(width, height):
    """uint8 [h, w, 3]: red grows to the right, green downwards, so each pixel says where it comes from; blue is a wave."""
    x, y = (np.arange(width) + 0.5) / width, ((np.arange(height) + 0.5) / height)[:, None]
    planes = np.broadcast_arrays(255 * x, 255 * y, 127 + 100 * np.sin(4 * x + 3 * y))
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


def part(width, height, size):
    """Shares of the width and height that the rule keeps, each (from, to): a centred rectangle of the input's shape."""
    scale = max(shorter_side(*size) / min(width, height), size[0] / width, size[1] / height)
    return [(0.5 - kept / 2, 0.5 + kept / 2) for kept in (size[0] / scale / width, size[1] / scale / height)]


@pytest.fixture(scope="module", params=[(28, 20), (20, 28), (24, 24), (40, 12)], ids=lambda size: f"{size[0]}x{size[1]}")
def network(request, toys, toy_library, tmp_path_factory):
    """(width, height) of a network's input, and its library."""
    width, height = request.param
    path = toys.toy.build_toy(tmp_path_factory.mktemp("toy"), flags=("-O1",), W=width, H=height, SHORTER=shorter_side(width, height))
    return request.param, Library(path)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source[0]}x{source[1]}")
def test_all_four_see_the_same_part_of_the_frame(network, toys, source):
    pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")
    from tsm_edge.training.data.augment import CentreCrop

    size, library = network
    spec = {**toys.manifest()["input"], "width": size[0], "height": size[1], "shorter_side": shorter_side(*size)}
    frame = ramps(*source)
    want = preprocess(frame, spec)
    assert np.abs(Preprocessor(spec)(frame) - want).max() < 1e-4
    assert np.abs(LibraryStream(library).preprocess(frame) - want).max() < 1e-4

    mean, std = (np.array(spec[key])[:, None, None] for key in ("mean", "std"))
    grey = (want * std + mean) * 255
    trained = CentreCrop(size)(frame[None], 0)[0][0].transpose(2, 0, 1)
    # The filters differ, and OpenCV rounds; one pixel elsewhere would be 255 / 40 levels and more. Borders of a source that
    # is enlarged are flat in both, by half a source pixel.
    assert trained.shape == grey.shape and np.abs(trained - grey).max() < 4

    across, down = part(*source, size)
    for levels, (start, end), n, pixels in ((grey[0].mean(0), across, size[0], source[0]), (grey[1].mean(1), down, size[1], source[1])):
        want_levels = 255 * (start + (end - start) * (np.arange(n) + 0.5) / n)
        assert np.abs(levels - want_levels).max() < 1 + 0.5 * 255 / pixels + 0.75 * 255 * (end - start) / n
