"""Targets are data that the compiler accepts, and unknown names are refused with the nearest one."""
import dataclasses
import json

import pytest

from tsm_edge.errors import InputError
from tsm_edge.export.targets import boards, host
from tsm_edge.export.targets.boards import TARGETS, get_target
from tsm_edge.export.targets.target import Target

PROMISED = ("jetson-nano jetson-tx2 jetson-xavier-nx jetson-orin-nano raspberry-pi-3 raspberry-pi-4 raspberry-pi-5 "
            "raspberry-pi-32bit android-arm64 android-arm64-dotprod galaxy-note8 pixel-1 host").split()


def test_every_promised_target_is_there():
    assert set(PROMISED) == set(TARGETS)


@pytest.mark.parametrize("name", PROMISED)
def test_a_target_is_complete_and_survives_json(name):
    target = TARGETS[name]
    assert target.title and target.deploy and "{folder}" in target.deploy
    assert target.vector_bits % 32 == 0 and target.threads >= 1 and target.l1_bytes < target.l2_bytes
    assert target.page_size in (4096, 16384, 65536)
    again = Target.from_dict(json.loads(json.dumps(target.as_dict())))
    assert dataclasses.replace(again, deploy=target.deploy, note=target.note) == target


@pytest.mark.parametrize("name", PROMISED)
def test_the_compiler_makes_code_for_the_target(name):
    tvm = pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
    from tvm import te
    target = TARGETS[name]
    a, b = te.placeholder((64,), name="a"), te.placeholder((64,), name="b")
    c = te.compute((64,), lambda i: a[i] * b[i] + a[i], name="c")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b, c]).with_attr("global_symbol", "tiny"))
    loop, = schedule.get_loops(schedule.get_sblock("c"))
    schedule.vectorize(schedule.split(loop, [None, target.lanes])[1])
    assembly = tvm.compile(schedule.mod, target=target.tvm_target()).mod.inspect_source("asm")
    assert "__tvm_ffi_tiny" in assembly
    vectors = {"x86_64": ("zmm", "ymm", "xmm"), "aarch64": (".4s",), "armv7l": (".f32",)}[target.arch]
    assert any(word in assembly for word in vectors)


def test_arm_features_match_what_the_compiler_believes():
    pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
    for target in boards.BOARDS:
        attrs = target.tvm_target().attrs
        if target.arch == "aarch64":
            assert bool(attrs["feature.has_dotprod"]) == target.dotprod, target.name
            assert bool(attrs["feature.has_fp16_simd"]) == target.fp16, target.name


def test_libraries_are_aligned_for_the_largest_pages_that_kernels_have():
    assert all(t.page_size == 16384 for t in boards.BOARDS if t.os == "android")  # of Android's kernels, since Android 15
    assert all(t.page_size == 65536 for t in boards.BOARDS if t.os == "linux" and t.arch == "aarch64")


def test_so_are_those_for_this_machine_where_it_is_a_64_bit_arm(monkeypatch):
    monkeypatch.setattr(host.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    host.detect_host.cache_clear()
    try:
        assert host.detect_host().page_size == 65536
    finally:
        host.detect_host.cache_clear()


def test_an_unknown_target_is_refused_with_the_nearest_name():
    with pytest.raises(InputError) as error:
        get_target("jetson-nanoo")
    assert "'jetson-nanoo'" in error.value.found
    assert "raspberry-pi-4" in error.value.expected
    assert "did you mean 'jetson-nano'?" in error.value.do


def test_an_ndk_turns_the_android_archive_into_a_shared_library(monkeypatch):
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    assert get_target("android-arm64").link == "static"
    monkeypatch.setenv("ANDROID_NDK_HOME", "/somewhere")
    assert get_target("android-arm64").link == "shared"


def test_a_foreign_host_is_refused_in_plain_words(monkeypatch):
    monkeypatch.setattr(host.platform, "system", lambda: "Plan9")
    host.detect_host.cache_clear()
    try:
        with pytest.raises(InputError) as error:
            host.detect_host()
    finally:
        host.detect_host.cache_clear()
    assert "Plan9" in error.value.found and "Linux" in error.value.expected and "board" in error.value.do
