"""Builds the hand-made model of toy_plan.c with the C runtime, and calls it through ctypes."""
from __future__ import annotations

import ctypes as ct
import subprocess
from pathlib import Path

import numpy as np

from tsm_edge.runtimes.c_sources import EXPORTS, library_sources
from tsm_edge.runtimes.c_sources import FOLDER as RUNTIME

HERE = Path(__file__).resolve().parent
SOURCES, _ = library_sources()
HEIGHT, WIDTH, SHORTER, CLASSES = 20, 28, 23, 5
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
P = ct.c_void_p


def struct(name, *fields):
    """A ctypes structure whose first field is its size, as the header's are."""
    cls = type(name, (ct.Structure,), {"_fields_": [("size", ct.c_size_t), *fields]})

    def make(**values):
        self = cls()
        self.size = ct.sizeof(cls)
        for key, value in values.items():
            setattr(self, key, value)
        return self

    make.type = cls
    return make


I, L, U = ct.c_int32, ct.c_int64, ct.c_uint64
ModelOptions = struct("ModelOptions", ("message", P), ("message_bytes", ct.c_size_t))
ModelInfo = struct(
    "ModelInfo", ("name", ct.c_char_p), ("precision", ct.c_char_p), ("manifest", ct.c_char_p), ("trained", I),
    ("num_classes", I), ("width", I), ("height", I), ("resize", I), ("shorter_side", I), ("antialias", I), ("colour", I),
    ("mean", ct.c_float * 3), ("std", ct.c_float * 3), ("fps", ct.c_double), ("max_gap_seconds", ct.c_double),
    ("default_threads", I), ("num_caches", I), ("num_calls", I), ("frame_bits", I), ("logits_bits", I),
    ("frame_bytes", U), ("cache_bytes", U), ("logits_bytes", U), ("workspace_bytes", U), ("arena_bytes", U),
    ("scratch_bytes", U), ("weight_bytes", U), ("macs", U))
CacheInfo = struct("CacheInfo", ("name", ct.c_char_p), ("channels", I), ("height", I), ("width", I), ("bits", I),
                   ("offset", U))
StreamOptions = struct("StreamOptions", ("threads", I), ("affinity", I), ("max_gap_seconds", ct.c_double),
                       ("fps", ct.c_double), ("timings", I), ("profile", I))
Image = struct("Image", ("format", I), ("width", I), ("height", I), ("rotation", I), ("planes", P * 3), ("strides", L * 3),
               ("pixel_stride", I), ("yuv_range", I), ("yuv_matrix", I), ("has_timestamp", I), ("timestamp_ns", L))
Result = struct("Result", ("label_index", I), ("score", ct.c_float), ("label", ct.c_char_p),
                ("scores", ct.POINTER(ct.c_float)), ("logits", ct.POINTER(ct.c_float)), ("num_classes", I), ("reset", I),
                ("skipped", I), ("reserved", I), ("preprocess_ns", L), ("step_ns", L))
Profile = struct("Profile", ("name", ct.c_char_p), ("kind", ct.c_char_p), ("macs", U), ("bytes", U), ("last_ns", L),
                 ("total_ns", L), ("steps", U))


def toy_weights():
    """Weights of toy_plan.c: w0 [3, 8], b0 [8], w1 [8, 8], w2 [8, classes], each at a multiple of 64 bytes."""
    random = np.random.default_rng(7)
    return [random.normal(size=shape).astype(np.float32) for shape in ((3, 8), (8,), (8, 8), (8, CLASSES))]


def toy_reference(frames, half=False):
    """What toy_plan.c computes from frames float32 [T, 3, H, W]: per frame logits [classes], cache.a, cache.b."""
    def store(x):
        return x.astype(np.float16).astype(np.float32) if half else x

    w0, b0, w1, w2 = toy_weights()
    a, b = np.zeros((2, HEIGHT, WIDTH), np.float32), np.zeros((3, HEIGHT, WIDTH), np.float32)
    steps = []
    for frame in frames:
        act = np.einsum("khw,kc->chw", store(frame), w0) + b0[:, None, None]
        spliced = np.concatenate([a, b, act[5:]])
        a, b = store(act[:2]), store(act[2:5])
        logits = np.einsum("khw,kc->c", np.maximum(spliced, 0), w1) / (HEIGHT * WIDTH) @ w2
        steps.append((store(logits), a, b))
    return steps


def toy_frames(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, HEIGHT, WIDTH)).astype(np.float32)


def run(command, **options):
    """Run a command; on failure show what it wrote."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def defines(folder, **values):
    """Write the weights' header into `folder` and return the -D options of a toy model."""
    blob = []
    for array in toy_weights():
        blob += [*array.ravel().tolist(), *[0.0] * (-array.size % 16)]
    text = ", ".join(f"{value!r}f" for value in blob)
    header = Path(folder) / "toy_weights.h"
    header.write_text(f"static const float toy_values[] __attribute__((aligned(64))) = {{{text}}};\n")
    values = {"H": HEIGHT, "W": WIDTH, "SHORTER": SHORTER, **values}
    return [f'-DTOY_WEIGHTS="{header}"', *[f"-DTOY_{key}={value}" for key, value in values.items()]]


def build_toy(folder, compiler=("gcc",), flags=("-O2",), name="libtoy.so", **values):
    """Compile and link the toy model into a shared library, as the exporter does."""
    folder = Path(folder)
    library = folder / name
    run([*compiler, "-std=c99", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", *flags, "-I", RUNTIME,
         *defines(folder, **values), HERE / "toy_plan.c", *SOURCES,
         f"-Wl,--version-script={EXPORTS}", "-o", library, "-lm"])
    return library


class Toy:
    """A model library, opened."""

    def __init__(self, path):
        self.lib = ct.CDLL(str(path))
        for name in ("tsm_status_message", "tsm_model_class_name", "tsm_stream_error", "tsm_model_step_error"):
            getattr(self.lib, name).restype = ct.c_char_p
        for name in ("tsm_model_destroy", "tsm_stream_destroy"):
            getattr(self.lib, name).restype = None
        self.lib.tsm_stream_get_cache.argtypes = self.lib.tsm_stream_set_cache.argtypes = [P, I, P, ct.c_size_t]
        self.model = P()

    def create(self):
        message = ct.create_string_buffer(300)
        options = ModelOptions(message=ct.addressof(message), message_bytes=300)
        status = self.lib.tsm_model_create(ct.byref(options), ct.byref(self.model))
        return status, message.value.decode()

    def info(self):
        info = ModelInfo()
        assert self.lib.tsm_model_get_info(self.model, ct.byref(info)) == 0
        return info

    def stream(self, **options):
        return Stream(self, **options)


class Stream:
    def __init__(self, toy, **options):
        self.lib, self.handle = toy.lib, P()
        given = StreamOptions(**options)
        self.status = self.lib.tsm_stream_create(toy.model, ct.byref(given), ct.byref(self.handle))

    def step_tensor(self, frame):
        frame = np.ascontiguousarray(frame, np.float32)
        result = Result()
        status = self.lib.tsm_stream_step_tensor(self.handle, frame.ctypes.data_as(P), ct.byref(result))
        return status, result

    def logits(self, frame):
        status, result = self.step_tensor(frame)
        assert status == 0, self.error()
        return np.ctypeslib.as_array(result.logits, (CLASSES,)).copy()

    def step(self, image):
        result = Result()
        return self.lib.tsm_stream_step(self.handle, ct.byref(image), ct.byref(result)), result

    def preprocess(self, image, shape=(3, HEIGHT, WIDTH)):
        out = np.zeros(shape, np.float32)
        status = self.lib.tsm_stream_preprocess(self.handle, ct.byref(image), out.ctypes.data_as(P))
        assert status == 0, status
        return out

    def cache(self, index):
        out = np.zeros(((2, 3)[index], HEIGHT, WIDTH), np.float32)
        assert self.lib.tsm_stream_get_cache(self.handle, index, out.ctypes.data, out.size) == 0
        return out

    def set_cache(self, index, values):
        values = np.ascontiguousarray(values, np.float32)
        return self.lib.tsm_stream_set_cache(self.handle, index, values.ctypes.data, values.size)

    def error(self):
        return self.lib.tsm_stream_error(self.handle).decode()

    def close(self):
        self.lib.tsm_stream_destroy(self.handle)
        self.handle = P()
