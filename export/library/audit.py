"""What a finished library asks of the device, held against what the target offers."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tsm_edge.errors import CheckFailedError

from .archive import read_archive
from .elf import read_elf

GLIBC_FILES = re.compile(r"(libc|libm|libpthread|libdl|librt)\.so\.\d+|ld-linux[-\w]*\.so\.\d+")
BIONIC_FILES = re.compile(r"lib(c|m|dl)\.so")
# what every Android since API level 21 has, of the functions a runtime and compiled code may call
BIONIC_21 = frozenset("""
    __cxa_atexit __cxa_finalize __errno __register_atfork __sF __stack_chk_fail __stack_chk_guard abort
    calloc clock_gettime fclose fopen fprintf fread fscanf fgets free getauxval malloc memcmp memcpy memmove memset
    posix_memalign qsort realloc sched_getaffinity sched_setaffinity sched_yield snprintf sprintf sscanf strcmp strlen
    strncmp strtol sysconf usleep vsnprintf dlopen dlsym sigfillset pthread_sigmask gettid syscall getpid
    pthread_attr_destroy pthread_attr_init pthread_attr_setstacksize pthread_cond_broadcast pthread_cond_destroy
    pthread_cond_init pthread_cond_signal pthread_cond_wait pthread_cond_timedwait pthread_create pthread_getspecific
    pthread_join pthread_key_create pthread_key_delete pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock
    pthread_mutex_trylock pthread_mutex_unlock pthread_once pthread_self pthread_setspecific
""".split())
LIBM = frozenset("""
    acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs floor fma fmax fmin
    fmod frexp hypot ldexp log log10 log1p log2 lrint modf nearbyint pow remainder rint round sin sinh sqrt tan tanh
    tgamma trunc
""".split())
MEMORY = frozenset("memcpy memmove memset memcmp".split())
# symbols of the C runtime that kernels and plan are made to be linked with
RUNTIME = frozenset("TVMFFIErrorSetRaisedFromCStrParts".split())


@dataclass
class Audit:
    """The result: problems is empty when the library fits the target."""

    file: str
    needed: tuple = ()
    versions: tuple = ()  # glibc versions asked for, ascending
    undefined: tuple = ()
    exported: tuple = ()
    problems: list = field(default_factory=list)

    def summary(self):
        """One line for reports."""
        libraries = ", ".join(self.needed) or "nothing"
        newest = f", at most {self.versions[-1]}" if self.versions else ""
        return f"{self.file} needs {libraries}{newest}; {len(self.undefined)} undefined symbols, all offered"

    def require(self):
        """Raise CheckFailedError when something does not fit."""
        if self.problems:
            raise CheckFailedError(f"{self.file} would not load on the device", found="; ".join(self.problems[:8]),
                                   expected="only what the target's C library offers",
                                   do="use the default compiler (ziglang), or one whose libc is as old as the device's")
        return self


def version_key(version):
    """GLIBC_2.17 -> (2, 17), for comparing; other words sort last."""
    digits = re.fullmatch(r"GLIBC_([\d.]+)", version)
    return tuple(int(part) for part in digits.group(1).split(".")) if digits else (999,)


def is_libm(name):
    return name in LIBM or (name[-1:] in "fl" and name[:-1] in LIBM)


def audit(path, target, exports=("tsm_",), brought=()):
    """Audit a library (or static archive) against its target.

    Parameters
    ----------
    path : path
    target : Target
    exports : tuple of str
        What the visible symbols of a shared library begin with.
    brought : names
        What the process that loads a shared library brings along.

    Returns
    -------
    Audit
    """
    return _archive(Path(path), target) if str(path).endswith(".a") else _shared(Path(path), target, exports, brought)


def _shared(path, target, exports, brought):
    elf = read_elf(path)
    undefined = [s for s in elf.undefined() if not s.weak and s.name not in brought]
    versions = sorted({s.version for s in elf.undefined() if s.version}, key=version_key)
    result = Audit(path.name, elf.needed, tuple(versions), tuple(sorted(s.name for s in undefined)),
                   tuple(elf.exported()))
    problems = result.problems
    if elf.machine != target.arch or elf.kind != "shared":
        problems.append(f"a {elf.kind} file for {elf.machine}, not a shared library for {target.arch}")
    libc, version = target.libc.split()
    files = GLIBC_FILES if libc == "glibc" else BIONIC_FILES
    problems += [f"needs {name}" for name in elf.needed if not files.fullmatch(name)]
    if libc == "glibc":
        offered = version_key(f"GLIBC_{version}")
        for symbol in elf.undefined():
            if symbol.version and version_key(symbol.version) > offered:
                problems.append(f"{symbol.name} of {symbol.version}, newer than {target.libc}")
            elif not symbol.version and not symbol.weak and symbol.name not in brought:
                problems.append(f"{symbol.name}, which no library of the C library offers")
    else:
        problems += [f"{s.name}, unknown in {target.libc}" for s in undefined
                     if s.name not in BIONIC_21 and not is_libm(s.name)]
    problems += [f"a segment aligned to {a} bytes, the device's pages have {target.page_size}"
                 for a in elf.load_alignments if a < target.page_size]
    if elf.executable_stack:
        problems.append("an executable stack")
    if elf.text_relocations:
        problems.append("text relocations")
    if elf.rpath:
        problems.append(f"a search path of the building machine: {elf.rpath}")
    strangers = [name for name in elf.exported() if not name.startswith(exports)]
    if strangers:
        problems.append(f"visible symbols besides {', '.join(p + '*' for p in exports)}: {', '.join(strangers[:4])}")
    return result


def _archive(path, target):
    defined, asked, problems = set(), set(), []
    for name, data in read_archive(path):
        elf = read_elf(data)
        if elf.machine != target.arch:
            problems.append(f"{name} is for {elf.machine}, not {target.arch}")
        defined |= {s.name for s in elf.symbols if s.defined and not s.local}
        asked |= {s.name for s in elf.undefined() if not s.weak}
    undefined = sorted(asked - defined - RUNTIME)
    problems += [f"{name}, which neither the runtime nor libm offers" for name in undefined
                 if name not in MEMORY and not is_libm(name) and not name.startswith(("__aeabi_", "_GLOBAL_OFFSET"))]
    return Audit(path.name, ("the runtime's sources", "libc", "libm"), (), tuple(undefined), (), problems)
