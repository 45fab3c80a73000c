"""A model library, called through tsm_edge.h with ctypes: needs nothing but numpy.

The structures and functions are the header's; a library of another version reads and writes no more than `size` bytes of
a structure.
"""
import ctypes as ct
import os
import platform
import struct
import sys

import numpy as np

from tsm_edge.errors import BundleError

LIBRARY = "libtsm_model.so"
API_VERSION = 1
MAX_STRIDE = 1 << 24  # bytes from a row to the next that the library takes

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
    return _MACHINES.get(number, f"machine {number}"), 32 if head[4] == 1 else 64


def this_machine():
    """Like `elf_machine`, of the running Python: a 32-bit system under a 64-bit kernel says what it really is."""
    found = elf_machine("/proc/self/exe")
    if found:
        return found
    name = platform.machine()
    return ("arm" if name.startswith("arm") and name != "arm64" else name), 64 if sys.maxsize > 2 ** 32 else 32


class Library:
    """A model library, opened, with the model it holds.

    Raises
    ------
    BundleError
        Made for another machine, needs a newer libc, or refused by its own checks.
    """

    def __init__(self, path):
        path = os.path.abspath(str(path))
        found, here = elf_machine(path), this_machine()
        if found != here:
            made = "{} for {}, {} bits".format(os.path.basename(path), *found) if found else f"{path} is no ELF library"
            raise BundleError("the library cannot run on this machine", found=made, expected="{}, {} bits".format(*here),
                              do="copy the bundle to its device, or export one for this machine: tsm-export --target host")
        try:
            self.lib = ct.CDLL(path)
        except OSError as error:
            raise BundleError("the library does not load", found=error, expected="a system with the libc that the bundle's README names",
                              do="export again for this board's system (tsm-export --list-targets)") from error
        try:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self.lib, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError as error:
            raise BundleError("this is no model library", found=error, expected="the functions of tsm_edge.h",
                              do="export the bundle again") from error
        if self.lib.tsm_api_version() != API_VERSION:
            raise BundleError("the library has another interface", found=f"version {self.lib.tsm_api_version()}",
                              expected=f"version {API_VERSION}", do="use the device folder of the same bundle")
        self.handle = None
        handle, message = _P(), ct.create_string_buffer(512)
        options = ModelOptions(message=ct.addressof(message), message_bytes=512)
        status = self.lib.tsm_model_create(ct.byref(options), ct.byref(handle))
        if status:
            words = message.value.decode("utf-8", "replace") or self.message(status)
            raise BundleError("the model cannot be created", found=words, expected="a CPU with the features the library was made for",
                              do="export again for this board (tsm-export --list-targets)")
        self.handle = handle
        self.info = ModelInfo()
        self.check(self.lib.tsm_model_get_info(handle, ct.byref(self.info)), "reading the model's description")
        self.classes = [self.lib.tsm_model_class_name(handle, i).decode("utf-8") for i in range(self.info.num_classes)]
        self.caches = {}  # name -> shape (1, channels, height, width)
        for index in range(self.info.num_caches):
            cache = CacheInfo()
            self.check(self.lib.tsm_model_get_cache_info(handle, index, ct.byref(cache)), "reading a cache's description")
            self.caches[cache.name.decode("utf-8")] = (1, cache.channels, cache.height, cache.width)

    def message(self, status):
        """The library's words for a status."""
        return (self.lib.tsm_status_message(status) or b"").decode("utf-8", "replace")

    def check(self, status, what, stream=None):
        """Raise BundleError unless `status` is fine."""
        if status:
            words = self.lib.tsm_stream_error(stream).decode("utf-8", "replace") if stream else ""
            raise BundleError(f"{what} failed", found=words or self.message(status), expected="success",
                              do="report this with the message")

    def __del__(self):
        if getattr(self, "handle", None):
            self.lib.tsm_model_destroy(self.handle)
            self.handle = None


class LibraryStream:
    """One stream of a Library: the C functions with numpy arrays. Buffers are made once; a step allocates no more than
    its results."""

    FORMATS = {"RGB": 0, "BGR": 1}

    def __init__(self, library, colour="RGB", threads=0, max_gap_seconds=0.0, fps=0.0, profile=False):
        self.handle, self.library = None, library  # the library outlives its streams
        options = StreamOptions(threads=threads, max_gap_seconds=max_gap_seconds, fps=fps, timings=1, profile=profile)
        handle = _P()
        library.check(library.lib.tsm_stream_create(library.handle, ct.byref(options), ct.byref(handle)), "creating a stream")
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
        status = self.library.lib.tsm_stream_preprocess(self.handle, self._image, out.ctypes.data)
        self.library.check(status, "preprocessing", self.handle)
        return out

    def logits(self):
        """The last step's logits, float32 [classes], a copy."""
        return np.ctypeslib.as_array(self.result.logits, (self.result.num_classes,)).copy()

    def scores(self):
        """The last step's softmax, float32 [classes], a copy."""
        return np.ctypeslib.as_array(self.result.scores, (self.result.num_classes,)).copy()

    def reset(self):
        """Zero caches, no clock."""
        self.library.check(self.library.lib.tsm_stream_reset(self.handle), "the reset", self.handle)

    def state(self):
        """All caches: {name: float32 [1, fold, h, w]}."""
        state = {}
        for index, (name, shape) in enumerate(self.library.caches.items()):
            values = np.empty(shape, np.float32)
            status = self.library.lib.tsm_stream_get_cache(self.handle, index, values.ctypes.data, values.size)
            self.library.check(status, f"reading {name}", self.handle)
            state[name] = values
        return state

    def restore(self, state):
        """Put back what `state()` gave (names and shapes checked by the caller)."""
        for index, name in enumerate(self.library.caches):
            values = np.ascontiguousarray(state[name], np.float32)
            status = self.library.lib.tsm_stream_set_cache(self.handle, index, values.ctypes.data, values.size)
            self.library.check(status, f"restoring {name}", self.handle)

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
        """Free it; nothing may be called afterwards."""
        handle, self.handle = self.handle, None
        if handle:
            self.library.lib.tsm_stream_destroy(handle)

    def __del__(self):
        if getattr(self, "handle", None):
            self.close()
