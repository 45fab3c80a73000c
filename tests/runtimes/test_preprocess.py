"""Preprocessing follows the manifest's rule; the quick form, PIL and the C runtime agree with the reference."""
import numpy as np
import pytest

from tsm_edge.errors import InputError
from tsm_edge.runtimes.preprocess import Preprocessor, geometry, preprocess, taps_matrix

SPEC = {"width": 224, "height": 224, "colour": "RGB", "resize": "crop", "shorter_side": 256, "filter": "antialias",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RAW = {"mean": [0, 0, 0], "std": [1 / 255] * 3}  # grey levels come out
SIZES = [(480, 640), (256, 256), (90, 100), (37, 300), (720, 405), (224, 224)]


def picture(height, width, seed=0):
    """Smooth content with edges: uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(3, 30)) + np.cos(y / random.uniform(3, 30)) + (x > y) for _ in range(3)]
    stack = np.stack(waves, -1)
    return ((stack - stack.min()) / np.ptp(stack) * 255).astype(np.uint8)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("changes", [{}, {"filter": "bilinear"}, {"resize": "squash"}, {"width": 96, "height": 160}])
def test_the_quick_form_equals_the_reference(height, width, changes):
    spec, frame = {**SPEC, **changes}, picture(height, width)
    for colour in ("RGB", "BGR"):
        assert np.abs(Preprocessor(spec, colour)(frame) - preprocess(frame, spec, colour)).max() < 2e-6


@pytest.mark.parametrize("height, width", SIZES)
def test_resize_and_crop_equal_pillow_within_one_grey_level(height, width):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    frame = picture(height, width)
    scaled_h, scaled_w, top, left = geometry(height, width, SPEC)
    resized = image.fromarray(frame).resize((scaled_w, scaled_h), image.Resampling.BILINEAR)
    want = np.asarray(resized)[top:top + 224, left:left + 224].transpose(2, 0, 1).astype(float)
    got = preprocess(frame, {**SPEC, **RAW})
    assert np.abs(got - want).max() <= 1


def test_two_taps_equal_opencv_within_one_grey_level():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    frame = picture(480, 640)
    want = cv2.resize(frame, (224, 224), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1).astype(float)
    got = preprocess(frame, {**SPEC, **RAW, "resize": "squash", "filter": "bilinear"})
    assert np.abs(got - want).max() <= 1


def test_the_crop_is_the_centre_and_the_scale_the_shorter_sides():
    assert geometry(480, 640, SPEC) == (256, 341, 16, 58)
    assert geometry(640, 480, SPEC) == (341, 256, 58, 16)
    assert geometry(480, 640, {**SPEC, "resize": "squash"}) == (224, 224, 0, 0)
    wide = {**SPEC, "width": 160, "height": 120, "shorter_side": 137}
    assert geometry(480, 640, wide) == (137, 183, 8, 11)


@pytest.mark.parametrize("source, wanted", [((640, 480), (213, 160, 46, 0)), ((1000, 10), (16000, 160, 7940, 0)),
                                            ((10, 1000), (137, 13700, 8, 6770)), ((120, 130), (148, 160, 14, 0))])
def test_a_crop_that_would_not_fit_enlarges_the_picture_but_never_stretches_it(source, wanted):
    """By hand: 640 rows x 480 columns would become 183x137, too narrow for 160 columns, so the scale is 160/480."""
    assert geometry(*source, {**SPEC, "width": 160, "height": 120, "shorter_side": 137}) == wanted
    turned = geometry(*source[::-1], {**SPEC, "width": 120, "height": 160, "shorter_side": 137})
    assert turned == (wanted[1], wanted[0], wanted[3], wanted[2])


def test_normalisation_by_hand():
    frame = np.full((300, 400, 3), (255, 0, 51), np.uint8)
    got = preprocess(frame, SPEC)
    want = (np.array([1, 0, 0.2]) - SPEC["mean"]) / SPEC["std"]
    assert np.abs(got - want[:, None, None]).max() < 1e-5
    assert np.abs(preprocess(frame, SPEC, "BGR") - ((np.array([0.2, 0, 1]) - SPEC["mean"]) / SPEC["std"])[:, None, None]).max() < 1e-5


@pytest.mark.parametrize("size, scaled, antialias", [(10, 4, True), (10, 4, False), (4, 10, True), (7, 7, True)])
def test_taps_are_a_triangle_that_sums_to_one(size, scaled, antialias):
    matrix = taps_matrix(size, scaled, 0, scaled, antialias)
    half = max(1, size / scaled) if antialias else 1
    for i in range(scaled):
        centre = (i + 0.5) * size / scaled - 0.5
        want = [max(0, 1 - abs(s - centre) / half) for s in range(size)]
        assert matrix[i] == pytest.approx(np.array(want) / sum(want))


@pytest.mark.parametrize("changes", [{}, {"SQUASH": 1, "ANTIALIAS": 0}], ids=["crop", "squash-bilinear"])
def test_the_c_runtime_equals_the_reference_within_rounding(toys, tmp_path, toy_library, changes):
    from tsm_edge.runtimes.library import Library, LibraryStream

    library = Library(toys.toy.build_toy(tmp_path, flags=("-O1",), **changes) if changes else toy_library)
    spec = toys.manifest()["input"]
    if changes:
        spec = {**spec, "resize": "squash", "filter": "bilinear"}
    for height, width in ((36, 50), (20, 28), (200, 31), (480, 640)):
        frame = picture(height, width)
        turned = np.ascontiguousarray(frame[:, ::-1])[:, ::-1]  # negative strides
        gaps = np.zeros((height, width + 5, 3), np.uint8)
        gaps[:, :width] = frame
        for colour in ("RGB", "BGR"):
            stream = LibraryStream(library, colour)
            want = preprocess(frame, spec, colour)
            for view in (frame, turned, gaps[:, :width]):
                assert np.abs(stream.preprocess(view) - want).max() < 1e-4


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), [[1]]])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(InputError) as error:
        Preprocessor(SPEC)(bad)
    assert "uint8 [height, width, 3]" in error.value.expected and error.value.found and error.value.do
