"""The counting plugin on a program whose instructions can be counted by hand."""
import shutil
import subprocess

import pytest

from tsm_edge.benchmarks.arm import count

PROGRAM = """
    .macro mark what
    mov x8, #167
    movz x0, #0x534d
    movk x0, #0x54, lsl #16
    mov x1, #\\what
    svc #0
    .endm
    .global _start
_start:
    adr x9, data
    mark 1
    mov x2, #1000
1:  ldr q1, [x9]
    fmla v0.4s, v1.4s, v1.s[0]
    fmla v2.4s, v1.4s, v1.4s
    subs x2, x2, #1
    b.ne 1b
    mov x8, #113
    mov x0, #1
    adr x1, time
    svc #0
    mov x2, #10
2:  add x3, x3, x2
    str x3, [x9]
    subs x2, x2, #1
    b.ne 2b
    mark 2
    mov x2, #500
3:  fmla v0.4s, v1.4s, v1.4s
    subs x2, x2, #1
    b.ne 3b
    mov x8, #93
    mov x0, #0
    svc #0
    .data
    .balign 64
data: .space 64
time: .space 16
"""


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    for tool, package in (("qemu-aarch64", "qemu-user"), ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("cc", "gcc")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (apt-get install {package})")
    work = tmp_path_factory.mktemp("count")
    (work / "program.s").write_text(PROGRAM)
    subprocess.run(["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-o", work / "program", work / "program.s"], check=True)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", work / "counter.so", count.HERE / "counter.c"], check=True)
    plugin = f"{work}/counter.so,out={work}/out,l1=32768:2,l2=2097152:16"
    subprocess.run(["qemu-aarch64", "-plugin", plugin, work / "program"], check=True)
    return count._parse((work / "out").read_text(), "12 34 pointwise a name with blanks\n", 1)


def test_instructions_of_the_marked_region_are_counted_exactly(counts):
    first, second = (counts.by_class(counts.segment(s)) for s in (0, 1))
    assert (first["fma"], first["simd_load"], first["branch"]) == (2000, 1000, 1000)
    assert first["simd_macs"] == 8000
    assert (second["store"], second["fma"], second["branch"]) == (10, 0, 10)


def test_nothing_outside_the_marks_is_counted(counts):
    assert counts.by_class()["fma"] == 2000


def test_accesses_and_misses_of_the_caches_follow_from_the_addresses(counts):
    l1, l1_misses, l2, l2_misses = counts.cache(0)
    assert (l1, l1_misses, l2, l2_misses) == (2000, 1, 1, 1)  # QEMU takes 16 bytes as two accesses of 8
    assert counts.cache(1)[:2] == (10, 0)


def test_kernel_calls_are_read_with_their_names(counts):
    call = counts.calls[0]
    assert (call.macs, call.bytes, call.kind, call.name) == (12, 34, "pointwise", "a name with blanks")


def test_cycle_estimate_of_a_chain_of_multiply_adds_is_its_latency(counts):
    cycles = count.estimate_cycles([b for b in counts.blocks if b.runs > 500], "cortex-a57", 1)
    if cycles is None:
        pytest.skip("llvm-mca is missing (apt-get install llvm-19)")
    # each of the two accumulators waits for its last multiply-add: 4 (accumulator forwarding) to 10 cycles on a Cortex-A57
    assert 3000 < cycles < 11000


def test_other_engines_stand_beside_the_network_that_they_were_counted_on():
    from tsm_edge.benchmarks.arm.__main__ import recorded_peers

    about, mobile = recorded_peers("cortex-a57", "fp32", 299.5e6)
    assert "wheel" in about and {peer["name"]: peer["instructions"] for peer in mobile}["ncnn"] == 101.3e6
    assert [peer["instructions"] > 9e8 for peer in recorded_peers("cortex-a57", "fp32", 4087.2e6)[1]] == [True, True]
    assert recorded_peers("cortex-a57", "fp32", 10.3e6)[1] == recorded_peers("cortex-a53", "fp32", 299.5e6)[1] == []


@pytest.mark.parametrize("arguments, words", [
    (["--plot", "x.foo"], "--plot.*x.foo.*.png or .svg"), (["--plot", "/nonexistent/x.png"], "--plot.*cannot be written"),
    (["--plot", "."], "--plot"), (["--bytes-per-cycle", "0"], "--bytes-per-cycle"), (["--bytes-per-cycle", "nan"], "--bytes-per-cycle"),
    (["--steps", "0"], "--steps")])
def test_what_cannot_be_used_is_refused_before_anything_is_counted(arguments, words):
    from tsm_edge.benchmarks.arm.__main__ import _main
    from tsm_edge.errors import InputError

    with pytest.raises(InputError, match="(?s)" + words):
        _main(["no-such-bundle", *arguments])
