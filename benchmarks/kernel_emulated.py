"""Run kernels of another processor under an emulator with numpy arrays: for tests and for counting instructions."""
from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tsm_edge.errors import MissingComponentError
from tsm_edge.export.kernels.write.base import ScratchArg, WeightArg
from tsm_edge.export.library.objects import compile_each
from tsm_edge.runtimes.c_sources import FOLDER

# One case a run: `driver CASE CALLS` reads the tensors from in.CASE, calls the kernel and writes them to out.CASE.
# Each tensor ends where a page ends that may not be touched (up to the 64 bytes its start is aligned to).
_DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tsm_plan.h"
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
  for (int i = 0; i < n; i++) fputs(parts[i], stderr);
}
typedef struct { void *sync; int32_t tasks; } group;
extern int (*__TVMBackendParallelLaunch)(int (*)(int, group *, void *), void *, int) __attribute__((weak));
static int launch(int (*work)(int, group *, void *), void *data, int tasks) {
  group all = {0, TASKS};
  for (int i = 0; i < TASKS; i++) if (work(i, &all, data)) return -1;
  return 0;
}
typedef struct { int bits; int64_t count; } tensor;
typedef struct { tsm_kernel_fn function; int n; const tensor *tensors; } job;
CASES
int main(int argc, char **argv) {
  const job *j = &jobs[atoi(argv[1])];
  char name[64];
  tsm_dltensor t[16];
  tsm_ffi_any args[16], result;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  snprintf(name, sizeof name, "in.%s", argv[1]);
  FILE *file = fopen(name, "rb");
  for (int i = 0; i < j->n; i++) {
    size_t bytes = j->tensors[i].count * j->tensors[i].bits / 8, page = 65536;
    size_t room = ((bytes + 63) / 64 * 64 + page - 1) / page * page;
    char *memory = mmap(0, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory, page, PROT_NONE);
    mprotect(memory + page + room, page, PROT_NONE);
    memory += page + room - (bytes + 63) / 64 * 64;
    if (file && fread(memory, 1, bytes, file) != bytes) return 2;
    memset(&t[i], 0, sizeof t[i]);
    t[i].data = memory;
    t[i].device.type = 1;
    t[i].ndim = 1;
    t[i].dtype.code = 2;
    t[i].dtype.bits = j->tensors[i].bits;
    t[i].dtype.lanes = 1;
    t[i].shape = (int64_t *)&j->tensors[i].count;
    args[i].type_index = TSM_FFI_DLTENSOR;
    args[i].v.p = &t[i];
  }
  for (int i = 0; i < atoi(argv[2]); i++) if (j->function(0, args, j->n, &result)) return 3;
  if (!file) return 0;
  snprintf(name, sizeof name, "out.%s", argv[1]);
  file = fopen(name, "wb");
  for (int i = 0; i < j->n; i++) fwrite(t[i].data, 1, j->tensors[i].count * j->tensors[i].bits / 8, file);
  return fclose(file) ? 4 : 0;
}
"""
_COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc", "armv7l": "arm-linux-gnueabihf-gcc", "x86_64": "gcc"}
_EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64"}


def build_driver(kernels, target, folder, tasks=1):
    """A static program `folder`/driver that calls the kernels by number; see _DRIVER.

    Raises
    ------
    MissingComponentError
        No cross gcc for the target.
    """
    compiler = shutil.which(_COMPILERS[target.arch])
    if compiler is None:
        raise MissingComponentError(f"{_COMPILERS[target.arch]} is needed to run kernels", found="not installed",
                                    expected="a cross gcc", do="apt install gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf")
    folder = Path(folder)
    objects = compile_each([(None, kernel) for kernel in kernels], target, folder)
    lines, jobs = [], []
    for symbol in sorted({k.symbol for k in kernels}):
        lines.append(f"int __tvm_ffi_{symbol}(void *, const tsm_ffi_any *, int32_t, tsm_ffi_any *);")
    for number, kernel in enumerate(kernels):
        tensors = []
        for arg in kernel.args:
            array = arg.array if isinstance(arg, WeightArg) else np.empty(arg.shape, arg.dtype)
            tensors.append(f"{{{array.itemsize * 8}, {array.size}}}")
        lines.append(f"static const tensor tensors{number}[] = {{{', '.join(tensors)}}};")
        jobs.append(f"{{__tvm_ffi_{kernel.symbol}, {len(kernel.args)}, tensors{number}}}")
    lines.append(f"static const job jobs[] = {{{', '.join(jobs)}}};")
    source = _DRIVER.replace("CASES", "\n".join(lines), 1).replace("TASKS", str(tasks))
    (folder / "driver.c").write_text(source, encoding="utf-8")
    command = [compiler, "-O1", "-w", "-static", f"-I{FOLDER}", "driver.c", *objects, "-lm", "-o", "driver"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "driver"


def evaluate_emulated(cases, target, tasks=1):
    """Run kernels under qemu (or as they are, on the target's own architecture).

    Parameters
    ----------
    cases : list of (Kernel, dict of tensor name -> array), as for `kernel_here.evaluate`.
    tasks : number of parts that parallel loops are cut into; they run one after the other.

    Returns
    -------
    list of dict of tensor name -> flat array, as from `kernel_here.evaluate`.

    Raises
    ------
    MissingComponentError
        No cross gcc or no emulator.
    """
    import platform

    emulator = []
    if platform.machine() != target.arch:
        found = shutil.which(_EMULATORS[target.arch])
        if found is None:
            raise MissingComponentError(f"{_EMULATORS[target.arch]} is needed to run kernels", found="not installed",
                                        expected="an emulator", do="apt install qemu-user")
        emulator = [found, "-cpu", target.emulator_cpu]
    outputs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        driver = build_driver([kernel for kernel, _ in cases], target, folder, tasks)
        for number, (kernel, tensors) in enumerate(cases):
            arrays = [_array(arg, tensors) for arg in kernel.args]
            (folder / f"in.{number}").write_bytes(b"".join(a.tobytes() for a in arrays))
            subprocess.run([*emulator, str(driver), str(number), "1"], cwd=folder, check=True)
            data, at, results = (folder / f"out.{number}").read_bytes(), 0, {}
            for arg, array in zip(kernel.args, arrays):
                if not isinstance(arg, (WeightArg, ScratchArg)) and arg.name not in tensors:
                    results[arg.name] = np.frombuffer(data, array.dtype, array.size, at).copy()
                at += array.nbytes
            outputs.append(results)
    return outputs


def _array(arg, tensors):
    if isinstance(arg, WeightArg):
        return np.ascontiguousarray(arg.array)
    if isinstance(arg, ScratchArg) or arg.name not in tensors:
        return np.full(arg.shape, np.nan, arg.dtype)
    return np.ascontiguousarray(tensors[arg.name], arg.dtype).reshape(arg.shape)
