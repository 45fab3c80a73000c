"""What this machine is, as a target."""
from __future__ import annotations

import functools
import mmap
import os
import platform

from tsm_edge.errors import InputError

from .target import KB, Target


def _read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
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
                         expected="Linux on x86_64 or aarch64", do="export for a board (tsm-export --list-targets): tsm-demo and "
                         "tsm-verify run that bundle here by onnxruntime")
    name, version = platform.libc_ver()
    if hasattr(os, "sched_getaffinity"):
        threads = max(1, len(os.sched_getaffinity(0)))
    else:
        threads = os.cpu_count() or 1
    common = dict(name="host", os="linux", libc=f"glibc {version}" if name == "glibc" else "glibc 2.27", link="shared",
                  page_size=max(64 * KB if machine == "aarch64" else 4 * KB, mmap.PAGESIZE), threads=threads, emulator_cpu="",
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
