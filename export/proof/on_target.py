"""Running a compiled library, here or under an emulator, over the verification's frames."""
from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tsm_edge.errors import MissingComponentError
from tsm_edge.export.library import toolchain
from tsm_edge.runtimes.c_sources import FOLDER, REPLAY, library_sources

from . import tolerances
from .tolerances import FAILED, NOT_EXECUTED, Check
from .traces import Trace

NAME = "library vs torch"
TIMEOUT_SECONDS = 3600
_SYSROOTS = {"aarch64": ("/usr/aarch64-linux-gnu",), "armv7l": ("/usr/arm-linux-gnueabihf",)}
_LOADERS = {"aarch64": "lib/ld-linux-aarch64.so.1", "armv7l": "lib/ld-linux-armhf.so.3"}
_MUSL = {"aarch64": "aarch64-linux-musl", "armv7l": "arm-linux-musleabihf", "x86_64": "x86_64-linux-musl"}
_EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64"}


def zig():
    """The command of the zig that comes from PyPI, as a list.

    Raises
    ------
    MissingComponentError
    """
    try:
        import ziglang  # noqa: F401
    except ImportError as error:
        raise MissingComponentError("no C compiler for verification", found=str(error), expected="the package ziglang",
                                    do="pip install 'tsm-edge[export]'") from error
    return [sys.executable, "-m", "ziglang"]


def emulator(target, static=False):
    """How to run the target's programs on this machine.

    Parameters
    ----------
    target : Target
    static : bool
        Where there is no other, take the emulator that pip installs: it runs static programs of one thread.

    Returns
    -------
    (list of str or None, str)
        A command prefix (empty: they run as they are; None: they cannot be run) and how to say it.
    """
    if target.arch == platform.machine() and platform.system() == "Linux":
        return [], "on this machine"
    name = _EMULATORS[target.arch]
    command = shutil.which(name) or shutil.which(name + "-static")
    if command is None:
        missing = f"{name} is not installed (Debian and Ubuntu: apt install qemu-user)"
        return _unicorn(target, missing) if static else (None, missing)
    cpus = subprocess.run([command, "-cpu", "help"], capture_output=True, encoding="utf-8").stdout.split()
    cpu = target.emulator_cpu if target.emulator_cpu in cpus else "max"
    return [command, "-cpu", cpu], f"under {name} -cpu {cpu}"


def _unicorn(target, missing):
    try:
        from .emulator import choose_cpu, describe
    except ImportError as error:
        return None, f"{missing}, nor is unicorn (everywhere: pip install 'tsm-edge[export]'; {error})"
    cpu = choose_cpu(target)
    if cpu is None:
        return None, f"{missing}, and unicorn has no CPU with the instructions of {target.cpu}"
    return [sys.executable, "-m", "tsm_edge.export.proof.emulator", cpu], describe(cpu)


def sysroot(target):
    """Folder with the target's dynamic loader and libc for the emulator, or None."""
    for folder in _SYSROOTS.get(target.arch, ()):
        if Path(folder, _LOADERS[target.arch]).exists():
            return folder
    return None


def _run(command, what):
    done = subprocess.run([str(part) for part in command], capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_SECONDS)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip().splitlines()
        how = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise RuntimeError(f"{what}: {how}" + (": " + " / ".join(words[-3:]) if words else ""))
    return done.stdout


def _network(library):
    """The files that hold the compiled network without the runtime: plan, weights, kernels."""
    if library.path.suffix == ".a":
        return [library.path]
    folder = library.path.parent
    return [path for path in (folder / "plan.o", *sorted(folder.glob("kernel.*.o"))) if path.exists()]


def build_replay(library, target, work, static, cc=None):
    """Build the replay program.

    Parameters
    ----------
    library : LibraryReport
        `path` of the library: a shared one, with the objects it was linked from beside it, or an archive.
    target : Target
    work : Path
        An existing folder for the program.
    static : bool
        Link the archive and the runtime into the program (musl), instead of loading the library.
    cc : str or None
        The C compiler that the library was linked with.

    Returns
    -------
    list of str
        The program and its first argument (the library, or "-").
    """
    program = Path(work) / "tsm_replay"
    if static:
        sources, _ = library_sources()
        _run([*zig(), "cc", "-target", _MUSL[target.arch], "-O2", "-std=gnu11", "-static", "-DTSM_REPLAY_STATIC",
              "-I", FOLDER, REPLAY, *sources, *_network(library), "-lm", "-lpthread", "-o", program],
             "linking the static replay program")
        return [str(program), "-"]
    toolchain.link_program(toolchain.find_compiler(target, cc), target, [REPLAY], program, work, include=[FOLDER])
    return [str(program), str(library.path)]


def read_trace(path, frames, manifest):
    """The replay program's outputs.bin as a Trace."""
    classes = len(manifest["classes"])
    shapes = {cache["name"]: tuple(cache["shape"][1:]) for cache in manifest["caches"]}
    per_frame = classes + sum(int(np.prod(shape)) for shape in shapes.values())
    values = np.fromfile(path, dtype="<f4")
    if values.size != frames * per_frame:
        raise RuntimeError(f"the replay wrote {values.size} values, expected {frames * per_frame}")
    values = values.reshape(frames, per_frame)
    caches, at = {}, classes
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        caches[name] = values[:, at:at + count].reshape(frames, *shape)
        at += count
    return Trace(values[:, :classes], caches)


def run_frames(prefix, command, inputs, manifest, work, threads):
    """Run the program over inputs (float32 [T, 3, H, W]). Returns (Trace, mean milliseconds a frame, threads used)."""
    source, result = Path(work) / "inputs.bin", Path(work) / "outputs.bin"
    np.ascontiguousarray(inputs, dtype="<f4").tofile(source)
    text = _run([*prefix, *command[:1], command[1], source, len(inputs), result, threads], "running the library")
    found = re.search(r"threads=(\d+) mean_ms=([\d.]+)", text)
    return read_trace(result, len(inputs), manifest), float(found[2]), int(found[1])


def way_to_run(target):
    """How the library is run on this machine.

    Returns
    -------
    (list of str or None, str, bool, int)
        Command prefix (None: it cannot be run), how to say it or why not, whether it is linked into a static program, and the number of
        threads to ask for (0: the model's own).
    """
    prefix, how = emulator(target)
    if prefix is None:
        prefix, how = emulator(target, static=True)
        how += ", the same compiled network linked with musl libc (it runs static programs of one thread)" if prefix else ""
        return prefix, how, True, 1
    if target.os == "android" or target.link == "static":
        return prefix, how + ", the same compiled network linked with musl libc (Android's own is not at hand)", True, 0
    folder = sysroot(target) if prefix else None
    if prefix and folder is None:
        return prefix, how + ", the same compiled network linked with musl libc (no glibc of this architecture is installed)", True, 0
    return [*prefix, "-L", folder] if folder else prefix, how, False, 0


def check_library(library, target, manifest, inputs, reference, work, precision="fp32", cc=None, rounding=None, progress=None):
    """Chain the compiled library over `inputs` and compare logits and all caches with the torch reference.

    Parameters
    ----------
    library : LibraryReport
    target : Target
    manifest : dict
    inputs : float32 [T, 3, H, W]
    reference : traces.Trace
    work : Path
        Created; the program and its files go there.
    precision, rounding : as for `tolerances.compare`
    progress : callable or None
        Given a line of text at every step.

    Returns
    -------
    (Check, Trace or None)
        PASSED or FAILED as measured, with what the library gave; NOT_EXECUTED, with the reason, where there is nothing to run it with.
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    prefix, how, static, asked = way_to_run(target)
    if prefix is None:
        return Check(NAME, NOT_EXECUTED, detail=how), None
    say, trace = progress or (lambda text: None), None
    try:
        say("linking the replay program" + (" with musl libc, which zig builds once on a machine: up to a minute" if static else ""))
        command = build_replay(library, target, work, static, cc)
        say(f"running {len(inputs)} frames")
        trace, mean_ms, threads = run_frames(prefix, command, inputs, manifest, work, asked)
        how += f", {threads} thread{'s' if threads != 1 else ''}" + ("" if prefix else f", {mean_ms:.1f} ms a frame")
        check = tolerances.compare(NAME, reference, trace, precision, how, rounding)
        if check.status == FAILED or threads == 1:
            return check, trace
        few = min(3, len(inputs))
        alone, _, _ = run_frames(prefix, command, inputs[:few], manifest, work, 1)
        second = tolerances.compare(NAME, reference.head(few), alone, precision, "with one thread", rounding)
        return second if second.status == FAILED else check, trace
    except subprocess.TimeoutExpired:
        return Check(NAME, FAILED, detail=f"{how}: no end after {TIMEOUT_SECONDS} s"), trace
    except RuntimeError as error:
        return Check(NAME, FAILED, detail=f"{how}: {error}"), trace
