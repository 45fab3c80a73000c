"""Finds a C compiler for a target and links with it; says what the result needs from the device."""
from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.shell import quote, split

GCC_PREFIX = {"aarch64": "aarch64-linux-gnu", "armv7l": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
ZIG_TARGET = {"aarch64": "aarch64-linux-gnu", "armv7l": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
NDK_PREFIX = {"aarch64": "aarch64-linux-android", "armv7l": "armv7a-linux-androideabi",
              "x86_64": "x86_64-linux-android"}
SONAME = "libtsm_model.so"


@dataclass(frozen=True)
class Compiler:
    """A C compiler, ready for one target. kind: "zig", "ndk", "clang" or "gcc"; flags: what every call gets."""

    command: tuple
    kind: str
    version: str
    flags: tuple = ()

    def describe(self):
        return f"{self.version} ({' '.join(quote(os.path.basename(c)) for c in self.command)})"


def find_compiler(target, cc=None):
    """The C compiler to link with.

    In this order: `cc`; for Android the NDK at $ANDROID_NDK_HOME; ziglang (it brings the headers and link libraries of
    every glibc version); the distribution's (cross) gcc.

    Parameters
    ----------
    target : Target
    cc : str or None
        A command, as in the --cc option; may hold arguments.

    Returns
    -------
    Compiler

    Raises
    ------
    InputError
        `cc` cannot be run or compiles for another architecture.
    MissingComponentError
        No compiler for this target.
    """
    if cc:
        return _given(target, cc)
    if target.os == "android":
        if os.environ.get("ANDROID_NDK_HOME"):
            return _ndk(target, os.environ["ANDROID_NDK_HOME"])
        if target.link != "static":
            raise MissingComponentError(
                f"a shared library for {target.name} needs an Android NDK", found="ANDROID_NDK_HOME is not set",
                expected="the folder of an NDK, r23 or later",
                do="install the NDK and set ANDROID_NDK_HOME, or export without it: the bundle is then a CMake package")
    if importlib.util.find_spec("ziglang") is not None:
        return _zig(target, (sys.executable, "-m", "ziglang", "cc"))
    if target.os == "linux":
        name = GCC_PREFIX[target.arch] + "-gcc"
        names = [name] + (["gcc", "cc"] if target.runs_here() else [])
        for found in filter(None, map(shutil.which, names)):
            return _gnu(target, (found,))
    raise MissingComponentError(
        f"no C compiler for {target.name}", found=f"neither ziglang nor {GCC_PREFIX[target.arch]}-gcc",
        expected=f"a C compiler for {target.triple}",
        do="pip install ziglang (brings its own libc), or give your cross compiler with --cc")


def _run(command, cwd=None):
    """Run a tool; (exit code, output)."""
    environment = dict(os.environ, LC_ALL="C", ZERO_AR_DATE="1")
    environment.pop("SOURCE_DATE_EPOCH", None)
    try:
        done = subprocess.run(list(command), cwd=cwd, env=environment, encoding="utf-8", errors="replace", check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout


@functools.cache
def _version(command):
    code, text = _run([*command, "--version"])
    return text.strip().splitlines()[0] if code == 0 and text.strip() else None


def _zig(target, command):
    version = _version(command)
    if version is None:
        raise MissingComponentError("ziglang does not run", found=_run([*command, "--version"])[1][:300],
                                    expected="a working `python -m ziglang cc`",
                                    do="pip install --force-reinstall ziglang")
    if target.os == "android":  # no bionic in zig: enough for objects that use nothing of it
        return Compiler(command, "zig", f"ziglang {_zig_version()}, {version}",
                        ("-target", f"{target.arch}-linux-android", "-ffreestanding"))
    triple = f"{ZIG_TARGET[target.arch]}.{target.libc.split()[1]}"
    # on 64-bit ARM the baseline has all that the runtime can use; elsewhere the target's level is worth naming
    cpu = ("-mcpu=" + target.cpu.replace("-", "_"),) if target.arch in ("armv7l", "x86_64") else ()
    return Compiler(command, "zig", f"ziglang {_zig_version()}, {version}", ("-target", triple, *cpu))


def _zig_version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ziglang")
    except PackageNotFoundError:
        return "of the system"


def _gnu(target, command):
    version = _version(command)
    flags = {"armv7l": ("-march=armv7-a+neon-vfpv4", "-mfloat-abi=hard"), "x86_64": (f"-march={target.cpu}",)}
    return Compiler(command, "gcc", version, flags.get(target.arch, ()))


def _ndk(target, folder):
    api = target.libc.split()[1]
    pattern = f"toolchains/llvm/prebuilt/*/bin/{NDK_PREFIX[target.arch]}{api}-clang" + (".cmd" if os.name == "nt" else "")
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise MissingComponentError("the Android NDK holds no compiler for this target",
                                    found=f"{folder}, no {pattern}",
                                    expected=f"an NDK (r23 or later) for API level {api}",
                                    do="set ANDROID_NDK_HOME to the NDK's own folder")
    version = _version((str(found[0]),))
    if version is None:
        raise MissingComponentError("the Android NDK's compiler does not run", found=str(found[0]),
                                    expected="an NDK for this machine", do="install the NDK for this machine's system and processor")
    return Compiler((str(found[0]),), "ndk", f"NDK {version}")


def _given(target, cc):
    command = tuple(split(cc))
    if len(command) == 1 and Path(command[0]).stem == "zig":
        command += ("cc",)
    if not command or shutil.which(command[0]) is None:
        raise InputError("the C compiler cannot be found", found=f"--cc {cc}", expected="a command that can be run",
                         do="give its path, or leave --cc out to use ziglang")
    version = _version(command)
    if version is None:
        raise InputError("the C compiler does not answer --version", found=_run([*command, "--version"])[1][:300],
                         expected="gcc, clang or zig cc", do="leave --cc out to use ziglang")
    zig = "ziglang" in command or os.path.basename(command[0]).startswith("zig")
    if zig:
        return _zig(target, command)
    if "clang" in version.lower():
        machine = _run([*command, "-dumpmachine"])[1].strip()
        android = target.os == "android"
        own = machine.split("-")[0] == target.triple.split("-")[0] and ("android" in machine) == android
        triple = target.triple + (target.libc.split()[1] if android else "")
        return Compiler(command, "clang", version, () if own else (f"--target={triple}",))
    machine = _run([*command, "-dumpmachine"])[1].strip()
    arch = {"arm": "armv7l"}.get(machine.split("-")[0], machine.split("-")[0])
    if arch != target.arch:
        raise InputError(f"the C compiler is not for {target.name}", found=f"{cc} compiles for {machine}",
                         expected=f"a compiler for {target.triple}", do="give a cross compiler, or leave --cc out")
    return _gnu(target, command)


def call(compiler, arguments, cwd, what):
    """Run the compiler.

    Raises
    ------
    InputError, MissingComponentError
        It failed: the command and its first error lines.
    """
    command = [*compiler.command, *compiler.flags, *map(str, arguments)]
    code, output = _run(command, cwd)
    if code == 0:
        return output
    lines = output.strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    missing = _no_headers(errors)
    raise (MissingComponentError if missing else InputError)(
        f"{what} failed", found="\n            ".join(errors[:6]) or f"exit code {code}",
        expected=f"exit code 0 from: {' '.join(map(quote, command))}"[:1500],
        do=missing or "try another compiler with --cc, or leave it out to use ziglang")


def _no_headers(errors):
    if any("file not found" in line or "No such file or directory" in line for line in errors) and \
            any(".h" in line for line in errors):
        return "install the C library's headers for this target (Debian: libc6-dev-<arch>-cross), or use ziglang"
    return ""


COMMON = ("-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections",
          "-fno-ident", "-Wall")


def compile_object(compiler, source, output, cwd, include=()):
    """Compile one C file into an object file (paths relative to `cwd` where the result must not know them)."""
    folders = [f"-I{folder}" for folder in include]
    call(compiler, [*COMMON, *folders, "-c", source, "-o", output], cwd, f"compiling {Path(source).name}")


def link_shared(compiler, target, objects, output, cwd, version_script=None, soname=SONAME, closed=True):
    """Link object files into a shared library: only the functions of the version script are seen from outside.

    closed : whether all that it asks for must be in the objects and the C library; otherwise the process brings the rest.
    """
    page = max(target.page_size, 4096)
    flags = ["-shared", f"-Wl,-soname,{soname}", f"-Wl,-z,max-page-size={page}", "-Wl,-z,noexecstack", "-Wl,-z,relro",
             "-Wl,-z,now", "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-z,defs" if closed else "-Wl,-z,undefs", "-s"]
    if version_script:
        flags.append(f"-Wl,--version-script={version_script}")
    libraries = ["-lm"] + ([] if target.os == "android" else ["-lpthread"])
    call(compiler, [*flags, *objects, "-o", output, *libraries], cwd, f"linking {Path(output).name}")


def link_program(compiler, target, sources, output, cwd, include=(), libraries=()):
    """Compile and link a C program for the target. libraries: files or flags, linked after the sources."""
    folders = [f"-I{folder}" for folder in include]
    arguments = ["-std=gnu11", "-O2", "-g0", "-s", *folders, *sources, *libraries, "-o", output]
    call(compiler, [*arguments, "-lm", "-lpthread", "-ldl"], cwd, f"linking {Path(output).name}")
