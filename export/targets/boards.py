"""Targets are data: one record for each board, phone or host."""
from __future__ import annotations

import os
from dataclasses import replace

from tsm_edge.cli import choose
from tsm_edge.errors import InputError

from .host import detect_host
from .target import KB, MB, Target

_BOARD = """Copy the folder to the board and run it there; nothing has to be installed but what the system brings:

    scp -r {folder} USER@BOARD:
    ssh USER@BOARD
    python3 {folder}/device/tsm_edge.pyz verify             # replays golden.npz on this very board
    python3 {folder}/device/tsm_edge.pyz demo --source SOURCE
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
              fma_by_element=True, page_size=64 * KB)  # kernels of 64-bit ARM have pages of 4, 16 or 64 KB, and bundles are copied about
_PHONE = dict(_ARM64, triple="aarch64-linux-android", os="android", libc="bionic 21", link="static", page_size=16 * KB,
              deploy=_ANDROID)
_V80 = ("+neon",)
_V82 = ("+neon", "+fullfp16", "+dotprod")

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
        **_ARM64,
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


def _all_targets():
    targets = {t.name: t for t in BOARDS}
    try:
        targets["host"] = detect_host()
    except InputError:
        pass  # boards can still be exported for
    return targets


TARGETS = _all_targets()


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
