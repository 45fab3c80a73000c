#!/usr/bin/env python3
"""Run a bundle on the board it was made for. Needs Python 3.6 or newer and numpy, nothing else.

    python3 tsm_device.py                  # what the bundle is
    python3 tsm_device.py --verify         # replay golden.npz on this very board
    python3 tsm_device.py --bench 200      # time of a step here

    import tsm_device
    stream = tsm_device.load().stream()    # the bundle this file lies in
    for frame in camera:                   # uint8 [height, width, 3], RGB
        result = stream.step(frame)
        print(result.label, result.score)
"""
import argparse
import collections
import ctypes as ct
import hashlib
import io
import json
import os
import platform
import struct
import sys
import time
import zipfile

import numpy as np

SCHEMA = 1
API_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_GOLDEN_BYTES = 1 << 30
MAX_THREADS = 64
MAX_STRIDE = 1 << 24  # bytes from a row to the next that the library takes
LIBRARY = "libtsm_model.so"


class DeviceError(Exception):
    """What was found, what was expected, what to do. `code` is the exit code: 2 wrong input, 1 a check failed."""

    def __init__(self, problem, found, expected, do, code=2):
        self.problem, self.found, self.expected, self.do, self.code = problem, str(found), str(expected), str(do), code
        super().__init__("%s\n  found:    %s\n  expected: %s\n  do:       %s" % (problem, found, expected, do))


# --- the library ------------------------------------------------------------------------------------------------------
# The structures of tsm_edge.h. A library of another version reads and writes no more than `size` bytes of them.

_I, _L, _U, _P, _D = ct.c_int32, ct.c_int64, ct.c_uint64, ct.c_void_p, ct.c_double


class _Sized(ct.Structure):
    def __init__(self, **values):
        super().__init__(**values)
        self.size = ct.sizeof(self)


class ModelOptions(_Sized):
    _fields_ = [("size", ct.c_size_t), ("message", _P), ("message_bytes", ct.c_size_t)]


class ModelInfo(_Sized):
    _fields_ = [
        ("size", ct.c_size_t), ("name", ct.c_char_p), ("precision", ct.c_char_p), ("manifest", ct.c_char_p),
        ("trained", _I), ("num_classes", _I), ("width", _I), ("height", _I), ("resize", _I), ("shorter_side", _I),
        ("antialias", _I), ("colour", _I), ("mean", ct.c_float * 3), ("std", ct.c_float * 3), ("fps", _D),
        ("max_gap_seconds", _D), ("default_threads", _I), ("num_caches", _I), ("num_calls", _I), ("frame_bits", _I),
        ("logits_bits", _I), ("frame_bytes", _U), ("cache_bytes", _U), ("logits_bytes", _U), ("workspace_bytes", _U),
        ("arena_bytes", _U), ("scratch_bytes", _U), ("weight_bytes", _U), ("macs", _U)]


class CacheInfo(_Sized):
    _fields_ = [("size", ct.c_size_t), ("name", ct.c_char_p), ("channels", _I), ("height", _I), ("width", _I),
                ("bits", _I), ("offset", _U)]


class StreamOptions(_Sized):
    _fields_ = [("size", ct.c_size_t), ("threads", _I), ("affinity", _I), ("max_gap_seconds", _D), ("fps", _D),
                ("timings", _I), ("profile", _I)]


class Image(_Sized):
    _fields_ = [("size", ct.c_size_t), ("format", _I), ("width", _I), ("height", _I), ("rotation", _I),
                ("planes", _P * 3), ("strides", _L * 3), ("pixel_stride", _I), ("yuv_range", _I), ("yuv_matrix", _I),
                ("has_timestamp", _I), ("timestamp_ns", _L)]


class StepResult(_Sized):
    _fields_ = [("size", ct.c_size_t), ("label_index", _I), ("score", ct.c_float), ("label", ct.c_char_p),
                ("scores", ct.POINTER(ct.c_float)), ("logits", ct.POINTER(ct.c_float)), ("num_classes", _I),
                ("reset", _I), ("skipped", _I), ("reserved", _I), ("preprocess_ns", _L), ("step_ns", _L)]


class Profile(_Sized):
    _fields_ = [("size", ct.c_size_t), ("name", ct.c_char_p), ("kind", ct.c_char_p), ("macs", _U), ("bytes", _U),
                ("last_ns", _L), ("total_ns", _L), ("steps", _U)]


_FUNCTIONS = {  # name: (result, arguments)
    "tsm_status_message": (ct.c_char_p, [_I]),
    "tsm_api_version": (_I, []),
    "tsm_model_create": (_I, [_P, ct.POINTER(_P)]),
    "tsm_model_destroy": (None, [_P]),
    "tsm_model_get_info": (_I, [_P, _P]),
    "tsm_model_class_name": (ct.c_char_p, [_P, _I]),
    "tsm_model_get_cache_info": (_I, [_P, _I, _P]),
    "tsm_stream_create": (_I, [_P, _P, ct.POINTER(_P)]),
    "tsm_stream_destroy": (None, [_P]),
    "tsm_stream_step": (_I, [_P, _P, _P]),
    "tsm_stream_step_tensor": (_I, [_P, _P, _P]),
    "tsm_stream_preprocess": (_I, [_P, _P, _P]),
    "tsm_stream_reset": (_I, [_P]),
    "tsm_stream_get_cache": (_I, [_P, _I, _P, ct.c_size_t]),
    "tsm_stream_set_cache": (_I, [_P, _I, _P, ct.c_size_t]),
    "tsm_stream_error": (ct.c_char_p, [_P]),
    "tsm_stream_threads": (_I, [_P]),
    "tsm_stream_get_profile": (_I, [_P, _I, _P]),
}
_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0x28: "arm", 0x03: "x86", 0xF3: "riscv"}


def elf_machine(path):
    """Bits and processor of an ELF file, ("aarch64", 64); None where it is no ELF file."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    number = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0]
    return _MACHINES.get(number, "machine %d" % number), 32 if head[4] == 1 else 64


def this_machine():
    """Like `elf_machine`, of the running Python: a 32-bit system under a 64-bit kernel says what it really is."""
    found = elf_machine("/proc/self/exe")
    if found:
        return found
    name = platform.machine()
    return ("arm" if name.startswith("arm") and name != "arm64" else name), 64 if sys.maxsize > 2 ** 32 else 32


class Library(object):
    """A model library, opened, with the model it holds.

    Raises
    ------
    DeviceError
        Made for another machine, needs a newer libc, or refused by its own checks.
    """

    def __init__(self, path):
        path = os.path.abspath(str(path))
        found, here = elf_machine(path), this_machine()
        if found != here:
            raise DeviceError(
                "the library cannot run on this machine", "%s for %s" % (os.path.basename(path), "%s, %d bits" % found)
                if found else "%s is no ELF library" % path, "%s, %d bits" % here,
                "copy the bundle to its device, or export one for this machine: tsm-export --target host")
        try:
            self.lib = ct.CDLL(path)
        except OSError as error:
            raise DeviceError("the library does not load", error,
                              "a system with the libc that the bundle's README names",
                              "export again for this board's system (tsm-export --list-targets)") from error
        try:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self.lib, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError as error:
            raise DeviceError("this is no model library", error, "the functions of tsm_edge.h",
                              "export the bundle again") from error
        if self.lib.tsm_api_version() != API_VERSION:
            raise DeviceError("the library has another interface", "version %d" % self.lib.tsm_api_version(),
                              "version %d" % API_VERSION, "use the device folder of the same bundle")
        self.handle = None
        handle, message = _P(), ct.create_string_buffer(512)
        options = ModelOptions(message=ct.addressof(message), message_bytes=512)
        status = self.lib.tsm_model_create(ct.byref(options), ct.byref(handle))
        if status:
            words = message.value.decode("utf-8", "replace") or self.message(status)
            raise DeviceError("the model cannot be created", words, "a CPU with the features the library was made for",
                              "export again for this board (tsm-export --list-targets)")
        self.handle = handle
        self.info = ModelInfo()
        self.check(self.lib.tsm_model_get_info(handle, ct.byref(self.info)), "reading the model's description")
        self.classes = [self.lib.tsm_model_class_name(handle, i).decode("utf-8") for i in range(self.info.num_classes)]
        self.caches = collections.OrderedDict()  # name -> shape (1, channels, height, width)
        for index in range(self.info.num_caches):
            cache = CacheInfo()
            self.check(self.lib.tsm_model_get_cache_info(handle, index, ct.byref(cache)),
                       "reading a cache's description")
            self.caches[cache.name.decode("utf-8")] = (1, cache.channels, cache.height, cache.width)

    def message(self, status):
        """The library's words for a status."""
        return (self.lib.tsm_status_message(status) or b"").decode("utf-8", "replace")

    def check(self, status, what, stream=None):
        """Raise DeviceError unless `status` is fine."""
        if status:
            words = self.lib.tsm_stream_error(stream).decode("utf-8", "replace") if stream else ""
            raise DeviceError("%s failed" % what, words or self.message(status), "success",
                              "report this with the message")

    def __del__(self):
        if getattr(self, "handle", None):
            self.lib.tsm_model_destroy(self.handle)
            self.handle = None


class LibraryStream(object):
    """One stream of a Library: the C functions with numpy arrays. Buffers are made once; a step allocates no more than
    its results."""

    FORMATS = {"RGB": 0, "BGR": 1}

    def __init__(self, library, colour="RGB", threads=0, max_gap_seconds=0.0, fps=0.0, profile=False):
        self.handle, self.library = None, library  # the library outlives its streams
        options = StreamOptions(threads=threads, max_gap_seconds=max_gap_seconds, fps=fps, timings=1, profile=profile)
        handle = _P()
        library.check(library.lib.tsm_stream_create(library.handle, ct.byref(options), ct.byref(handle)),
                      "creating a stream")
        self.handle = handle
        self.threads = library.lib.tsm_stream_threads(handle)
        self.image, self.result = Image(format=self.FORMATS[colour]), StepResult()
        self._image, self._result = ct.byref(self.image), ct.byref(self.result)
        info = library.info
        self.input_shape = (3, info.height, info.width)

    def _point_at(self, frame, timestamp):
        # Rows may be apart (a view of a larger picture); pixels within a row must be packed.
        if frame.strides[2] != 1 or frame.strides[1] != 3 or not 3 * frame.shape[1] <= frame.strides[0] <= MAX_STRIDE:
            frame = np.ascontiguousarray(frame)
        image = self.image
        image.height, image.width = frame.shape[:2]
        image.planes[0] = frame.ctypes.data
        image.strides[0] = frame.strides[0] if frame.shape[0] > 1 else 0  # of a single row numpy may say anything
        image.has_timestamp = timestamp is not None
        image.timestamp_ns = 0 if timestamp is None else int(round(timestamp * 1e9))
        return frame  # to be kept until the call is over

    def step(self, frame, timestamp=None):
        """Step with uint8 [h, w, 3]; the outcome lies in `self.result`."""
        frame = self._point_at(frame, timestamp)
        status = self.library.lib.tsm_stream_step(self.handle, self._image, self._result)
        if status:
            self.library.check(status, "the step", self.handle)
        return self.result

    def step_tensor(self, x):
        """Step with float32 [3, H, W], normalised."""
        status = self.library.lib.tsm_stream_step_tensor(self.handle, x.ctypes.data, self._result)
        if status:
            self.library.check(status, "the step", self.handle)
        return self.result

    def preprocess(self, frame):
        """uint8 [h, w, 3] -> network input float32 [3, H, W]; the stream's state stays as it is."""
        out = np.empty(self.input_shape, np.float32)
        frame = self._point_at(frame, None)
        self.library.check(self.library.lib.tsm_stream_preprocess(self.handle, self._image, out.ctypes.data),
                           "preprocessing", self.handle)
        return out

    def logits(self):
        """The last step's logits, float32 [classes], a copy."""
        return np.ctypeslib.as_array(self.result.logits, (self.result.num_classes,)).copy()

    def scores(self):
        """The last step's softmax, float32 [classes], a copy."""
        return np.ctypeslib.as_array(self.result.scores, (self.result.num_classes,)).copy()

    def reset(self):
        self.library.check(self.library.lib.tsm_stream_reset(self.handle), "the reset", self.handle)

    def state(self):
        """All caches: {name: float32 [1, fold, h, w]}."""
        state = {}
        for index, (name, shape) in enumerate(self.library.caches.items()):
            values = np.empty(shape, np.float32)
            status = self.library.lib.tsm_stream_get_cache(self.handle, index, values.ctypes.data, values.size)
            self.library.check(status, "reading %s" % name, self.handle)
            state[name] = values
        return state

    def restore(self, state):
        """Put back what `state()` gave (names and shapes checked by the caller)."""
        for index, name in enumerate(self.library.caches):
            values = np.ascontiguousarray(state[name], np.float32)
            status = self.library.lib.tsm_stream_set_cache(self.handle, index, values.ctypes.data, values.size)
            self.library.check(status, "restoring %s" % name, self.handle)

    def profile(self):
        """Kernel calls of a stream made with profile=True: list of dicts, times in ns."""
        rows = []
        for index in range(self.library.info.num_calls):
            row = Profile()
            status = self.library.lib.tsm_stream_get_profile(self.handle, index, ct.byref(row))
            self.library.check(status, "the profile")
            rows.append({"name": row.name.decode(), "kind": row.kind.decode(), "macs": row.macs, "bytes": row.bytes,
                         "last_ns": row.last_ns, "total_ns": row.total_ns, "steps": row.steps})
        return rows

    def close(self):
        handle, self.handle = self.handle, None
        if handle:
            self.library.lib.tsm_stream_destroy(handle)

    def __del__(self):
        if getattr(self, "handle", None):
            self.close()


# --- from scores to events --------------------------------------------------------------------------------------------

Event = collections.namedtuple("Event", "kind label index start end score start_frame end_frame")
Event.__doc__ = """A gesture that began (kind "start", end None) or is over (kind "end").

start, end : seconds, of the first frame and of the first frame no longer. score : best smoothed score so far, 0..1.
start_frame, end_frame : the same moments as frame numbers.
"""


class GestureEvents(object):
    """Turns per-frame logits into gestures with a start, an end and a label.

    Each frame: the logits of the last `window` frames are summed and the greatest class is taken; an `ignore`d class
    counts as the label before it, a `merge`d one as the class it is merged into; the label changes only after it has
    stood for `hold` frames. A label outside `background` starts an event when its smoothed score reaches `on`, and ends
    it when the label changes or the score falls below `off`. window 12, hold 2, on = off = 0 is the smoothing of the
    published gesture demo.

    Parameters
    ----------
    classes : list of str
    config : dict or None
        The manifest's "events": window, hold, on, off, merge {index: index}, ignore [index], background [index].
    fps : float
        Frame rate for frames that come without a time.
    """

    def __init__(self, classes, config=None, fps=0.0):
        config = config or {}
        self.classes = list(classes)
        n = len(self.classes)
        try:
            self.window, self.hold = int(config.get("window", 1)), int(config.get("hold", 1))
            self.on, self.off = float(config.get("on", 0.0)), float(config.get("off", 0.0))
            self.merge = {int(a): int(b) for a, b in dict(config.get("merge") or {}).items()}
            self.ignore = frozenset(int(i) for i in config.get("ignore") or ())
            self.background = frozenset(int(i) for i in config.get("background") or ())
            indices = set(self.merge) | set(self.merge.values()) | self.ignore | self.background
            good = 1 <= self.window <= 10000 and 1 <= self.hold <= 10000 and 0 <= self.off <= self.on <= 1 and \
                all(0 <= i < n for i in indices)
        except (TypeError, ValueError, AttributeError, OverflowError):
            good = False
        if not good:
            raise DeviceError("the events' configuration cannot be used", str(config)[:300],
                              "window and hold 1 to 10000, 0 <= off <= on <= 1, merge, ignore, background: class numbers below %d" % n,
                              "correct \"events\" in manifest.json, or leave it out")
        self.period = 1.0 / fps if fps and fps > 0 else 1.0 / 30
        # A class is judged together with those that are merged into it.
        self._groups = {}
        for a, b in self.merge.items():
            self._groups.setdefault(b, []).append(a)
        self.reset()

    def reset(self):
        """Forget everything, without an event."""
        self._logits = collections.deque(maxlen=self.window)
        self.label_index = min(self.background) if self.background else -1
        self._held = self.hold  # the first change is allowed
        self.scores = np.zeros(len(self.classes), np.float32)  # smoothed
        self._open, self.frame, self.time = None, -1, None

    @property
    def label(self):
        """The smoothed label now; "" before the first frame."""
        return self.classes[self.label_index] if self.label_index >= 0 else ""

    @property
    def active(self):
        """The event that is going on, or None."""
        return self._open

    def update(self, result, time=None, frame=None):
        """Take one frame.

        Parameters
        ----------
        result : a stream's result, or its logits float [classes]
        time : float or None
            Seconds, never falling; None: one period after the last.
        frame : int or None
            Its number, for the events; None: one more than the last.

        Returns
        -------
        list of Event, most often empty
        """
        if getattr(result, "skipped", False):
            return []
        logits = np.asarray(getattr(result, "logits", result), np.float64).reshape(-1)
        events = []
        if getattr(result, "reset", False):
            events += self._end(self.time, self.frame)
            self._logits.clear()
        if time is None:
            time = 0.0 if self.time is None else self.time + self.period
        self.time, self.frame = time, self.frame + 1 if frame is None else frame
        self._logits.append(logits)
        mean = sum(self._logits) / len(self._logits)
        odds = np.exp(mean - mean.max())
        self.scores = (odds / odds.sum()).astype(np.float32)
        best = int(mean.argmax())
        if best in self.ignore and self.label_index >= 0:
            best = self.label_index
        best = self.merge.get(best, best)
        if best != self.label_index and self._held < self.hold:
            best = self.label_index
        self._held = self._held + 1 if best == self.label_index else 1
        self.label_index = best
        score = float(self.scores[best] + sum(self.scores[i] for i in self._groups.get(best, ())))
        if self._open and (self._open.index != best or score < self.off):
            events += self._end(time, self.frame)
        if self._open:
            self._open = self._open._replace(score=max(score, self._open.score))
        elif best not in self.background and score >= self.on:
            self._open = Event("start", self.classes[best], best, time, None, score, self.frame, None)
            events.append(self._open)
        return events

    def _end(self, time, frame):
        event, self._open = self._open, None
        return [event._replace(kind="end", end=time, end_frame=frame)] if event else []

    def finish(self):
        """The stream is over: close the event that is going on, one period after the last frame."""
        return self._end(None if self.time is None else self.time + self.period, self.frame + 1)


# --- the bundle -------------------------------------------------------------------------------------------------------

def _bad(problem, found, expected, do="copy the bundle again, or export it again"):
    return DeviceError(problem, found, expected, do)


def read_bundle(folder):
    """The manifest of the bundle in `folder`, and all its files checked: sizes and SHA-256.

    Raises
    ------
    DeviceError
    """
    path = os.path.join(folder, "manifest.json")
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_MANIFEST_BYTES:
        raise _bad("this is no bundle", "no usable manifest.json in %s" % folder, "the folder that tsm-export wrote")
    try:
        with io.open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise _bad("manifest.json cannot be read", error, "JSON") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise _bad("unknown kind of bundle", "schema %s" % str(found)[:80], "schema %d" % SCHEMA,
                   "use the runner of the same release")
    try:
        files = [(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in manifest["files"]]
        _check_parts(manifest)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _bad("manifest.json is incomplete", "%s: %s" % (type(error).__name__, error),
                   "files, input, stream, classes, caches") from error
    root = os.path.realpath(folder)
    for name, size, digest in files:
        try:
            _check_file(root, name, size, digest)
        except (OSError, ValueError) as error:  # ValueError: what no path may hold
            raise _bad("%s cannot be read" % ascii(name), error, "a file of %d bytes" % size) from error
    return manifest


def _check_parts(manifest):
    """Let what the rest relies on raise here, not there."""
    size = manifest["input"]
    if min(int(size["width"]), int(size["height"])) < 1 or not isinstance(manifest["classes"], list) or not manifest["classes"]:
        raise ValueError("empty input or classes")
    for key in ("mean", "std"):
        if len([float(value) for value in size[key]]) != 3:
            raise ValueError("input.%s is not three numbers" % key)
    float(manifest["stream"]["fps"])
    if not isinstance(manifest["caches"], list):
        raise ValueError("caches is no list")
    for cache in manifest["caches"]:
        if not isinstance(cache["name"], str) or len([int(n) for n in cache["shape"]]) != 4:
            raise ValueError("a cache without name and shape")


def _check_file(root, name, size, digest):
    full = os.path.join(root, *name.split("/"))
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or os.path.realpath(full) != full:
        raise _bad("a path leads out of the bundle", name, "a plain relative path, no link")
    if not os.path.isfile(full) or os.path.getsize(full) != size:
        found = "%d bytes" % os.path.getsize(full) if os.path.isfile(full) else "missing"
        raise _bad("%s is damaged" % name, found, "%d bytes" % size)
    checksum = hashlib.sha256()
    with open(full, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            checksum.update(block)
    if checksum.hexdigest() != digest:
        raise _bad("%s is damaged" % name, "sha256 " + checksum.hexdigest(), digest)


def contradictions(library, manifest):
    """What a library and a manifest say differently of the same network, in words; empty where they belong together."""
    info, size = library.info, manifest["input"]
    shapes = {cache["name"]: tuple(cache["shape"]) for cache in manifest["caches"]}
    crop = size.get("resize", "crop") == "crop"
    said = [  # what, in the library, in the manifest
        ("width", info.width, size["width"]), ("height", info.height, size["height"]),
        ("resize", "squash" if info.resize else "crop", size.get("resize", "crop")),
        ("shorter_side", info.shorter_side if crop else 0, size.get("shorter_side") if crop else 0),
        ("filter", "antialias" if info.antialias else "bilinear", size.get("filter", "antialias")),
        ("colour", "BGR" if info.colour else "RGB", size.get("colour", "RGB")),
        ("mean", list(info.mean), np.float32(size["mean"]).tolist()), ("std", list(info.std), np.float32(size["std"]).tolist()),
        ("precision", (info.precision or b"fp32").decode("utf-8"), manifest.get("precision", "fp32")),
        ("trained", bool(info.trained), bool(manifest.get("trained", False)))]
    words = ["%s is %s in the library, %s in manifest.json" % one for one in said if one[1] != one[2]]
    if library.classes != [str(name) for name in manifest["classes"]]:
        words.append("the library has %d other classes than manifest.json" % len(library.classes))
    if dict(library.caches) != shapes:
        words.append("the library has %d other caches than manifest.json" % len(library.caches))
    return words


def read_golden(path, manifest):
    """golden.npz as a dict of arrays, shapes checked against the manifest, nothing unpickled."""
    size = manifest["input"]
    shapes = {"inputs": (3, size["height"], size["width"]), "logits": (len(manifest["classes"]),)}
    for cache in manifest["caches"]:
        shapes[cache["name"]] = tuple(cache["shape"][1:])
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > MAX_GOLDEN_BYTES:
            raise _bad("golden.npz is too large", "%d bytes" % total, "at most %d" % MAX_GOLDEN_BYTES)
        with np.load(path, allow_pickle=False) as arrays:
            golden = {name: arrays[name] for name in list(shapes) + ["frames"]}
    except DeviceError:
        raise
    except Exception as error:  # zip, numpy and the decompressors have many types; all mean the same here
        raise _bad("golden.npz cannot be read", "%s: %s" % (type(error).__name__, error),
                   "arrays frames, inputs, logits and one for each cache") from error
    count = len(golden["logits"])
    frames = golden["frames"]
    if count < 1 or frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != count or frames.shape[3] != 3:
        raise _bad("golden.npz does not fit the manifest", "frames %s %s" % (frames.dtype, frames.shape),
                   "uint8 [%d, height, width, 3]" % count)
    for name, shape in shapes.items():
        if golden[name].shape != (count,) + shape or golden[name].dtype != np.float32:
            found = "%s: %s %s" % (name, golden[name].dtype, golden[name].shape)
            raise _bad("golden.npz does not fit the manifest", found, "float32 %s" % ((count,) + shape,))
    return golden


Result = collections.namedtuple("Result", "label index score scores logits reset skipped timings")
Result.__doc__ = """What a step gave.

scores : softmax of the logits, float32 [classes]. reset : the stream began anew before this frame.
skipped : the frame came before its time, the values are the last step's.
timings : milliseconds, {"preprocess_ms", "step_ms"}.
"""


def _check_threads(threads):
    if not 0 <= threads <= MAX_THREADS:
        raise DeviceError("the number of threads cannot be used", threads, "1 to %d, 0 for the model's own" % MAX_THREADS,
                          "leave it out")


class Stream(object):
    """One camera's state."""

    def __init__(self, model, colour, threads, max_gap_seconds, fps):
        if colour not in LibraryStream.FORMATS:
            raise DeviceError("unknown colour order", repr(colour), "RGB or BGR", "OpenCV's frames are BGR")
        _check_threads(threads)
        self.model = model
        self._stream = LibraryStream(model.library, colour, threads, max_gap_seconds, fps)
        self.threads = self._stream.threads
        self.preprocess, self.reset, self.state = self._stream.preprocess, self._stream.reset, self._stream.state
        self.close = self._stream.close

    def step(self, frame, timestamp=None):
        """Step with one frame, uint8 [height, width, 3]; timestamp in seconds or None. Returns a Result."""
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise DeviceError("this is no frame", getattr(frame, "shape", type(frame).__name__),
                              "numpy uint8 [height, width, 3]", "convert it first")
        if timestamp is not None and not (isinstance(timestamp, (int, float, np.number)) and abs(timestamp) < 9e9):
            raise DeviceError("this is no timestamp", repr(timestamp), "seconds, less than 9e9",
                              "divide milliseconds by 1000; leave it out where there is no clock")
        raw = self._stream.step(frame, timestamp)
        return Result(self.model.classes[raw.label_index], raw.label_index, raw.score, self._stream.scores(),
                      self._stream.logits(), bool(raw.reset), bool(raw.skipped),
                      {"preprocess_ms": raw.preprocess_ns / 1e6, "step_ms": raw.step_ns / 1e6})

    def step_tensor(self, x):
        """Step with float32 [1, 3, H, W], normalised; returns the logits [classes]."""
        shape = (1,) + self._stream.input_shape
        try:
            x = np.asarray(x, np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise DeviceError("this is no network input", error, "float32 %s" % (shape,), "pass an array of numbers") from error
        if x.shape != shape:
            raise DeviceError("this is no network input", x.shape, "float32 %s" % (shape,), "resize it first")
        self._stream.step_tensor(x)
        return self._stream.logits()

    def restore(self, state):
        """Put back what `state()` gave."""
        try:
            arrays = {name: np.asarray(values, np.float32) for name, values in dict(state).items()}
        except (TypeError, ValueError) as error:
            raise DeviceError("this is no state", error, "a dict of arrays", "restore what state() of a stream gave") from error
        shapes = {name: values.shape for name, values in arrays.items()}
        if shapes != dict(self.model.library.caches):
            raise DeviceError("this state belongs to another model", shapes, dict(self.model.library.caches),
                              "restore what state() of a stream of this model gave")
        self._stream.restore(arrays)


class Model(object):
    """A bundle, loaded. `stream()` as often as there are cameras."""

    def __init__(self, folder, threads=0):
        _check_threads(threads)
        self.folder, self.manifest = folder, read_bundle(folder)
        if LIBRARY not in [entry["path"] for entry in self.manifest["files"]]:
            raise DeviceError("the bundle holds no library that can be loaded", ", ".join(
                str(entry["path"]) for entry in self.manifest["files"]), LIBRARY, "export it for a Linux board or the host")
        self.library, self.threads = Library(os.path.join(folder, LIBRARY)), threads
        self.classes = [str(name) for name in self.manifest["classes"]]
        different = contradictions(self.library, self.manifest)
        if different:
            raise _bad("library and manifest do not belong together", "; ".join(different)[:300], "the same in both")

    def stream(self, colour="RGB", threads=None, max_gap_seconds=0.0, fps=0.0):
        """A new stream. 0: as the model says; negative max_gap_seconds or fps: never reset, never skip."""
        return Stream(self, colour, self.threads if threads is None else threads, max_gap_seconds, fps)

    def events(self, fps=0.0):
        """A GestureEvents with the manifest's configuration. fps: of the source; 0: not known, the model's."""
        return GestureEvents(self.classes, self.manifest.get("events"), fps or float(self.manifest["stream"]["fps"]))


def load(bundle=None, threads=0):
    """Load a bundle (a folder); by default the one this file lies in."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return Model(here if bundle is None else str(bundle), threads)


# --- verification and the command line --------------------------------------------------------------------------------

def compare(name, expected, got, relative=1e-4):
    """One row of a verification: largest difference against relative x max(1, largest expected value)."""
    good = np.isfinite(expected).all() and np.isfinite(got).all()
    tolerance = relative * max(1.0, float(np.max(np.abs(expected))))
    difference = float(np.max(np.abs(expected.astype(np.float64) - got))) if good else float("inf")
    return {"name": name, "status": "passed" if good and difference <= tolerance else "failed", "max_abs_diff": difference,
            "tolerance": tolerance}


def half_tolerance(manifest, name):
    """Allowed difference in half precision, relative to the largest value: what the export measured rounding to cost."""
    measured = manifest.get("verification")
    measured = measured.get("tolerances") if isinstance(measured, dict) else None
    value = measured.get(name, 2e-2) if isinstance(measured, dict) else 2e-2
    return min(max(float(value), 5e-3), 0.25) if isinstance(value, (int, float)) else 2e-2


def verify(model):
    """Replay golden.npz; returns rows of name, status, max_abs_diff, tolerance.

    The frames go the whole way (the runtime's own preprocessing and the step, for logits), and the recorded inputs
    through the step alone (logits, and every cache after every frame).
    """
    golden = read_golden(os.path.join(model.folder, "golden.npz"), model.manifest)
    half = model.manifest.get("precision") == "fp16"

    def allowed(name):
        return half_tolerance(model.manifest, name) if half else 1e-4

    stream = model.stream()
    inputs = np.stack([stream.preprocess(frame) for frame in golden["frames"]])
    rows = [compare("preprocessing", golden["inputs"], inputs)]
    logits, caches = [], {name: [] for name in model.library.caches}
    for x in golden["inputs"]:
        logits.append(stream.step_tensor(x[None]))
        for name, values in stream.state().items():
            caches[name].append(values[0])
    rows.append(compare("logits", golden["logits"], np.stack(logits), allowed("logits")))
    rows[-1]["argmax_flips"] = int((golden["logits"].argmax(1) != np.stack(logits).argmax(1)).sum())
    rows += [compare(name, golden[name], np.stack(values), allowed(name)) for name, values in caches.items()]
    stream.reset()
    frames = [stream.step(frame).logits for frame in golden["frames"]]
    # the network enlarges the resize's rounding, which has its own check: here only a wrong road is looked for
    rows.append(compare("logits from frames", golden["logits"], np.stack(frames), 10 * allowed("logits")))
    return rows


def bench(model, steps, threads=None):
    """Milliseconds of `steps` steps (float64 [steps]), after 10 to warm up."""
    stream = model.stream(threads=threads)
    shape = (1, 3, model.library.info.height, model.library.info.width)
    x = np.random.RandomState(0).normal(size=shape).astype(np.float32)
    times = []
    for _ in range(steps + 10):
        begin = time.perf_counter()
        stream.step_tensor(x)
        times.append((time.perf_counter() - begin) * 1e3)
    return np.array(times[10:]), stream.threads


def _main(argv=None):
    parser = argparse.ArgumentParser(description="Run a bundle on this board.", epilog=__doc__.split("\n\n")[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="folder of the bundle (default: the one this file lies in)")
    parser.add_argument("--verify", action="store_true", help="replay golden.npz and compare logits and caches")
    parser.add_argument("--bench", type=int, metavar="N", help="time N steps")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: the model's)")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    options = parser.parse_args(argv)
    if options.bench is not None and options.bench < 1:
        raise DeviceError("--bench cannot be used", options.bench, "1 or more", "for example --bench 200")
    model = load(options.bundle, options.threads)
    info = model.library.info
    report = {"name": model.manifest.get("name"), "trained": model.manifest.get("trained"),
              "machine": platform.machine()}
    say = (lambda text: None) if options.json else print
    say("%s: %d classes, input %dx%d, %d caches, %.1f MMAC a frame%s" % (
        model.manifest.get("name"), len(model.classes), info.width, info.height, info.num_caches, info.macs / 1e6,
        "" if model.manifest.get("trained") else "\nUNTRAINED: random weights, its labels mean nothing"))
    verdict, code = "", 0
    if options.verify:
        rows = verify(model)
        for row in rows:
            say("  %-7s %-44s max difference %.2e, allowed %.2e" % (
                row["status"], row["name"], row["max_abs_diff"], row["tolerance"]))
        failed = [row["name"] for row in rows if row["status"] != "passed"]
        code = 1 if failed else 0
        verdict = "FAILED %s" % ", ".join(failed) if failed else "PASSED this machine computes what the export recorded"
        report.update(checks=rows, status="failed" if failed else "passed")
    if options.bench:
        times, threads = bench(model, options.bench)
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        report["bench"] = {"threads": threads, "steps": options.bench, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
        say("  step: p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, %d thread%s, %d steps" % (
            p50, p90, p99, threads, "s" if threads != 1 else "", options.bench))
    if options.json:
        print(json.dumps(report, indent=2, sort_keys=True))
    elif verdict:
        print(verdict)
    return code


def main(argv=None, run=_main):
    """Run a command line and exit: 0 fine, 1 a check failed, 2 wrong usage or input."""
    try:
        code = run(argv)
    except DeviceError as error:
        sys.stderr.write("error: %s\n" % error)
        code = error.code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # who read us has seen enough: demo.py --events - | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
