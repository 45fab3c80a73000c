"""The compiled library, called through tsm_edge.h with ctypes: needs nothing but numpy."""
import os
import platform
import shutil
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np

from tsm_edge.errors import BundleError
from tsm_edge.runtimes.bundle import contradictions
from tsm_edge.runtimes.interface import Model, Result, Stream, check_timestamp
from tsm_edge.runtimes.library import LIBRARY, Library, LibraryStream, elf_machine, this_machine
from tsm_edge.runtimes.preprocess import check_frame

# What /proc/cpuinfo must list for the x86-64 levels that a host's library may be compiled for. (ARM libraries check
# themselves when a model is created.)
_LEVELS = {"x86-64-v2": {"sse4_2", "popcnt"}, "x86-64-v3": {"avx2", "fma", "bmi2"},
           "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}}
_loaded = {}  # type: dict[str, str]  # real path -> sha256 of the library that this process has mapped from there
_libraries = {}  # type: dict[str, Library]  # sha256 -> Library: what is mapped stays mapped, so all bundles with the same library share one
_lock = threading.RLock()


def _cpu_flags():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return None


def unfit(bundle, name=LIBRARY):
    """Why one of the bundle's libraries cannot run in this process, in words; "" when nothing speaks against it.

    Only looks: neither loads nor runs anything of the bundle.

    Raises
    ------
    BundleError
        The library is damaged or missing.
    """
    if name not in bundle:
        return f"the bundle holds no {name}"
    found, here = elf_machine(bundle.file(name)), this_machine()
    if found is None:
        return f"{name} is no ELF library"
    if platform.system() not in ("Linux", "Android"):
        return f"the library is for Linux; this is {platform.system()}"
    if found != here:
        return "the library is for {}, {} bits; this is {}, {} bits".format(*found, *here)
    target = bundle.manifest.get("target") or {}
    on_android = hasattr(os, "getandroidapilevel") or "ANDROID_ROOT" in os.environ
    if "android" in str(target.get("triple", "")) and not on_android:
        return "the library is for Android"
    needed = _LEVELS.get(target.get("cpu"), set()) if found[0] == "x86_64" else set()
    flags = _cpu_flags() if needed else None
    if flags is not None and not needed <= flags:
        return f"the library needs {', '.join(sorted(needed - flags))}, which this CPU lacks"
    return ""


def mappable(path, digest):
    """A path that the loader maps afresh. The loader knows libraries by their path: once a path is mapped, a new export
    to the same place would silently give the old code again, so that one gets a private copy."""
    real = os.path.realpath(path)
    with _lock:
        if _loaded.setdefault(real, digest) == digest:
            return real
    folder = tempfile.mkdtemp(prefix="tsm-library-")
    return shutil.copy(real, Path(folder) / path.name)


def open_library(bundle):
    """The bundle's library, loaded once in a process, from wherever the same file comes.

    Raises
    ------
    BundleError
    """
    path, digest = bundle.file(LIBRARY), bundle.files[LIBRARY][1]
    with _lock:
        if digest not in _libraries:
            path = Path(mappable(path, digest))
            try:
                _libraries[digest] = Library(path)
            finally:
                if path.parent.name.startswith("tsm-library-"):
                    shutil.rmtree(path.parent, ignore_errors=True)  # the mapping stays
        return _libraries[digest]


class NativeModel(Model):
    """A bundle's libtsm_model.so.

    Raises
    ------
    BundleError
        The library is for another machine, does not load, or is not the one the manifest describes.
    """

    engine = "native"

    def __init__(self, bundle, threads=None):
        super().__init__(bundle.manifest)
        reason = unfit(bundle)
        if reason:
            raise BundleError("the bundle's library cannot run here", found=reason,
                              expected=f"a library for {platform.machine()} {platform.system()}",
                              do="pass engine='onnxruntime', or export for this machine: tsm-export --target host")
        self._library = open_library(bundle)
        different = contradictions(self._library, self.manifest)
        if different:
            raise BundleError("library and manifest do not belong together", found="; ".join(different)[:300],
                              expected="the same in both", do="export the bundle again")
        self.bundle, self.threads = bundle, threads

    def _stream(self, colour, max_gap_seconds, fps):
        return NativeStream(self, colour, max_gap_seconds, fps)


class NativeStream(Stream):
    """A tsm_stream of the C runtime."""

    def __init__(self, model, colour, max_gap_seconds, fps, profile=False):
        super().__init__(model)
        # The C options take 0 for "the model's own" and a negative value for "never".
        self._native = LibraryStream(model._library, colour, model.threads or 0, max_gap_seconds or -1.0, fps or -1.0, profile)
        self.threads = self._native.threads
        self._finalizer = weakref.finalize(self, self._native.close)

    def step(self, frame, timestamp=None):
        check_frame(frame)
        check_timestamp(timestamp)
        raw = self._open().step(frame, timestamp)
        native = self._native
        return Result(self.model.classes[raw.label_index], raw.label_index, raw.score, native.scores(), native.logits(),
                      bool(raw.reset), bool(raw.skipped),
                      {"preprocess_ms": raw.preprocess_ns / 1e6, "step_ms": raw.step_ns / 1e6})

    def step_tensor(self, x):
        self._open().step_tensor(self._check_tensor(x))
        return self._native.logits()

    def preprocess(self, frame):
        """uint8 [h, w, 3] -> float32 [3, H, W] by the C runtime; the state stays as it is."""
        check_frame(frame)
        return self._open().preprocess(np.asarray(frame))

    def reset(self):
        self._open().reset()

    def state(self):
        return self._open().state()

    def restore(self, state):
        self._open().restore(self._check_state(state))

    def profile(self):
        """Kernel calls with their times, of a stream that was made with profile=True."""
        return self._open().profile()

    def close(self):
        self._finalizer()

    def _open(self):
        if self._native.handle is None:
            raise BundleError("this stream is closed", found="a call after close()", expected="an open stream",
                              do="make a new one: model.stream()")
        return self._native
