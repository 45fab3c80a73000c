"""Running a library for TVM's runtime over the verification's frames: here, or under an emulator with the target's TVM runtime."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.export.library import toolchain
from tsm_edge.export.library.elf import read_elf

from . import tolerances, traces
from .on_target import TIMEOUT_SECONDS, emulator, read_trace, sysroot

NAME = "TVM library vs torch"
RUNTIME_FILES = ("libtvm_runtime.so", "libtvm_ffi.so")
FEW = 3  # frames that are run once more with one thread
SOURCE = Path(__file__).with_name("tvm_replay.c")


def find_tvm_runtime(folder, target):
    """The files of TVM's runtime for a target, somewhere below a folder.

    Raises
    ------
    InputError
    """
    found = []
    for name in RUNTIME_FILES:
        paths = sorted(Path(folder).rglob(name))
        machines = [read_elf(path).machine for path in paths]
        if target.arch not in machines:
            raise InputError("--tvm-runtime cannot be used", found=f"no {name} for {target.arch} in {folder}"
                             + (f", but for {', '.join(map(str, machines))}" if machines else ""),
                             expected="the unpacked wheels apache-tvm and apache-tvm-ffi of that architecture",
                             do="docs/tvm.md shows how to get them, or leave it out: the check is then not executed")
        found.append(paths[machines.index(target.arch)])
    return found


def check_relax(path, target, manifest, inputs, reference, work, tvm_runtime=None, cc=None):
    """Chain the library over `inputs` in TVM's runtime and compare logits and all caches with the torch reference.

    Parameters
    ----------
    path : path
        Of the library.
    target : Target
    manifest : dict
    inputs : float32 [T, 3, H, W]
    reference : verify.Trace
    work : path
        Folder for what is needed on the way.
    tvm_runtime : list of Path or None
        As `find_tvm_runtime` gives it, for targets whose programs do not run as they are.
    cc : str or None
        C compiler.

    Returns
    -------
    verify.Check
        "not executed", with the reason, where there is nothing to run it with.
    """
    prefix, how = emulator(target)
    if prefix == []:
        def run(count, threads):
            return _here(path, manifest, inputs[:count], threads)
    else:
        reason = _reason(prefix, how, target, tvm_runtime)
        if reason:
            return tolerances.Check(NAME, tolerances.NOT_EXECUTED, detail=reason)

        def run(count, threads):
            return run_vm_frames([*prefix, "-L", sysroot(target)], path, target, manifest, inputs[:count], threads, work, tvm_runtime, cc)

    result = None
    for threads, count in {manifest["threads"]: len(inputs), 1: len(inputs) if manifest["threads"] == 1 else FEW}.items():
        said = f"in TVM's virtual machine, {how}, {threads} thread{'s' if threads != 1 else ''}"
        try:
            trace = run(count, threads)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return tolerances.Check(NAME, tolerances.FAILED, detail=f"{said}: {error}"[:600])
        check = tolerances.compare(NAME, reference.head(count), trace, detail=said)
        if check.status == tolerances.FAILED:
            return check
        result = result or check
    return result


def _reason(prefix, how, target, tvm_runtime):
    if tvm_runtime is None:
        return (f"no TVM runtime for {target.arch} was given (--tvm-runtime); the kernels inside are those of {toolchain.SONAME}. "
                "On the device: tsm_edge.pyz verify --engine tvm")
    if prefix is None:
        return how
    return "" if sysroot(target) else f"no glibc for {target.arch} is installed here"


def _here(path, manifest, inputs, threads):
    """The Trace of the library, by the engine that users take."""
    from tsm_edge.runtimes.engines.tvm_library import StepLibrary

    step, logits = StepLibrary(path, threads), []
    state = {cache["name"]: np.zeros(cache["shape"], np.float32) for cache in manifest["caches"]}
    kept = {name: [] for name in state}
    for frame in inputs:
        out, state = step(np.ascontiguousarray(frame[None], np.float32), state)
        logits.append(out)
        for name, values in state.items():
            kept[name].append(values[0])
    return traces.Trace(np.stack(logits), {name: np.stack(values) for name, values in kept.items()})


def run_vm_frames(prefix, path, target, manifest, inputs, threads, work, tvm_runtime, cc=None):
    """The Trace of the library in TVM's runtime alone, by a C program: no Python, no compiler.

    Parameters
    ----------
    prefix : list of str
        What runs the target's programs; empty: they run as they are.
    Others : as in `check_relax`.

    Raises
    ------
    RuntimeError
        The program failed.
    """
    work = Path(work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = work / "tvm_replay"
    if not program.exists():
        for file in tvm_runtime:
            shutil.copyfile(file, work / file.name)
        shutil.copyfile(SOURCE, work / SOURCE.name)
        libraries = ["-L.", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-Wl,--allow-shlib-undefined"]
        toolchain.link_program(toolchain.find_compiler(target, cc), target, [SOURCE.name], program.name, work, libraries=libraries)
    np.ascontiguousarray(inputs, dtype="<f4").tofile(work / "inputs.bin")
    settings = {"LD_LIBRARY_PATH": str(work), "TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0",
                "TVM_THREAD_POOL_SPIN_COUNT": "0"}  # emulated workers that spin take the time of the one that works
    wrapped = [*prefix, *(word for item in settings.items() for word in ("-E", "=".join(item)))] if prefix else \
        ["env", *("=".join(item) for item in settings.items())]
    size = manifest["input"]
    numbers = [len(inputs), size["height"], size["width"], len(manifest["classes"]),
               *(n for cache in manifest["caches"] for n in cache["shape"][1:])]
    command = [*wrapped, program, Path(path).resolve(), work / "inputs.bin", work / "outputs.bin", *numbers]
    done = subprocess.run([str(part) for part in command], capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_SECONDS)
    if done.returncode:
        words = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(f"exit code {done.returncode}: {' / '.join(words[-3:])}")
    return read_trace(work / "outputs.bin", len(inputs), manifest)
