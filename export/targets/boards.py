"""Targets are data: one record for each board, phone or host."""
from __future__ import annotations

import functools
import os
import platform
from dataclasses import asdict, dataclass, fields, replace

from tsm_edge.cli import choose
from tsm_edge.errors import InputError


@dataclass(frozen=True)
class Target:
    """What the compiler, the linker and the kernels need to know of a device.

    Sizes are bytes; vector_bits and vector_registers describe the SIMD unit the kernels are written for.
    """

    name: str
    title: str
    triple: str  # LLVM triple, e.g. "aarch64-linux-gnu"
    cpu: str  # LLVM -mcpu of the cores the model runs on
    features: tuple[str, ...]  # LLVM -mattr, e.g. ("+neon",)
    os: str  # "linux" or "android"
    libc: str  # "glibc 2.27", "bionic 21", ...: the oldest one the library must load with
    link: str  # "shared" or "static"
    page_size: int  # the largest page of the device's kernels: segments of the library are aligned to it
    threads: int  # default: the big cores only
    vector_bits: int
    vector_registers: int
    fma_by_element: bool  # multiply by one lane of a vector (ARM), instead of a broadcast load
    l1_bytes: int  # data cache of one core
    l2_bytes: int  # the cache behind L1 that one core reaches (shared by a cluster where the cluster shares it)
    fp16: bool = False  # arithmetic, not only storage
    dotprod: bool = False
    deploy: str = ""  # how to copy and run, for the bundle's README; {folder} is the bundle's folder name
    emulator_cpu: str = "max"  # qemu -cpu with the same instruction set, or the nearest above it
    note: str = ""  # why these choices, where it is not obvious

    @property
    def lanes(self):
        """float32 lanes of one vector register."""
        return self.vector_bits // 32

    @property
    def arch(self):
        """Architecture as uname says it: "aarch64", "armv7l" or "x86_64"."""
        first = self.triple.split("-")[0]
        return "armv7l" if first.startswith("arm") else first

    def tvm_target(self):
        import tvm

        target = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "mattr": list(self.features)}
        if self.triple.startswith("arm"):
            target["mfloat-abi"] = "hard"
        return tvm.target.Target(target)

    def as_dict(self):
        """The record as JSON-ready values, for the manifest (without the deploy text)."""
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(self).items() if key not in ("deploy", "note")}

    @classmethod
    def from_dict(cls, record):
        """The inverse of `as_dict`; unknown keys are left out."""
        known = {f.name for f in fields(cls)}
        values = {key: tuple(value) if key == "features" else value for key, value in record.items() if key in known}
        return cls(**values)


_BOARD = """Copy the folder to the board and run it there; nothing has to be installed but what the system brings:

    scp -r {folder} USER@BOARD:
    ssh USER@BOARD
    python3 {folder}/device/tsm_device.py --verify          # replays golden.npz on this very board
    python3 {folder}/device/demo.py --source SOURCE
"""
_JETSON = _BOARD.replace("SOURCE", "csi://0") + """
A USB camera is `--source /dev/video0`. For full speed: `sudo nvpmodel -m 0 && sudo jetson_clocks`.
The system's own OpenCV has the GStreamer support that csi:// needs; OpenCV from pip has not.
"""
_PI = _BOARD.replace("SOURCE", "/dev/video0") + """
numpy and OpenCV come from the system: `sudo apt install python3-numpy python3-opencv`.
"""
_ANDROID = """The folder is a CMake package. In the app's CMakeLists.txt:

    add_subdirectory({folder} tsm_edge)
    target_link_libraries(your_native_library PRIVATE tsm_edge::model)

`#include <tsm_edge.h>`, and the model comes with the app's own native library (code must come with the app,
it may not be downloaded). Link the app for pages of 16 KB: `-Wl,-z,max-page-size=16384`, the default since NDK r28.
"""

_ANDROID_SHARED = """The library goes into the app, beside its own native code (it may not be downloaded later):

    cp {folder}/libtsm_model.so APP/src/main/jniLibs/arm64-v8a/
    cp {folder}/tsm_edge.h APP/src/main/cpp/

and in the app's CMakeLists.txt:

    add_library(tsm_model SHARED IMPORTED)
    set_target_properties(tsm_model PROPERTIES IMPORTED_LOCATION
      ${CMAKE_SOURCE_DIR}/../jniLibs/${ANDROID_ABI}/libtsm_model.so)
    target_link_libraries(your_native_library PRIVATE tsm_model)

It is aligned for pages of 16 KB and needs Android 5 (API level 21) or newer.
"""

_ARM64 = dict(triple="aarch64-linux-gnu", os="linux", link="shared", vector_bits=128, vector_registers=32,
              fma_by_element=True, page_size=4096)
_PHONE = dict(_ARM64, triple="aarch64-linux-android", os="android", libc="bionic 21", link="static", page_size=16384,
              deploy=_ANDROID)
_V80 = ("+neon",)
_V82 = ("+neon", "+fullfp16", "+dotprod")
KB = 1024
MB = 1024 * KB

BOARDS = (
    Target(
        name="jetson-nano", title="NVIDIA Jetson Nano (4x Cortex-A57)", cpu="cortex-a57", features=_V80,
        libc="glibc 2.27", threads=4, l1_bytes=32 * KB, l2_bytes=2 * MB, deploy=_JETSON, emulator_cpu="cortex-a57",
        note="JetPack 4.6 is Ubuntu 18.04: glibc 2.27, Python 3.6", **_ARM64,
    ),
    Target(
        name="jetson-tx2", title="NVIDIA Jetson TX2 (4x Cortex-A57 + 2x Denver2)", cpu="cortex-a57", features=_V80,
        libc="glibc 2.27", threads=4, l1_bytes=32 * KB, l2_bytes=2 * MB, deploy=_JETSON, emulator_cpu="cortex-a57",
        note="four A57; the two Denver2 cores have another speed and are off in some power modes", **_ARM64,
    ),
    Target(
        name="jetson-xavier-nx", title="NVIDIA Jetson Xavier NX (6x Carmel)", cpu="carmel",
        features=("+neon", "+fullfp16"), libc="glibc 2.27", threads=4, l1_bytes=64 * KB, l2_bytes=2 * MB, fp16=True,
        deploy=_JETSON, emulator_cpu="cortex-a76",
        note="glibc 2.27 of JetPack 4, so that one library serves JetPack 4 and 5; four of its six cores", **_ARM64,
    ),
    Target(
        name="jetson-orin-nano", title="NVIDIA Jetson Orin Nano (6x Cortex-A78AE)", cpu="cortex-a78ae", features=_V82,
        libc="glibc 2.31", threads=4, l1_bytes=64 * KB, l2_bytes=256 * KB, fp16=True, dotprod=True, deploy=_JETSON,
        emulator_cpu="cortex-a76",
        note="glibc 2.31 of JetPack 5, so that one library serves JetPack 5 and 6; four of its six cores", **_ARM64,
    ),
    Target(
        name="raspberry-pi-3", title="Raspberry Pi 3, 64-bit OS (4x Cortex-A53)", cpu="cortex-a53", features=_V80,
        libc="glibc 2.31", threads=4, l1_bytes=32 * KB, l2_bytes=512 * KB, deploy=_PI, emulator_cpu="cortex-a53",
        note="glibc 2.31 of Raspberry Pi OS bullseye; loads on bookworm too", **_ARM64,
    ),
    Target(
        name="raspberry-pi-4", title="Raspberry Pi 4, 64-bit OS (4x Cortex-A72)", cpu="cortex-a72", features=_V80,
        libc="glibc 2.31", threads=4, l1_bytes=32 * KB, l2_bytes=1 * MB, deploy=_PI, emulator_cpu="cortex-a72",
        note="glibc 2.31 of Raspberry Pi OS bullseye; loads on bookworm too", **_ARM64,
    ),
    Target(
        name="raspberry-pi-5", title="Raspberry Pi 5 (4x Cortex-A76)", cpu="cortex-a76", features=_V82,
        libc="glibc 2.36", threads=4, l1_bytes=64 * KB, l2_bytes=512 * KB, fp16=True, dotprod=True, deploy=_PI,
        emulator_cpu="cortex-a76", note="bookworm is its first system; its default kernel has pages of 16 KB",
        **{**_ARM64, "page_size": 16384},
    ),
    Target(
        name="raspberry-pi-32bit", title="Raspberry Pi 2/3/4, 32-bit OS (ARMv7, hard float, NEON)",
        triple="armv7a-linux-gnueabihf", cpu="cortex-a7", features=("+neon", "+vfp4"), os="linux", libc="glibc 2.31",
        link="shared", page_size=4096, threads=4, vector_bits=128, vector_registers=16, fma_by_element=False,
        l1_bytes=32 * KB, l2_bytes=512 * KB, deploy=_PI, emulator_cpu="cortex-a7",
        note="the Cortex-A7 of the Pi 2 is the oldest with fused multiply-add; no fused multiply by one lane in ARMv7",
    ),
    Target(
        name="android-arm64", title="any 64-bit ARM Android phone (ARMv8.0)", cpu="generic", features=_V80, threads=4,
        l1_bytes=32 * KB, l2_bytes=512 * KB, emulator_cpu="cortex-a53", **_PHONE,
    ),
    Target(
        name="android-arm64-dotprod", title="Android phones with Cortex-A75/A55 or newer cores (2018 on)",
        cpu="cortex-a75", features=_V82, threads=4, l1_bytes=64 * KB, l2_bytes=256 * KB, fp16=True, dotprod=True,
        emulator_cpu="cortex-a76", note="asks for half precision and dot product instructions; check before loading",
        **_PHONE,
    ),
    Target(
        name="galaxy-note8", title="Samsung Galaxy Note8 (Exynos 8895 or Snapdragon 835)", cpu="cortex-a73",
        features=_V80, threads=4, l1_bytes=32 * KB, l2_bytes=2 * MB, emulator_cpu="cortex-a72",
        note="one library for both chips: four big cores, ARMv8.0", **_PHONE,
    ),
    Target(
        name="pixel-1", title="Google Pixel (Snapdragon 821, 2+2 Kryo)", cpu="kryo", features=_V80, threads=2,
        l1_bytes=24 * KB, l2_bytes=1 * MB, emulator_cpu="cortex-a57", note="the two fast cores", **_PHONE,
    ),
)


def _read(path, default=""):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return default


def _cpuinfo(key):
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == key:
            return value.split()
    return []


def _cache_bytes(level, default):
    base = "/sys/devices/system/cpu/cpu0/cache"
    for index in range(8):
        if _read(f"{base}/index{index}/level").strip() == str(level) and \
                _read(f"{base}/index{index}/type").strip() in ("Data", "Unified"):
            size = _read(f"{base}/index{index}/size").strip()
            if size[-1:] == "K" and size[:-1].isdigit():
                return int(size[:-1]) * KB
    return default


@functools.lru_cache(maxsize=1)
def detect_host():
    """The target of the machine this runs on (x86-64 or aarch64 Linux).

    Instruction sets are taken in the usual levels (x86-64-v2/v3/v4) and not as the exact model, so that the same
    library comes out on like machines.

    Raises
    ------
    InputError
        Any other operating system or processor.
    """
    machine, system = platform.machine(), platform.system()
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise InputError("no host target for this machine", found=f"{system} {machine}",
                         expected="Linux on x86_64 or aarch64", do="export on such a machine, or pick a board's target")
    name, version = platform.libc_ver()
    if hasattr(os, "sched_getaffinity"):
        threads = max(1, len(os.sched_getaffinity(0)))
    else:
        threads = os.cpu_count() or 1
    common = dict(name="host", os="linux", libc=f"glibc {version}" if name == "glibc" else "glibc 2.27", link="shared",
                  page_size=max(4096, os.sysconf("SC_PAGE_SIZE")), threads=threads, emulator_cpu="",
                  deploy="It runs on this machine:\n\n    tsm-verify {folder}\n    tsm-demo {folder} --source 0\n")
    if machine == "aarch64":
        flags = set(_cpuinfo("features"))
        features = ["+neon"]
        fp16, dotprod = "asimdhp" in flags, "asimddp" in flags
        features += ["+fullfp16"] * fp16 + ["+dotprod"] * dotprod
        return Target(title="this machine (aarch64)", triple="aarch64-linux-gnu", cpu="generic",
                      features=tuple(features), vector_bits=128, vector_registers=32, fma_by_element=True, fp16=fp16,
                      dotprod=dotprod, l1_bytes=_cache_bytes(1, 32 * KB), l2_bytes=_cache_bytes(2, 512 * KB), **common)
    flags = set(_cpuinfo("flags"))
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma"} <= flags:
        # LLVM's level v4 prefers 256-bit vectors; the kernels are written for the full 512 bits
        cpu, features, bits, registers, label = "x86-64-v4", ("-prefer-256-bit",), 512, 32, "x86-64, AVX-512"
    elif {"avx2", "fma"} <= flags:
        cpu, features, bits, registers, label = "x86-64-v3", (), 256, 16, "x86-64, AVX2"
    elif {"sse4_2", "popcnt"} <= flags:
        cpu, features, bits, registers, label = "x86-64-v2", (), 128, 16, "x86-64, SSE4.2"
    else:
        cpu, features, bits, registers, label = "x86-64", (), 128, 16, "x86-64, SSE2"
    return Target(title=f"this machine ({label})", triple="x86_64-linux-gnu", cpu=cpu, features=features,
                  vector_bits=bits, vector_registers=registers, fma_by_element=False,
                  l1_bytes=_cache_bytes(1, 32 * KB), l2_bytes=_cache_bytes(2, 512 * KB), **common)


def _all_targets():
    targets = {t.name: t for t in BOARDS}
    try:
        targets["host"] = detect_host()
    except InputError:
        pass  # boards can still be exported for
    return targets


TARGETS = _all_targets()
JETSON_NANO = TARGETS["jetson-nano"]


def get_target(name):
    """The target called `name` (or `name` itself when it is a Target).

    For Android, `ANDROID_NDK_HOME` in the environment turns the static archive into a shared library.

    Raises
    ------
    InputError
        Unknown name; the nearest one is suggested.
    """
    if isinstance(name, Target):
        return name
    if name == "host":
        return detect_host()
    target = TARGETS[choose(name, TARGETS, "target")]
    if target.os == "android" and os.environ.get("ANDROID_NDK_HOME"):
        target = replace(target, link="shared", deploy=_ANDROID_SHARED)
    return target


def rows():
    """(header, rows) of the table that `tsm-export --list-targets` prints."""
    header = ("target", "device", "cpu", "features", "libc", "threads", "pages", "form")
    form = {"shared": "libtsm_model.so", "static": "libtsm_model.a + CMake"}
    return header, [
        (t.name, t.title, t.cpu, " ".join(t.features), t.libc, str(t.threads), f"{t.page_size // KB} KB",
         form[t.link]) for t in TARGETS.values()
    ]
