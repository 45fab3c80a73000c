"""What a figure was measured on: processor, its features and clock policy, versions."""
from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_TELLING = ("avx2", "avx512f", "avx512_vnni", "fma", "asimd", "neon", "asimdhp", "asimddp", "fphp", "sve")


def _cpuinfo():
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def environment(packages=()):
    """A dict of plain values: cpu, features, cores, governor, load, system, python and package versions."""
    info = dict(line.split(":", 1) for line in _cpuinfo().splitlines() if ":" in line)
    info = {k.strip().lower(): v.strip() for k, v in info.items()}
    flags = (info.get("flags") or info.get("features") or "").split()
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": info.get("model name") or info.get("hardware") or platform.processor() or platform.machine(),
        "features": [f for f in _TELLING if f in flags],
        "cores": os.cpu_count(),
        "governor": governor.read_text(encoding="utf-8").strip() if governor.exists() else "not readable",
        "load": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }
