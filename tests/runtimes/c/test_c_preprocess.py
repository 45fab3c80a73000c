"""Pixels become the network's input as the plain rule says, whatever the camera's format, strides, rotation and size."""
import ctypes as ct
from fractions import Fraction

import numpy as np
import pytest

RGB, BGR, RGBA, BGRA, NV12, NV21, I420 = range(7)
FORMATS = {"RGB": RGB, "BGR": BGR, "RGBA": RGBA, "BGRA": BGRA, "NV12": NV12, "NV21": NV21, "I420": I420}
OK, IMAGE = 0, 3


def axis(size, scaled, offset, outputs, antialias):
    """Resize matrix [outputs, size], straight from the rule's words."""
    scale = size / scaled
    half = max(1.0, scale) if antialias else 1.0
    centre = (offset + np.arange(outputs)[:, None] + 0.5) * scale
    rows = np.maximum(0.0, 1 - np.abs(np.arange(size) + 0.5 - centre) / half)
    return rows / rows.sum(axis=1, keepdims=True)


def reference(rgb, kit, squash=False, antialias=True):
    """rgb [h, w, 3], any real values 0..255, upright -> [3, H, W] in grey levels, before the normalisation."""
    h, w = rgb.shape[:2]
    if squash:
        sh, sw = kit.HEIGHT, kit.WIDTH
    else:
        scale = max(Fraction(kit.SHORTER, min(h, w)), Fraction(kit.HEIGHT, h), Fraction(kit.WIDTH, w))
        sh, sw = (max(1, int(side * scale + Fraction(1, 2))) for side in (h, w))
    rows = axis(h, sh, (sh - kit.HEIGHT) // 2, kit.HEIGHT, antialias)
    cols = axis(w, sw, (sw - kit.WIDTH) // 2, kit.WIDTH, antialias)
    return rows @ rgb.transpose(2, 0, 1).astype(np.float64) @ cols.T


def levels(tensor, kit):
    """A normalised tensor back in grey levels."""
    return (tensor.astype(np.float64) * kit.STD[:, None, None] + kit.MEAN[:, None, None]) * 255


def yuv_to_rgb(y, u, v, full, bt709):
    """Full-resolution planes to RGB, the standards' equations in double precision, each channel held in 0..255."""
    kr, kb = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    y, u, v = y.astype(np.float64), u.astype(np.float64) - 128, v.astype(np.float64) - 128
    if not full:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], axis=-1), 0, 255)


class Camera:
    """A picture in memory in some format: `image` for the runtime, `rgb` as the standards decode it."""

    def __init__(self, kit, name, width, height, pad=0, seed=0, flip=False, pixel_stride=1, full=False, bt709=False,
                 smooth=True):
        random = np.random.default_rng(seed)
        form = FORMATS[name]
        self.keep = []
        self.image = kit.Image(format=form, width=width, height=height, yuv_range=int(full), yuv_matrix=int(bt709))
        if form < NV12:
            pixels = picture(random, height, width, 3, smooth)
            self.rgb = pixels
            stored = pixels[..., ::-1] if form in (BGR, BGRA) else pixels
            if form >= RGBA:
                stored = np.concatenate([stored, random.integers(0, 256, (height, width, 1), dtype=np.uint8)], axis=-1)
            self.plane(0, stored.reshape(height, -1), pad, flip)
            return
        ch, cw = (height + 1) // 2, (width + 1) // 2
        y, u, v = (picture(random, *shape, 1, smooth)[..., 0] for shape in ((height, width), (ch, cw), (ch, cw)))
        self.plane(0, y, pad, flip)
        if form == I420:
            spread = []
            for plane in (u, v):
                wide = random.integers(0, 256, (ch, (cw - 1) * pixel_stride + 1), dtype=np.uint8)
                wide[:, ::pixel_stride] = plane
                spread.append(wide)
            self.plane(1, spread[0], pad, flip), self.plane(2, spread[1], pad, flip)
            self.image.pixel_stride = pixel_stride if pixel_stride > 1 else 0
        else:
            pair = (u, v) if form == NV12 else (v, u)
            self.plane(1, np.stack(pair, axis=-1).reshape(ch, -1), pad, flip)
        up = [np.repeat(np.repeat(p, 2, axis=0), 2, axis=1)[:height, :width] for p in (u, v)]
        self.rgb = yuv_to_rgb(y, *up, full, bt709)

    def plane(self, index, rows, pad, flip):
        """Store rows with `pad` bytes of something else after each, the last one ending with its last byte."""
        height, width = rows.shape
        memory = np.full((height, width + pad), 0xAA, np.uint8)
        memory[:, :width] = rows[::-1] if flip else rows
        flat = np.ascontiguousarray(memory.reshape(-1)[:height * (width + pad) - pad])  # an over-read leaves the block
        self.keep.append(flat)
        start = flat.ctypes.data + ((height - 1) * (width + pad) if flip else 0)
        self.image.planes[index] = start
        self.image.strides[index] = -(width + pad) if flip else width + pad if pad else 0


def picture(random, height, width, channels, smooth):
    if not smooth:
        return random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * random.uniform(0.05, 0.4) + y * random.uniform(0.05, 0.4) + random.uniform(0, 6))
             for _ in range(channels)]
    return np.clip(np.stack(waves, axis=-1) + random.normal(0, 10, (height, width, channels)), 0, 255).astype(np.uint8)


def worst(stream, camera, kit, squash=False, antialias=True, colour=0):
    turns = camera.image.rotation // 90
    got = levels_any(stream.preprocess(camera.image), kit, colour)
    return np.max(np.abs(got - reference(np.rot90(camera.rgb, -turns), kit, squash, antialias)))


def levels_any(tensor, kit, colour):
    grey = levels(tensor, kit)
    if colour:  # a BGR network's channel c is normalised with mean[c]; compare as RGB
        grey = grey[::-1]
    return grey


@pytest.fixture(scope="module")
def stream(toy):
    stream = toy.stream(threads=1)
    yield stream
    stream.close()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_rotation_is_within_one_grey_level(stream, kit, name, rotation):
    for width, height in ((64, 48), (61, 47), (33, 80)):
        camera = Camera(kit, name, width, height, pad=13, seed=width + rotation)
        camera.image.rotation = rotation
        limit = 1.0 if name in ("NV12", "NV21", "I420") else 1e-3
        assert worst(stream, camera, kit) < limit


@pytest.mark.parametrize("name", FORMATS)
def test_noise_and_saturated_colours_too(stream, kit, name):
    for full in (False, True):
        for bt709 in (False, True):
            camera = Camera(kit, name, 51, 37, pad=3, full=full, bt709=bt709, smooth=False)
            assert worst(stream, camera, kit) < 1.0


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 40), (40, 1), (28, 20), (7, 5), (3, 300), (300, 211), (1280, 720)])
@pytest.mark.parametrize("name", ["RGB", "BGRA", "NV21", "I420"])
def test_any_size_even_one_pixel(stream, kit, name, size):
    assert worst(stream, Camera(kit, name, *size), kit) < 1.0


@pytest.mark.parametrize("name", FORMATS)
def test_bottom_up_rows_are_read_by_negative_strides(stream, kit, name):
    camera = Camera(kit, name, 45, 38, pad=7, flip=True)
    assert worst(stream, camera, kit) < 1.0


@pytest.mark.parametrize("pixel_stride", [1, 2, 3, 4])
def test_android_planes_with_pixel_stride(stream, kit, pixel_stride):
    camera = Camera(kit, "I420", 53, 41, pad=5, pixel_stride=pixel_stride, full=True)
    assert worst(stream, camera, kit) < 1.0


@pytest.mark.parametrize("squash, antialias, colour", [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_squash_two_taps_and_bgr_networks(kit, tmp_path, squash, antialias, colour):
    toy = kit.Toy(kit.build_toy(tmp_path, SQUASH=squash, ANTIALIAS=antialias, COLOUR=colour))
    assert toy.create() == (OK, "")
    stream = toy.stream()
    for name in ("RGB", "BGR", "RGBA", "NV12"):
        for rotation in (0, 90, 180, 270):
            camera = Camera(kit, name, 71, 50)
            camera.image.rotation = rotation
            turned = np.rot90(camera.rgb, -rotation // 90)
            want = reference(turned, kit, squash, antialias)[::-1 if colour else 1]
            assert np.max(np.abs(levels(stream.preprocess(camera.image), kit) - want)) < 1.0
    stream.close()


def test_the_python_reference_says_the_same(stream, kit):
    from tsm_edge.runtimes.preprocess import preprocess

    spec = {"width": kit.WIDTH, "height": kit.HEIGHT, "colour": "RGB", "resize": "crop", "shorter_side": kit.SHORTER,
            "filter": "antialias", "mean": kit.MEAN.tolist(), "std": kit.STD.tolist()}
    for width, height in ((176, 100), (50, 50), (101, 77), (640, 480)):
        camera = Camera(kit, "RGB", width, height)
        assert np.max(np.abs(stream.preprocess(camera.image) - preprocess(camera.rgb, spec))) < 1e-4


def test_geometry_may_change_from_frame_to_frame(toy, kit):
    stream, fresh = toy.stream(), toy.stream()
    cameras = [Camera(kit, name, 40 + 8 * k, 30 + 6 * k, seed=k) for k, name in enumerate(FORMATS)]
    for camera in cameras + cameras[::-1]:
        camera.image.rotation = (camera.image.rotation + 90) % 360
        assert worst(stream, camera, kit) < 1.0
        assert toy.lib.tsm_stream_prepare(fresh.handle, ct.byref(camera.image)) == OK
        status, result = stream.step(camera.image)
        assert status == OK and result.num_classes == 5
    stream.close(), fresh.close()


def test_the_pixel_step_equals_the_tensor_step(toy, kit):
    one, two = toy.stream(), toy.stream()
    for seed in range(4):
        camera = Camera(kit, "NV21", 60, 44, seed=seed)
        status, result = one.step(camera.image)
        got = np.ctypeslib.as_array(result.logits, (5,)).copy()
        assert status == OK and np.array_equal(got, two.logits(two.preprocess(camera.image)))
    assert np.array_equal(one.cache(1), two.cache(1))
    one.close(), two.close()


def test_impossible_images_are_refused(toy, kit):
    stream, pixels = toy.stream(), np.zeros(100000, np.uint8)

    def status(name="RGB", **changes):
        camera = Camera(kit, name, 40, 30)
        for key, value in changes.items():
            if key.startswith(("plane", "stride")):
                getattr(camera.image, key[:-1] + "s")[int(key[-1])] = value
            else:
                setattr(camera.image, key, value)
        return stream.step(camera.image)[0]

    assert status() == OK and pixels.size
    for wrong in ({"width": 0}, {"width": -4}, {"height": 16385}, {"format": 7}, {"format": -1}, {"rotation": 45},
                  {"rotation": -90}, {"plane0": None}, {"stride0": 119}, {"stride0": -119}, {"stride0": 1 << 40},
                  {"stride0": -(1 << 63)}, {"yuv_range": 2}, {"yuv_matrix": -1}, {"pixel_stride": -1}, {"pixel_stride": 99}):
        assert status(**wrong) == IMAGE, wrong
    for name, wrong in (("NV12", {"plane1": None}), ("I420", {"plane2": None}), ("NV21", {"stride1": 39}),
                        ("I420", {"stride2": 19}), ("I420", {"pixel_stride": 2, "stride1": 38, "stride2": 39})):
        assert status(name, **wrong) == IMAGE, (name, wrong)
    stream.close()
