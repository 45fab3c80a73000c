"""Instruction classes: words from GNU as (binutils 2.40), classes from the meaning of the mnemonics."""
import numpy as np
import pytest

from tsm_edge.benchmarks.arm.classify import CLASSES, classify

WORDS = [
    (0x4E22CC20, "fmla v0.4s, v1.4s, v2.4s", "fma", 4),
    (0x4FA21820, "fmla v0.4s, v1.4s, v2.s[3]", "fma", 4),
    (0x4E420C20, "fmla v0.8h, v1.8h, v2.8h", "fma", 8),
    (0x4F121820, "fmla v0.8h, v1.8h, v2.h[5]", "fma", 8),
    (0x0FA25020, "fmls v0.2s, v1.2s, v2.s[1]", "fma", 2),
    (0x4E22EC20, "fmlal v0.4s, v1.4h, v2.4h", "fma", 4),
    (0x6E22CC20, "fmlal2 v0.4s, v1.4h, v2.4h", "fma", 4),
    (0x4FB20020, "fmlal v0.4s, v1.4h, v2.h[3]", "fma", 4),
    (0x6FB28020, "fmlal2 v0.4s, v1.4h, v2.h[3]", "fma", 4),
    (0x4E829420, "sdot v0.4s, v1.16b, v2.16b", "fma", 16),
    (0x6FA2E020, "udot v0.4s, v1.16b, v2.4b[1]", "fma", 16),
    (0x4E22D420, "fadd v0.4s, v1.4s, v2.4s", "simd", 0),
    (0x4FA29020, "fmul v0.4s, v1.4s, v2.s[1]", "simd", 0),
    (0xAD410400, "ldp q0, q1, [x0, #32]", "simd_load", 0),
    (0xAC810400, "stp q0, q1, [x0], #32", "simd_store", 0),
    (0x3CE16800, "ldr q0, [x0, x1]", "simd_load", 0),
    (0x3D800400, "str q0, [x0, #16]", "simd_store", 0),
    (0x4C40A800, "ld1 {v0.4s, v1.4s}, [x0]", "simd_load", 0),
    (0x4C9F7800, "st1 {v0.4s}, [x0], #16", "simd_store", 0),
    (0x4D40C800, "ld1r {v0.4s}, [x0]", "simd_load", 0),
    (0xF9400020, "ldr x0, [x1]", "load", 0),
    (0xB9800020, "ldrsw x0, [x1]", "load", 0),
    (0xB9000420, "str w0, [x1, #4]", "store", 0),
    (0xA94007E0, "ldp x0, x1, [sp]", "load", 0),
    (0xA9BF07E0, "stp x0, x1, [sp, #-16]!", "store", 0),
    (0xF9802000, "prfm pldl1keep, [x0, #64]", "prefetch", 0),
    (0x54000041, "b.ne #8", "branch", 0),
    (0xD65F03C0, "ret", "branch", 0),
    (0x8B020020, "add x0, x1, x2", "integer", 0),
    (0xD2800020, "mov x0, #1", "integer", 0),
    (0x9B020C20, "madd x0, x1, x2, x3", "integer", 0),
    (0x3CDFD000, "ldur q0, [x0, #-3]", "simd_load", 0),
    (0xB81FD000, "stur w0, [x0, #-3]", "store", 0),
    (0xBD400400, "ldr s0, [x0, #4]", "simd_load", 0),
    (0xD503201F, "nop", "other", 0),
]


@pytest.mark.parametrize("word, text, expected, macs", WORDS, ids=[text for _, text, _, _ in WORDS])
def test_instruction_is_classified_by_its_meaning(word, text, expected, macs):
    classes, lanes = classify(np.array([word], np.uint32))
    assert (CLASSES[classes[0]], lanes[0]) == (expected, macs)


def test_every_class_but_none_is_exercised():
    assert {expected for _, _, expected, _ in WORDS} == set(CLASSES)
