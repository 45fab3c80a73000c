"""The runtime under sanitizers, allocation counters, emulators and other compilers."""
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tsm_edge.runtimes.c_sources import REPLAY

ZIG = (sys.executable, "-m", "ziglang", "cc")
TARGETS = {  # how to compile, how to run
    "host": (None, ()),
    "zig-x86_64": ((*ZIG, "-target", "x86_64-linux-gnu.2.27"), ()),
    "zig-aarch64": ((*ZIG, "-target", "aarch64-linux-gnu.2.27"), ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")),
    "zig-armv7": ((*ZIG, "-target", "arm-linux-gnueabihf.2.27", "-mcpu=cortex_a53"),
                  ("qemu-arm", "-L", "/usr/arm-linux-gnueabihf")),
}
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wpointer-arith", "-Wstrict-prototypes", "-pedantic", "-Werror")


def target(name, kit):
    compiler, runner = TARGETS[name]
    compiler = compiler or kit.host_compiler()
    if "ziglang" in compiler:
        pytest.importorskip("ziglang")
    for tool in (compiler[0], *runner[:1]):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    return compiler, runner


def program(kit, folder, compiler=None, flags=(), name="toy_program"):
    out = folder / name
    kit.run([*(compiler or kit.host_compiler()), "-std=gnu99", "-O2", "-g", "-pthread", *flags, "-I", kit.RUNTIME, *kit.defines(folder),
             kit.HERE / "toy_plan.c", kit.HERE / "toy_program.c", *kit.SOURCES, "-o", out, "-lm", "-ldl"])
    return out


@pytest.fixture(scope="module")
def built(kit, tmp_path_factory):
    """name -> (library, replay program, toy_program, how to run), each built once."""
    done = {}

    def build(name):
        if name not in done:
            compiler, runner = target(name, kit)
            folder = tmp_path_factory.mktemp(name)
            library = kit.build_toy(folder, compiler, ("-O2", "-Wl,-z,defs"))
            kit.run([*compiler, "-std=gnu99", "-O2", REPLAY, "-o", folder / "tsm_replay", "-ldl"])
            done[name] = (library, folder / "tsm_replay", program(kit, folder, compiler), runner)
        return done[name]

    return build


@pytest.mark.parametrize("name", TARGETS)
def test_replay_of_every_build_equals_the_numpy_network(built, kit, name, tmp_path):
    library, replay, _, runner = built(name)
    frames = kit.toy_frames(9)
    frames.tofile(tmp_path / "in.bin")
    want = np.concatenate([np.concatenate([part.ravel() for part in step]) for step in kit.toy_reference(frames)])
    for threads in (1, 3):
        told = kit.run([*runner, replay, library, tmp_path / "in.bin", 9, tmp_path / "out.bin", threads])
        assert re.fullmatch(rf"PASSED model=toy frames=9 threads={threads} mean_ms=\S+ first_ms=\S+\n", told)
        got = np.fromfile(tmp_path / "out.bin", np.float32)
        assert got.shape == want.shape and np.max(np.abs(got - want)) <= 1e-5 * np.max(np.abs(want))


@pytest.mark.parametrize("name", ["zig-aarch64", "zig-armv7"])
def test_preprocessing_on_arm_equals_the_host(built, kit, name, tmp_path):
    host, (_, _, arm, runner) = built("host")[2], built(name)
    np.random.default_rng(5).integers(0, 256, 61 * 47 * 4, dtype=np.uint8).tofile(tmp_path / "pixels.bin")
    for form, rotation in ((0, 0), (3, 90), (4, 180), (5, 270), (6, 0)):
        command = ["camera", form, 61, 47, rotation, tmp_path / "pixels.bin"]
        kit.run([host, *command, tmp_path / "host.bin"])
        kit.run([*runner, arm, *command, tmp_path / "arm.bin"])
        a, b = (np.fromfile(tmp_path / f"{side}.bin", np.float32) for side in ("host", "arm"))
        assert a.size == 3 * 20 * 28 and np.ptp(a) > 0.1
        assert np.max(np.abs(a - b)) < (1e-5 if form < 4 else 0.5 / 255 / 0.224)


@pytest.mark.parametrize("name", ["zig-x86_64", "zig-aarch64", "zig-armv7"])
def test_a_library_needs_only_an_old_libc_and_shows_only_the_header(built, kit, name):
    library = built(name)[0]
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", kit.run(["readelf", "-dW", library])))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-armhf.so.3", "ld-linux-aarch64.so.1"}
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", kit.run(["readelf", "-VW", library]))
    assert max((int(a), int(b)) for a, b in versions) <= (2, 27)
    shown = {line.split()[-1] for line in kit.run(["nm", "-D", "--defined-only", library]).splitlines()}
    header = set(re.findall(r"\b(tsm_[a-z_]+)\(", re.sub(r"/\*.*?\*/", "", (kit.RUNTIME / "tsm_edge.h").read_text(),
                                                          flags=re.S)))
    assert shown == header, "the version script, the header and the library name the same functions"


def test_sources_are_clean_c99_and_the_header_is_cplusplus(kit, tmp_path):
    for source in [*kit.SOURCES, REPLAY]:
        kit.run(["gcc", "-std=c99", "-O2", *WARNINGS, "-c", source, "-o", tmp_path / "x.o"])
        kit.run(["gcc", "-std=c99", "-O2", *WARNINGS, "-DTSM_NO_THREADS", "-c", source, "-o", tmp_path / "x.o"])
    (tmp_path / "x.cpp").write_text('#include "tsm_edge.h"\nint main() { tsm_image i = {}; i.size = sizeof i; return !i.size; }\n')
    compiler = ("g++",) if shutil.which("g++") else (*ZIG[:-1], "c++")
    kit.run([*compiler, "-Wall", "-Wextra", "-pedantic", "-Werror", "-I", kit.RUNTIME, "-c", tmp_path / "x.cpp", "-o",
             tmp_path / "x.o"])


def test_sources_need_no_glibc(kit, tmp_path):
    """As an app's NDK compiles them, with another libc's headers (musl's stand in for bionic's)."""
    pytest.importorskip("ziglang")
    for source in kit.SOURCES:
        kit.run([*ZIG, "-target", "aarch64-linux-musl", "-D__ANDROID__", "-std=c99", "-O0", *WARNINGS, "-c", source, "-o",
                 tmp_path / "x.o"])


def test_the_headers_example_compiles(kit, tmp_path):
    header = (kit.RUNTIME / "tsm_edge.h").read_text()
    lines = [line[2:] for line in header.splitlines() if line.startswith(" *   ")]
    body = "\n".join(lines[:lines.index(next(line for line in lines if "tsm_model_destroy" in line)) + 1])
    (tmp_path / "x.c").write_text('#include "tsm_edge.h"\n#include <stdio.h>\nint use(const uint8_t *y, const uint8_t *vu, '
                                  f"int64_t t);\nint use(const uint8_t *y, const uint8_t *vu, int64_t t) {{\n{body}\nreturn 0;\n}}\n")
    kit.run([*kit.host_compiler(), "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", kit.RUNTIME, "-c", tmp_path / "x.c",
             "-o", tmp_path / "x.o"])


@pytest.mark.parametrize("name, flags", [
    ("address,undefined", ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")),
    ("thread", ("-fsanitize=thread", "-O1")),
])
def test_sanitizers_find_nothing(kit, tmp_path, name, flags):
    out = program(kit, tmp_path, ("gcc",), flags)  # zig brings none of their libraries
    done = subprocess.run([out, "everything", "400"], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr or "LeakSanitizer has encountered a fatal error" in done.stderr:
        pytest.skip(f"the {name} sanitizer does not run here: {done.stderr[:100]}")
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout + done.stderr[:3000]


def test_thousands_of_steps_hold_no_more_memory(built, kit):
    told = kit.run([built("host")[2], "everything", 4000])
    early, late = ([int(n) for n in re.findall(rf"{word} (\d+)", told)] for word in ("early", "late"))
    assert len(early) == len(late) == 2 and min(early) > 100000
    assert late[1] - early[1] <= 16384, "3000 steps, 30 resets, 30 streams and 60 failures on a heap that has settled"
    assert late[1] - late[0] <= 131072


def test_a_single_threaded_step_allocates_locks_and_calls_the_system_never(kit, tmp_path):
    told = kit.run([program(kit, tmp_path, flags=("-DTOY_COUNT",)), "quiet"])
    counts = re.match(r"allocations (\d+) of (\d+), locks (\d+) of (\d+)\n", told)
    assert counts, told
    assert (counts[1], counts[3]) == ("0", "0") and int(counts[2]) > 5, "the counter counts, and nothing in the steps"
    assert "no system calls" in told


def test_waiting_workers_use_no_cpu(built, kit):
    assert float(kit.run([built("host")[2], "idle", 4]).splitlines()[0]) < 5, "milliseconds in half a second"


@pytest.mark.parametrize("arguments, words, code", [
    (["/nowhere.so", "in", "1", "out"], "cannot open the library", 2),
    (["LIB", "/nowhere", "1", "out"], "cannot read: /nowhere", 2),
    (["LIB", "in", "2", "out"], "too short for FRAMES", 2),
    (["LIB", "in", "x", "out"], "FRAMES must be", 2),
    (["LIB", "in", "1", "/nowhere/out"], "cannot write", 2),
    (["LIB", "in", "1", "out", "99"], "outside its range", 1),
    (["libm.so.6", "in", "1", "out"], "not a model library", 2),
])
def test_replay_says_what_is_wrong(built, kit, tmp_path, arguments, words, code):
    library, replay, _, _ = built("host")
    kit.toy_frames(1).tofile(tmp_path / "in")
    done = subprocess.run([str(replay), *[str(library) if part == "LIB" else part for part in arguments]], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout.startswith("FAILED ")) == (code, True) and words in done.stdout


@pytest.mark.parametrize("toy", [{}, {"MUTE": 1}], ids=["as it is", "kernels that ask for nothing by a strong name"])
def test_replay_linked_with_an_archive_takes_our_symbols(kit, tmp_path, toy):
    flags = ["-std=gnu99", "-O2", "-I", kit.RUNTIME]
    kit.run([*kit.host_compiler(), *flags, *kit.defines(tmp_path, **toy), "-c", kit.HERE / "toy_plan.c", *kit.SOURCES], cwd=tmp_path)
    kit.run(["ar", "rcs", "libtoy.a", *sorted(tmp_path.glob("*.o"))], cwd=tmp_path)
    kit.run([*kit.host_compiler(), *flags, "-DTSM_REPLAY_STATIC", REPLAY, "libtoy.a", "-o", "replay", "-lm", "-pthread"],
            cwd=tmp_path)
    kit.toy_frames(2).tofile(tmp_path / "in")
    assert kit.run(["./replay", "-", "in", 2, "out"], cwd=tmp_path).startswith("PASSED model=toy")
