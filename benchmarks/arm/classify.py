"""AArch64 instruction words into the classes that matter for a convolution's inner loop.

Encodings: Arm Architecture Reference Manual for A-profile (DDI 0487), chapter C4, "A64 instruction set encoding".
"""
from __future__ import annotations

import numpy as np

CLASSES = ("fma", "simd", "simd_load", "simd_store", "load", "store", "prefetch", "branch", "integer", "other")

# (mask, value, multiply-accumulates of one instruction with a full 128-bit register)
_FMA = (
    (0xBFA0FC00, 0x0E20CC00, 4),  # FMLA/FMLS vector, single and double
    (0xBF80B400, 0x0F801000, 4),  # FMLA/FMLS by element, single and double
    (0xBF60FC00, 0x0E400C00, 8),  # FMLA/FMLS vector, half
    (0xBFC0B400, 0x0F001000, 8),  # FMLA/FMLS by element, half
    (0xBF60FC00, 0x0E20EC00, 4),  # FMLAL vector
    (0xBF60FC00, 0x2E20CC00, 4),  # FMLAL2 vector
    (0xBFC0B400, 0x0F800000, 4),  # FMLAL by element
    (0xBFC0B400, 0x2F808000, 4),  # FMLAL2 by element
    (0x9FA0FC00, 0x0E809400, 16),  # SDOT/UDOT vector
    (0x9FC0F400, 0x0F80E000, 16),  # SDOT/UDOT by element
)


def classify(words):
    """Class index (into CLASSES) and multiply-accumulates of each instruction.

    Parameters
    ----------
    words : uint32 array [n]

    Returns
    -------
    classes : int64 array [n]
    macs : int64 array [n]
        0 for anything that is not a SIMD multiply-accumulate; half for a 64-bit register.
    """
    w = np.asarray(words, np.uint32)
    index = {name: i for i, name in enumerate(CLASSES)}
    classes = np.full(w.shape, index["other"], np.int64)
    macs = np.zeros(w.shape, np.int64)
    group = (w >> 25) & 15
    classes[(group & 14) == 8] = index["integer"]
    classes[(group & 7) == 5] = index["integer"]
    branch = (group & 14) == 10
    classes[branch & ((w >> 25) != 0x6A)] = index["branch"]  # 0xD4, 0xD5: exceptions, hints, system registers

    memory = (group & 5) == 4
    simd = (w >> 26) & 1 == 1
    structure = (w & 0xBE000000) == 0x0C000000
    pair = (w & 0x3A000000) == 0x28000000
    exclusive = (w & 0x3F000000) == 0x08000000
    literal = (w & 0x3B000000) == 0x18000000
    opc, size = (w >> 22) & 3, w >> 30
    bit22 = (opc & 1) == 1
    is_load = np.where(structure | pair | exclusive, bit22, np.where(literal, True, np.where(simd, bit22, opc != 0)))
    prefetch = memory & ~simd & ~structure & ((literal & (size == 3)) | ((w & 0x3A000000) == 0x38000000) & (size == 3) & (opc == 2))
    simd_memory = simd | structure
    classes[memory & is_load & ~simd_memory] = index["load"]
    classes[memory & ~is_load & ~simd_memory] = index["store"]
    classes[memory & is_load & simd_memory] = index["simd_load"]
    classes[memory & ~is_load & simd_memory] = index["simd_store"]
    classes[prefetch] = index["prefetch"]

    vector = (group & 7) == 7
    classes[vector] = index["simd"]
    for mask, value, lanes in _FMA:
        hit = vector & ((w & np.uint32(mask)) == np.uint32(value))
        classes[hit] = index["fma"]
        macs[hit] = np.where((w[hit] >> 30) & 1 == 1, lanes, lanes // 2)
    return classes, macs
