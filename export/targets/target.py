"""What the compiler, the linker and the kernels need to know of a device."""
from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, fields


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

    def runs_here(self):
        """Whether this machine runs the target's programs as they are."""
        return (self.os, self.arch) == (platform.system().lower(), platform.machine())

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


KB = 1024
MB = 1024 * KB
