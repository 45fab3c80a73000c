"""A library is run as what it is: here, under an emulator, or not at all, and then that is what is said."""
import dataclasses

import numpy as np
import pytest

from tsm_edge.export.proof import on_target
from tsm_edge.export.proof.tolerances import FAILED, NOT_EXECUTED, PASSED
from tsm_edge.export.targets.boards import TARGETS


@pytest.fixture
def run(tiny, tiny_inputs, tmp_path):
    return lambda library, target, progress=None: on_target.check_library(
        library, target, tiny.manifest, tiny_inputs, tiny.trace(tiny_inputs), tmp_path / "work", progress=progress)


def need(target):
    if on_target.emulator(target)[0] is None:
        pytest.skip(on_target.emulator(target)[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_host_library_is_run_and_measured(run, make_tiny_library, threads):
    host = dataclasses.replace(TARGETS["host"], threads=threads)
    said = []
    check, _ = run(make_tiny_library(host, threads), host, said.append)
    assert said == ["linking the replay program", "running 16 frames"]
    assert check.status == PASSED and check.frames == 16, check.detail
    assert check.max_abs_diff <= check.tolerance and "on this machine" in check.detail and "ms a frame" in check.detail


@pytest.mark.parametrize("name", ["jetson-nano", "raspberry-pi-32bit"])
def test_a_boards_library_is_run_under_an_emulator_with_its_own_cpu(run, make_tiny_library, name):
    target = TARGETS[name]
    need(target)
    if on_target.sysroot(target) is None:
        pytest.skip(f"no glibc for {target.arch} is installed (libc6-*-cross)")
    check, _ = run(make_tiny_library(target), target)
    assert check.status == PASSED, check.detail
    assert "qemu" in check.detail and target.emulator_cpu in check.detail and "musl" not in check.detail


def test_without_a_sysroot_the_same_objects_are_linked_statically_and_that_is_said(run, make_tiny_library, monkeypatch):
    target = TARGETS["jetson-nano"]
    need(target)
    monkeypatch.setattr(on_target, "sysroot", lambda target: None)
    said = []
    check, _ = run(make_tiny_library(target), target, said.append)
    assert check.status == PASSED and "musl" in check.detail and "no glibc" in check.detail, check.detail
    assert "once on a machine" in said[0]  # the first time is the longest part of an export


def test_an_android_archive_is_proven_by_a_static_program_and_that_is_said(run, make_tiny_library):
    target = TARGETS["android-arm64"]
    need(target)
    check, _ = run(make_tiny_library(target), target)
    assert check.status == PASSED and "musl" in check.detail and "cortex-a53" in check.detail, check.detail


# what a phone with an Intel processor would be: no board of ours is
X86_PHONE = dataclasses.replace(TARGETS["android-arm64"], triple="x86_64-linux-android", cpu="x86-64-v2", features=())


@pytest.mark.parametrize("name, cpu", [("jetson-nano", "cortex-a57"), ("raspberry-pi-5", "max"), ("raspberry-pi-32bit", "cortex-a7"),
                                       ("android-arm64", "cortex-a53"), ("x86", "max")])
def test_where_qemu_is_missing_the_emulator_from_pip_gives_the_same_bytes(run, make_tiny_library, monkeypatch, name, cpu):
    pytest.importorskip("unicorn", reason="unicorn (extra [export]) is not installed")
    target = TARGETS.get(name, X86_PHONE)
    library = make_tiny_library(target, threads=2)
    missing = on_target.emulator(target)[0] is None and on_target.emulator(target)[1]
    if not missing:
        check, usual = run(library, target)
        assert check.status == PASSED
    monkeypatch.setattr(on_target.shutil, "which", lambda name: None)
    monkeypatch.setattr(on_target.platform, "system", lambda: "Darwin")
    check, here = run(library, target)
    assert check.status == PASSED and check.frames == 16, check.detail
    for word in ("under unicorn 2.", f"CPU {cpu},", "musl", "static programs of one thread", ", 1 thread"):
        assert word in check.detail
    if missing:
        pytest.skip(missing)
    assert here.logits.tobytes() == usual.logits.tobytes() and here.caches["cache.a"].tobytes() == usual.caches["cache.a"].tobytes()


def test_what_stops_an_emulated_library_is_named(run, tiny, make_tiny_library, no_qemu):
    pytest.importorskip("unicorn", reason="unicorn (extra [export]) is not installed")
    target = TARGETS["jetson-nano"]
    check, _ = run(make_tiny_library(target, plan=tiny.plan.replace("if (n != 4) return -1;", "*(volatile int *)12 = 1;")), target)
    assert check.status == FAILED and "write of 4 bytes at 0xc, outside of memory, in step+0x" in check.detail


def test_without_an_emulator_it_is_not_executed_and_never_passed(run, no_emulator):
    other = TARGETS["jetson-nano"] if TARGETS["host"].arch != "aarch64" else TARGETS["raspberry-pi-32bit"]
    check, _ = run(None, other)
    assert check.status == NOT_EXECUTED and check.frames == 0
    assert "apt install qemu-user" in check.detail and "pip install 'tsm-edge[export]'" in check.detail


def test_instructions_that_the_emulator_lacks_are_no_failure_of_the_library(run, no_qemu, monkeypatch):
    pytest.importorskip("unicorn", reason="unicorn (extra [export]) is not installed")
    monkeypatch.setattr(on_target.platform, "system", lambda: "Windows")
    check, _ = run(None, dataclasses.replace(X86_PHONE, cpu="x86-64-v3", vector_bits=256))
    assert check.status == NOT_EXECUTED and "no CPU with the instructions of x86-64-v3" in check.detail


@pytest.mark.parametrize("wrong, right", [
    ("2 * cache[15]", "2 * cache[14]"),  # reads another place of the cache
    ("next[i] = frame[3 * i]", "next[i] = frame[3 * i + 1]"),  # keeps another channel
    ("(float)(k + 1)", "(float)(k + 1) * 1.001f"),
])
def test_a_library_that_computes_something_else_fails(run, tiny, make_tiny_library, wrong, right):
    host = TARGETS["host"]
    check, _ = run(make_tiny_library(host, plan=tiny.plan.replace(wrong, right)), host)
    assert check.status == FAILED and "differ" in check.detail


@pytest.mark.parametrize("body, words", [("return -1;", "exit code 1"), ("*(volatile int *)0 = 1;", "signal")])
def test_a_library_that_refuses_or_crashes_fails_with_its_words(run, tiny, make_tiny_library, body, words):
    host = TARGETS["host"]
    library = make_tiny_library(host, plan=tiny.plan.replace("if (n != 4) return -1;", body))
    check, _ = run(library, host)
    assert check.status == FAILED and words in check.detail


def test_outputs_of_another_length_are_refused(tiny, tmp_path):
    np.zeros(7, np.float32).tofile(tmp_path / "outputs.bin")
    with pytest.raises(RuntimeError, match="7 values, expected 36"):
        on_target.read_trace(tmp_path / "outputs.bin", 2, tiny.manifest)
