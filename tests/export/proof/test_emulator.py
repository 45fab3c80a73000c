"""The emulator from PyPI: it computes what numpy and qemu compute, and whatever stops a program is said by its name."""
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("unicorn", reason="unicorn (extra [export]) is not installed")
pytest.importorskip("ziglang", reason="ziglang (extra [export]) is not installed")

from tsm_edge.export.proof import emulator  # noqa: E402

# what a program may do wrong, by its first argument
WRONG = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#define UNKNOWN ".inst 0x00000001"
#elif defined(__arm__)
#define UNKNOWN ".inst 0xe7f000f0"
#else
#define UNKNOWN ".byte 0x0f, 0x0b, 0xc3, 0x90"
#endif
#define APART __attribute__((noinline)) static
APART void unknown(void) { __asm__ volatile(UNKNOWN); }
APART int look(volatile char *p) { return p[0]; }
APART void poke(volatile char *p) { p[0] = 1; }
APART void deep(volatile char *p) { volatile char b[4096]; b[0] = p[0]; deep(b); b[1] = 2; }
static char *pages(int n) { return mmap(0, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void *nothing(void *p) { return p; }
static int is(char **argv, const char *what) { return !strcmp(argv[1], what); }
int main(int argc, char **argv) {
  char *p;
  pthread_t thread;
  if (is(argv, "unknown instruction")) unknown();
  if (is(argv, "read")) return look((char *)8);
  if (is(argv, "write")) poke((char *)8);
  if (is(argv, "write a constant")) poke((char *)"constant");
  if (is(argv, "write past the end")) { p = pages(1); pages(1); poke(p + 4096); }
  if (is(argv, "write what was freed")) { p = pages(1); poke(p); munmap(p, 4096); poke(p); }
  if (is(argv, "write what is guarded")) { p = pages(2); mprotect(p, 4096, PROT_NONE); poke(p + 4096); poke(p); }
  if (is(argv, "recurse")) deep((char *)argv);
  if (is(argv, "jump")) ((void (*)(void))16)();
  if (is(argv, "run data")) ((void (*)(void))argv)();
  if (is(argv, "thread")) return pthread_create(&thread, 0, nothing, 0);
  if (is(argv, "other call")) return (int)syscall(SYS_getppid);
  if (is(argv, "write from nowhere")) return (int)write(1, (void *)8, 4);
  if (is(argv, "map a file")) return mmap(0, 4096, PROT_READ, MAP_PRIVATE, 0, 0) == MAP_FAILED;
  if (is(argv, "talk")) { puts("about to fail"); fflush(stdout); unknown(); }
  if (is(argv, "exit")) { printf("seven %s\n", argv[2]); return 7; }
  return 1;
}
"""
NAMED = {
    "unknown instruction": "unknown instruction 0x[0-9a-f]{8} at 0x[0-9a-f]+, in unknown",
    "read": "read of 1 bytes at 0x8, outside of memory, in look",
    "write": "write of 1 bytes at 0x8, outside of memory, in poke",
    "write a constant": "write of 1 bytes at 0x[0-9a-f]+, which may not be written, in poke",
    "write past the end": "write of 1 bytes at 0x[0-9a-f]+, outside of memory, in poke",
    "write what was freed": "write of 1 bytes at 0x[0-9a-f]+, outside of memory, in poke",
    "write what is guarded": "write of 1 bytes at 0x[0-9a-f]+, which may not be written, in poke",
    "recurse": "write of 1 bytes at 0x[0-9a-f]+, outside of memory, in deep",
    "jump": "jump to 0x10, outside of memory, (called from main|in 0x10$)",
    "run data": "jump to 0x[0-9a-f]+, which may not be executed",
    "thread": r"system call (220|120|56) \(clone\) is not emulated, in __clone",
    "other call": r"system call (173|64|110) \(of unknown name\) is not emulated, in syscall",
    "write from nowhere": r"system call \d+ \(write\): .*; arguments 0x1, 0x8, 0x4, ",
    "map a file": r"system call \d+ \(mmap\): only new memory, anywhere, is emulated; arguments 0x0, 0x1000, 0x1",
    "talk": "unknown instruction .* in unknown.*; it printed: about to fail",
}
# A file of vectors goes in, one of sums comes out, by one of the instructions that kernels in each precision are made of
ARITHMETIC = r"""
#include <stdio.h>
#include <stdlib.h>
#ifdef __aarch64__
#define CODE ".arch armv8.2-a+fp16+dotprod\nldp q0, q1, [%0]\nldr q2, [%0, #32]\nINSTRUCTION\nstr q0, [%0]"
#define USED "v0", "v1", "v2"
#else
#define CODE ".fpu neon-vfpv4\nvldmia %0, {d0-d5}\nINSTRUCTION\nvstmia %0, {d0-d1}"
#define USED "d0", "d1", "d2", "d3", "d4", "d5"
#endif
int main(int argc, char **argv) {
  FILE *in = fopen("in.bin", "rb"), *out = fopen("out.bin", "wb");
  if (!in || !out) return 3;
  fseek(in, 0, SEEK_END);
  long size = ftell(in);
  fseek(in, 0, SEEK_SET);
  unsigned char *v = malloc(size);
  if (fread(v, 1, size, in) != (size_t)size) return 4;
  for (unsigned char *at = v; at < v + size; at += 48) {
    __asm__ volatile(CODE : : "r"(at) : "memory", USED);
    fwrite(at, 1, 16, out);
  }
  return fclose(out) ? 5 : 0;
}
"""
INSTRUCTIONS = {
    ("aarch64", "float"): "fmla v0.4s, v1.4s, v2.4s", ("armv7l", "float"): "vfma.f32 q0, q1, q2",
    ("aarch64", "half"): "fmla v0.8h, v1.8h, v2.8h", ("aarch64", "dot"): "sdot v0.4s, v1.16b, v2.16b",
    ("aarch64", "unsigned dot"): "udot v0.4s, v1.16b, v2.16b",
}
TRIPLES = {"aarch64": "aarch64-linux-musl", "armv7l": "arm-linux-musleabihf", "x86_64": "x86_64-linux-musl"}
QEMU = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(source, arch) -> path of a static program; each is made once."""
    made = {}

    def make(source, arch):
        if (source, arch) not in made:
            folder = tmp_path_factory.mktemp("program")
            (folder / "program.c").write_text(source)
            command = [sys.executable, "-m", "ziglang", "cc", "-target", TRIPLES[arch], "-O1", "-static", "program.c", "-o", "program"]
            subprocess.run(command, cwd=folder, check=True)
            made[source, arch] = folder / "program"
        return made[source, arch]

    return make


@pytest.mark.parametrize("arch", TRIPLES)
@pytest.mark.parametrize("wrong", NAMED)
def test_what_stops_a_program_is_named(build, arch, wrong):
    with pytest.raises(RuntimeError) as error:
        emulator.run(build(WRONG, arch), ["program", wrong])
    assert re.search(NAMED[wrong], str(error.value)), str(error.value)


@pytest.mark.parametrize("arch", TRIPLES)
def test_exit_status_and_output_come_back(build, arch):
    ended = emulator.run(build(WRONG, arch), ["program", "exit", "ä b"])
    assert (ended.code, ended.output) == (7, "seven ä b\n")


def expected(kind, vectors):
    """The accumulators after the operation, computed in wider numbers."""
    if kind in ("float", "half"):
        values = vectors.view(np.float32 if kind == "float" else np.float16).reshape(len(vectors), 3, -1).astype(np.float64)
        return (values[:, 0] + values[:, 1] * values[:, 2]).astype(np.float32 if kind == "float" else np.float16)
    signed = kind == "dot"
    products = np.prod(vectors[:, 1:].view(np.int8 if signed else np.uint8).astype(np.int64), axis=1).reshape(-1, 4, 4).sum(2)
    return (vectors[:, 0].copy().view(np.int32 if signed else np.uint32) + products).astype(np.int32 if signed else np.uint32)


@pytest.fixture(scope="module")
def vectors():
    """kind -> uint8 [64, 3, 16]: accumulator and two operands."""
    random = np.random.default_rng(0)
    numbers = random.integers(-2048, 2048, (64, 3, 8)) / 256  # products and sums are exact in double precision, not in half
    integers = random.integers(0, 256, (64, 3, 16), dtype=np.uint8)
    integers[:, 0] = random.integers(-10**6, 10**6, (64, 4), dtype=np.int32).view(np.uint8)
    return {"half": numbers.astype(np.float16).view(np.uint8), "dot": integers, "unsigned dot": integers,
            "float": random.normal(size=(64, 3, 4)).astype(np.float32).view(np.uint8)}


@pytest.mark.parametrize("arch, kind, cpu, qemus_cpu", [
    ("aarch64", "float", "cortex-a57", "cortex-a57"), ("armv7l", "float", "cortex-a7", "cortex-a7"),
    ("aarch64", "half", "max", "cortex-a76"), ("aarch64", "dot", "max", "cortex-a76"), ("aarch64", "unsigned dot", "max", "cortex-a76")])
def test_vector_arithmetic_is_exactly_numpys_and_qemus(build, vectors, tmp_path, arch, kind, cpu, qemus_cpu):
    program, data = build(ARITHMETIC.replace("INSTRUCTION", INSTRUCTIONS[arch, kind]), arch), vectors[kind].tobytes()
    ended = emulator.run(program, ["program"], {"in.bin": data, "out.bin": None}, cpu)
    assert ended.code == 0 and ended.files["in.bin"] == data
    right = expected(kind, vectors[kind])
    assert ended.files["out.bin"] == right.tobytes()
    if shutil.which(QEMU[arch]) is None:
        pytest.skip(f"{QEMU[arch]} is not installed")
    (tmp_path / "in.bin").write_bytes(data)
    subprocess.run([QEMU[arch], "-cpu", qemus_cpu, program], cwd=tmp_path, check=True)
    assert (tmp_path / "out.bin").read_bytes() == ended.files["out.bin"]


@pytest.mark.parametrize("kind", ["half", "dot"])
def test_a_cpu_without_an_instruction_refuses_it(build, vectors, kind):
    program = build(ARITHMETIC.replace("INSTRUCTION", INSTRUCTIONS["aarch64", kind]), "aarch64")
    with pytest.raises(RuntimeError, match="unknown instruction 0x[0-9a-f]{8} at 0x[0-9a-f]+, in main"):
        emulator.run(program, ["program"], {"in.bin": vectors[kind].tobytes(), "out.bin": None}, "cortex-a57")


@pytest.mark.parametrize("arch", TRIPLES)
def test_a_program_sees_its_own_files_only(build, arch, tmp_path):
    source = r"""
    #include <stdio.h>
    int main(int argc, char **argv) {
      char text[100] = "";
      for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], argv[i][0] == 'n' ? "wb" : "r+b");
        printf("%s: ", argv[i]);
        if (!file) { puts("refused"); continue; }
        fseek(file, -3, SEEK_END);
        long at = ftell(file);
        fgets(text, sizeof text, file);
        fseek(file, 2, SEEK_SET);
        fputs("NEW", file);
        printf("%ld %s\n", at, text);
        fclose(file);
      }
      return 0;
    }"""
    (tmp_path / "secret").write_text("secret")
    ended = emulator.run(build(source, arch), ["program", "a", "none", str(tmp_path / "secret"), "missing"],
                         {"a": b"0123456789", "none": None, "missing": None})
    lines = ended.output.splitlines()
    assert lines[0] == "a: 7 789" and lines[2] == f"{tmp_path / 'secret'}: refused" and lines[3] == "missing: refused"
    assert ended.files == {"a": b"01NEW56789", "none": b"\0\0NEW", "missing": None}


def test_the_command_reads_and_writes_the_files_of_its_arguments(build, vectors, tmp_path):
    program = build(ARITHMETIC.replace("INSTRUCTION", INSTRUCTIONS["aarch64", "float"]), "aarch64")
    (tmp_path / "in.bin").write_bytes(vectors["float"].tobytes())
    command = [sys.executable, "-m", "tsm_edge.export.proof.emulator", "cortex-a57", str(program)]
    assert subprocess.run([*command, "in.bin"], cwd=tmp_path).returncode == 3 and not (tmp_path / "out.bin").exists()
    assert subprocess.run([*command, "in.bin", "out.bin", "other"], cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.bin").read_bytes() == expected("float", vectors["float"]).tobytes()
    assert not (tmp_path / "other").exists()


def test_the_command_says_what_stopped_the_program(build):
    done = subprocess.run([sys.executable, "-m", "tsm_edge.export.proof.emulator", "max", build(WRONG, "armv7l"), "read"],
                          capture_output=True, text=True)
    assert done.returncode == emulator.STOPPED and "read of 1 bytes at 0x8" in done.stderr


def test_what_is_no_static_program_is_refused(tmp_path):
    import struct

    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 0, 64, 0, 0)
    with pytest.raises(RuntimeError, match="found: shared, aarch64"):
        emulator.run(header, ["program"])
