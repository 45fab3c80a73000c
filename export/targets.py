"""Targets are data: one record for each board, phone or host."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What the compiler and the kernels need to know of a device.

    Sizes are bytes, vector_bits and vector_registers describe the SIMD unit the kernels are written for.
    """

    name: str
    title: str
    triple: str  # LLVM triple, e.g. "aarch64-linux-gnu"
    cpu: str  # LLVM -mcpu of the cores the model runs on
    features: tuple[str, ...]  # LLVM -mattr, e.g. ("+neon",)
    os: str  # "linux" or "android"
    libc: str  # "glibc 2.27", "bionic 21", ...
    link: str  # "shared" or "static"
    page_size: int
    threads: int
    vector_bits: int
    vector_registers: int
    fma_by_element: bool  # multiply by one lane of a vector (ARM), instead of a broadcast load
    l1_bytes: int
    l2_bytes: int  # per core share of the cache behind L1
    fp16: bool = False  # arithmetic, not only storage
    dotprod: bool = False
    deploy: str = ""  # how to copy and run, for the bundle's README

    @property
    def lanes(self):
        """float32 lanes of one vector register."""
        return self.vector_bits // 32

    def tvm_target(self):
        import tvm

        target = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "mattr": list(self.features)}
        if self.triple.startswith("arm"):
            target["mfloat-abi"] = "hard"
        return tvm.target.Target(target)


JETSON_NANO = Target(
    name="jetson-nano", title="NVIDIA Jetson Nano (4x Cortex-A57)", triple="aarch64-linux-gnu", cpu="cortex-a57",
    features=("+neon",), os="linux", libc="glibc 2.27", link="shared", page_size=4096, threads=4, vector_bits=128,
    vector_registers=32, fma_by_element=True, l1_bytes=32768, l2_bytes=2097152,
)
TARGETS = {t.name: t for t in (JETSON_NANO,)}
