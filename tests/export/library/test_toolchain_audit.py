"""Compilers are found or named as missing; the audit reads libraries as readelf does and refuses what would not load."""
import dataclasses
import importlib.util
import platform
import shutil
import stat
import subprocess
import sys

import pytest

from tsm_edge.errors import CheckFailedError, InputError, MissingComponentError
from tsm_edge.export.library import archive, elf, toolchain
from tsm_edge.export.library.audit import audit, version_key
from tsm_edge.export.targets.boards import get_target

zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
binutils = pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed to compare with")

SOURCE = """
#include <math.h>
#include <stdio.h>
#include <pthread.h>
static int hidden_value = 3;
extern int __attribute__((weak)) may_be_missing(void);
static void *work(void *p) { return p; }
__attribute__((visibility("default"))) double tsm_one(double x) {
  pthread_t thread;
  pthread_create(&thread, 0, work, 0);
  if (may_be_missing) hidden_value += may_be_missing();
  printf("%f", x);
  return expf((float)x) + sin(x) + hidden_value;
}
__attribute__((visibility("default"))) int tsm_two(void) { return hidden_value++; }
"""


def make_library(folder, target="jetson-nano", source=SOURCE, **changes):
    target = dataclasses.replace(get_target(target), **changes)
    compiler = toolchain.find_compiler(target)
    folder.mkdir(exist_ok=True)
    (folder / "a.c").write_text(source)
    toolchain.compile_object(compiler, "a.c", "a.o", folder)
    toolchain.link_shared(compiler, target, ["a.o"], "liba.so", folder)
    return folder / "liba.so", target


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return make_library(tmp_path_factory.mktemp("library"))


# --- reading ELF ---------------------------------------------------------------------------------------------------------


@zig
@binutils
@pytest.mark.parametrize("name", ["jetson-nano", "raspberry-pi-32bit"])
def test_elf_reader_agrees_with_readelf(name, tmp_path):
    path, _ = make_library(tmp_path, name)
    read = elf.read_elf(path)
    text = subprocess.run(["readelf", "-W", "-s", "-d", "-l", path], stdout=subprocess.PIPE, text=True, check=True).stdout
    symbols = {}
    for line in text[text.index("Symbol table '.dynsym'"):].splitlines()[3:]:
        parts = line.split()
        if len(parts) < 7 or not parts[0].rstrip(":").isdigit():
            break
        if len(parts) >= 8:
            name_, _, version = parts[7].partition("@")
            symbols[name_] = (parts[6] != "UND", parts[4] == "WEAK", version.lstrip("@"))
    assert symbols and symbols == {s.name: (s.defined, s.weak, s.version) for s in read.symbols if s.name}
    needed = [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]
    assert list(read.needed) == needed and f"[{read.soname}]" in text
    alignments = [int(line.split()[-1], 16) for line in text.splitlines() if line.split()[:1] == ["LOAD"]]
    assert list(read.load_alignments) == alignments


@zig
@binutils
def test_object_symbols_agree_with_nm(library):
    path = library[0].with_name("a.o")
    text = subprocess.run(["readelf", "-W", "-s", path], stdout=subprocess.PIPE, text=True, check=True).stdout
    names = {line.split()[7] for line in text.splitlines() if len(line.split()) >= 8 and line.split()[4] != "LOCAL"
             and line.split()[6] == "UND"}
    assert {s.name for s in elf.read_elf(path).undefined()} == names - {"Name"}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(100), b"\x7fELF\x02\x01" + bytes(60)])
def test_what_is_no_elf_is_refused(data, tmp_path):
    path = tmp_path / "x.so"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        elf.read_elf(path)
    assert "x.so" in str(error.value)


@zig
def test_truncated_library_is_refused(library, tmp_path):
    data = library[0].read_bytes()
    for length in (100, len(data) // 2, len(data) - 100):
        (tmp_path / "cut.so").write_bytes(data[:length])
        with pytest.raises(InputError):
            elf.read_elf(tmp_path / "cut.so")


# --- archives ------------------------------------------------------------------------------------------------------------


@zig
def test_archive_has_no_time_and_is_read_by_the_linker(tmp_path):
    target = get_target("host")
    compiler = toolchain.find_compiler(target)
    for name, body in (("one", "int one(void) { return 1; }"), ("two", "int one(void); int two(void) { return one() + 1; }"),
                       ("main", "int two(void); int main(void) { return two(); }")):
        (tmp_path / f"{name}.c").write_text(body)
        toolchain.compile_object(compiler, f"{name}.c", f"{name}.o", tmp_path)
    members = [(name, (tmp_path / name).read_bytes()) for name in ("two.o", "one.o")]
    archive.write_archive(tmp_path / "liball.a", members)
    assert archive.read_archive(tmp_path / "liball.a") == members
    toolchain.call(compiler, ["main.o", "liball.a", "-o", "program"], tmp_path, "linking")
    assert subprocess.run([tmp_path / "program"], check=False).returncode == 2
    if shutil.which("nm"):
        text = subprocess.run(["nm", "-s", tmp_path / "liball.a"], stdout=subprocess.PIPE, text=True, check=True).stdout
        assert "one in one.o" in text and "two in two.o" in text


@zig
def test_hidden_symbols_do_not_leave_a_library(tmp_path):
    target = get_target("host")
    compiler = toolchain.find_compiler(target)
    (tmp_path / "a.c").write_text("__attribute__((visibility(\"default\"))) int seen(void) { return 1; }\n"
                                  "__attribute__((visibility(\"default\"))) int kept(void) { return seen(); }\n")
    toolchain.compile_object(compiler, "a.c", "a.o", tmp_path)
    data = (tmp_path / "a.o").read_bytes()
    assert elf.read_elf(data).exported() == ["kept", "seen"]
    (tmp_path / "a.o").write_bytes(archive.hide_symbols(data, keep={"kept"}))
    assert elf.read_elf(tmp_path / "a.o").exported() == ["kept"]
    toolchain.link_shared(compiler, target, ["a.o"], "liba.so", tmp_path)
    assert elf.read_elf(tmp_path / "liba.so").exported() == ["kept"]


# --- the audit -----------------------------------------------------------------------------------------------------------


@zig
def test_library_for_its_target_passes_and_tells_what_it_needs(library):
    result = audit(*library).require()
    assert result.exported == ("tsm_one", "tsm_two")
    assert {"libc.so.6", "libm.so.6"} <= set(result.needed) and "pthread_create" in result.undefined
    assert version_key(result.versions[-1]) <= (2, 27) and "libm.so.6" in result.summary()


@zig
@pytest.mark.parametrize("changes, words", [
    ({"libc": "glibc 2.4"}, "newer than glibc 2.4"),
    ({"page_size": 131072}, "a segment aligned to 65536 bytes, the device's pages have 131072"),
    ({"triple": "armv7a-linux-gnueabihf"}, "for aarch64, not a shared library for armv7l"),
    ({"libc": "bionic 21", "os": "android"}, "needs libc.so.6"),
])
def test_library_that_does_not_fit_is_refused_with_the_reason(library, changes, words):
    path, target = library
    result = audit(path, dataclasses.replace(target, **changes))
    assert any(words in problem for problem in result.problems), result.problems
    with pytest.raises(CheckFailedError) as error:
        result.require()
    assert error.value.exit_code == 1 and words in error.value.found


@zig
def test_foreign_symbols_and_libraries_are_refused(tmp_path):
    source = "extern int TVMFuncCall(int); __attribute__((visibility(\"default\"))) int run(void) { return TVMFuncCall(1); }"
    target = get_target("jetson-nano")
    compiler = toolchain.find_compiler(target)
    (tmp_path / "stub.c").write_text("__attribute__((visibility(\"default\"))) int TVMFuncCall(int x) { return x; }")
    toolchain.call(compiler, ["-shared", "stub.c", "-o", "libtvm_runtime.so", "-Wl,-soname,libtvm_runtime.so"], tmp_path, "x")
    (tmp_path / "a.c").write_text(source)
    toolchain.call(compiler, ["-shared", "-fPIC", "a.c", "-o", "liba.so", "libtvm_runtime.so"], tmp_path, "x")
    problems = audit(tmp_path / "liba.so", target).problems
    assert "needs libtvm_runtime.so" in problems
    assert any("TVMFuncCall, which no library" in p for p in problems)
    assert any(p.startswith("visible symbols besides tsm_*: run") for p in problems)


@zig
@pytest.mark.parametrize("name, page", [("raspberry-pi-4", 65536), ("raspberry-pi-32bit", 4096)])
def test_segments_are_aligned_to_the_largest_pages_of_the_targets_kernels(tmp_path, name, page):
    path, target = make_library(tmp_path, name)
    assert set(elf.read_elf(path).load_alignments) == {page}
    assert not audit(path, target).problems


@zig
def test_archive_that_calls_more_than_libm_is_refused(tmp_path):
    target = get_target("android-arm64")
    compiler = toolchain.find_compiler(dataclasses.replace(target, link="static"))
    (tmp_path / "a.c").write_text("float expf(float); void *malloc(unsigned long); float f(float x) { "
                                  "return expf(x) + (malloc(3) != 0); }")
    toolchain.compile_object(compiler, "a.c", "a.o", tmp_path)
    archive.write_archive(tmp_path / "a.a", [("a.o", (tmp_path / "a.o").read_bytes())])
    problems = audit(tmp_path / "a.a", target).problems
    assert problems == ["malloc, which neither the runtime nor libm offers"]


# --- finding a compiler ----------------------------------------------------------------------------------------------------


@zig
def test_ziglang_is_the_default_with_the_boards_own_libc_version():
    compiler = toolchain.find_compiler(get_target("jetson-nano"))
    assert compiler.kind == "zig" and "aarch64-linux-gnu.2.27" in compiler.flags
    assert "arm-linux-gnueabihf.2.31" in toolchain.find_compiler(get_target("raspberry-pi-32bit")).flags


def test_without_any_compiler_the_package_is_named(monkeypatch):
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(MissingComponentError) as error:
        toolchain.find_compiler(get_target("jetson-nano"))
    assert "pip install ziglang" in error.value.do and "aarch64-linux-gnu-gcc" in error.value.found


def test_cross_gcc_of_the_distribution_is_second_choice(monkeypatch):
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("aarch64-linux-gnu-gcc is not installed")
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    compiler = toolchain.find_compiler(get_target("jetson-nano"))
    assert compiler.kind == "gcc" and "gcc" in compiler.version.lower()


def test_given_compiler_for_another_architecture_is_refused():
    if shutil.which("gcc") is None or platform.machine() == "aarch64":
        pytest.skip("no gcc is installed that is not for aarch64")
    with pytest.raises(InputError) as error:
        toolchain.find_compiler(get_target("jetson-nano"), cc="gcc")
    assert "gcc compiles for" in error.value.found and "aarch64-linux-gnu" in error.value.expected


@pytest.mark.parametrize("cc, words", [("no-such-compiler -x", "no-such-compiler"),
                                       (f"{sys.executable} -c raise(SystemExit(1))", "--version")])
def test_given_command_that_is_no_compiler_is_refused(cc, words):
    with pytest.raises(InputError) as error:
        toolchain.find_compiler(get_target("host"), cc=cc)
    assert words in str(error.value) and error.value.exit_code == 2


def test_failing_compilation_shows_the_command_and_the_first_errors(tmp_path):
    compiler = toolchain.find_compiler(get_target("host"))
    (tmp_path / "bad.c").write_text("int f(void) { return nonsense; }\n")
    with pytest.raises(InputError) as error:
        toolchain.compile_object(compiler, "bad.c", "bad.o", tmp_path)
    assert "compiling bad.c failed" in str(error.value) and "nonsense" in error.value.found
    assert "-c bad.c" in error.value.expected


def fake_ndk(folder, api=21):
    path = folder / f"toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android{api}-clang"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho 'Android (1) clang version 17.0.2'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_ndk_is_used_when_its_folder_is_given(tmp_path, monkeypatch):
    path = fake_ndk(tmp_path)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    compiler = toolchain.find_compiler(get_target("android-arm64"))
    assert compiler.kind == "ndk" and compiler.command == (str(path),) and "clang version 17" in compiler.version
    assert get_target("android-arm64").link == "shared"


def test_folder_that_is_no_ndk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    with pytest.raises(MissingComponentError) as error:
        toolchain.find_compiler(get_target("android-arm64"))
    assert str(tmp_path) in error.value.found and "aarch64-linux-android21-clang" in error.value.found


def test_shared_android_library_without_an_ndk_says_what_to_set(monkeypatch):
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    target = dataclasses.replace(get_target("android-arm64"), link="shared")
    with pytest.raises(MissingComponentError) as error:
        toolchain.find_compiler(target)
    assert "ANDROID_NDK_HOME" in error.value.found and "CMake" in error.value.do
