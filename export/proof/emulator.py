"""Runs a static Linux program of another processor in this process: the package unicorn is QEMU's CPU core as a library.

It stands in for qemu-user where that is not installed, and exists on every system. There is one thread. What a program does that is
not emulated ends it with an error that names the instruction, the address or the system call, and the function it happened in.
"""
from __future__ import annotations

import bisect
import os
import struct
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import unicorn
from unicorn import arm64_const, arm_const, x86_const

from tsm_edge.export.library.elf import PT_LOAD, PT_PHDR, read_elf

from .linux_calls import AARCH64, ARM, PAGE, X86_64, LinuxCalls

STOPPED = 125  # exit status where a program did not come to its end
STACK_TOP, STACK_BYTES = 0xBF00_0000, 8 << 20
_NEVER = 0xFFFF_FFFE  # emulation would end there; no program has code at it
_AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_PAGESZ, _AT_ENTRY, _AT_HWCAP, _AT_RANDOM = 3, 4, 5, 6, 9, 16, 25
_ACCESSES = {unicorn.UC_MEM_READ_UNMAPPED: "read of {} bytes at {:#x}, outside of memory",
             unicorn.UC_MEM_WRITE_UNMAPPED: "write of {} bytes at {:#x}, outside of memory",
             unicorn.UC_MEM_FETCH_UNMAPPED: "jump to {1:#x}, outside of memory",
             unicorn.UC_MEM_READ_PROT: "read of {} bytes at {:#x}, which may not be read",
             unicorn.UC_MEM_WRITE_PROT: "write of {} bytes at {:#x}, which may not be written",
             unicorn.UC_MEM_FETCH_PROT: "jump to {1:#x}, which may not be executed"}


@dataclass(frozen=True)
class _Processor:
    """One architecture, in the names of unicorn's constants."""

    arch: int
    mode: int
    constants: ModuleType
    name: str
    cpus: dict  # what Target.emulator_cpu may be -> (CPU model, Linux's AT_HWCAP for it)
    calls: dict
    call: str  # registers: the number of a system call, ...
    arguments: str
    stack: str
    counter: str
    link: str  # "" where return addresses are on the stack
    tls: str
    switches: dict  # register -> bits that let programs compute with floating point
    exceptions: dict

    def registers(self, names):
        return [getattr(self.constants, f"UC_{self.name}_REG_{name}") for name in names.split()]


_SYSTEM_CALL, _UNKNOWN = "system call", "unknown instruction"
_EXCEPTIONS = {1: _UNKNOWN, 2: _SYSTEM_CALL, 3: "instruction that cannot be fetched", 4: "memory access that failed", 7: "trap"}
_V8, _V82 = 0x3, 0x3 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 20  # fp, asimd; and atomics, fphp, asimdhp, asimddp
_NEON = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 12 | 1 << 13 | 1 << 15  # half, thumb, vfp, neon, vfpv3, tls
_VFPV4 = _NEON | 1 << 16 | 3 << 17  # and vfpv4, idiva, idivt
_PROCESSORS = {
    "aarch64": _Processor(
        unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM, arm64_const, "ARM64",
        {"cortex-a53": ("A53", _V8), "cortex-a57": ("A57", _V8), "cortex-a72": ("A72", _V8), "max": ("MAX", _V82)},
        AARCH64, "X8", "X0 X1 X2 X3 X4 X5", "SP", "PC", "LR", "TPIDR_EL0", {"CPACR_EL1": 3 << 20}, _EXCEPTIONS),
    "armv7l": _Processor(
        unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM, arm_const, "ARM",
        {"cortex-a7": ("CORTEX_A7", _VFPV4), "cortex-a8": ("CORTEX_A8", _NEON), "cortex-a9": ("CORTEX_A9", _NEON),
         "cortex-a15": ("CORTEX_A15", _VFPV4), "max": ("MAX", _VFPV4)},
        ARM, "R7", "R0 R1 R2 R3 R4 R5", "SP", "PC", "LR", "C13_C0_3", {"C1_C0_2": 0xF << 20, "FPEXC": 1 << 30}, _EXCEPTIONS),
    "x86_64": _Processor(
        unicorn.UC_ARCH_X86, unicorn.UC_MODE_64, x86_const, "X86", {"max": ("NEHALEM", 0)},  # SSE4.2; there is no AVX
        X86_64, "RAX", "RDI RSI RDX R10 R8 R9", "RSP", "RIP", "", "FS_BASE", {"CR4": 3 << 9}, {}),
}


@dataclass(frozen=True)
class Ended:
    """How a program ended. code: its exit status; output: what it printed; files: name -> bytes or None, as it left them."""

    code: int
    output: str
    files: dict


def choose_cpu(target):
    """The CPU model for a target's programs: its own, or "max", which has all that unicorn knows, or None: there is none."""
    if target.arch not in _PROCESSORS or target.arch == "x86_64" and target.vector_bits > 128:
        return None
    return target.emulator_cpu if target.emulator_cpu in _PROCESSORS[target.arch].cpus else "max"


def describe(cpu):
    """How to say what a program was run under."""
    return f"under unicorn {version('unicorn')} (QEMU's CPU core as a library), CPU {cpu}"


def run(program, arguments, files=None, cpu="max"):
    """Run a program to its end.

    Parameters
    ----------
    program : path or bytes
        A static ELF program, linked with musl.
    arguments : list of str
        Its command line, from the program's own name on.
    files : dict of str -> bytes or None
        All that it can open, for reading and writing; None: there is none yet, it may make one.
    cpu : str
        Of `choose_cpu`.

    Returns
    -------
    Ended

    Raises
    ------
    RuntimeError
        It did not come to its end; the text says what stopped it, and where.
    InputError
        The program is no ELF file.
    """
    return _Machine(program, cpu, files or {}).run(arguments)


def main(arguments):
    """Run a program: CPU PROGRAM [ARGUMENT ...]. The files that its arguments name are all that it can open."""
    cpu, program, *rest = arguments
    files = {name: Path(name).read_bytes() if os.path.isfile(name) else None for name in rest}
    try:
        ended = run(program, [program, *rest], files, cpu)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return STOPPED
    for name, data in ended.files.items():
        if data != files[name]:
            Path(name).write_bytes(data)
    sys.stdout.buffer.write(ended.output.encode())
    return ended.code


class _Machine:
    """A processor, its memory and a program in it."""

    def __init__(self, program, cpu, files):
        if not isinstance(program, bytes):
            with open(program, "rb") as file:
                program = file.read()
        self.elf = read_elf(program)
        if self.elf.machine not in _PROCESSORS or self.elf.kind != "executable":
            raise RuntimeError(f"a static program for {' or '.join(_PROCESSORS)} is needed, found: {self.elf.kind}, {self.elf.machine}")
        self.processor, self.failure = _PROCESSORS[self.elf.machine], ""
        model, self.hwcap = self.processor.cpus[cpu]
        self.core = unicorn.Uc(self.processor.arch, self.processor.mode)
        self.core.ctl_set_cpu_model(getattr(self.processor.constants, f"UC_CPU_{self.processor.name}_{model}"))
        for name, bits in self.processor.switches.items():
            self.write(name, self.read(name) | bits)
        self.linux = LinuxCalls(self.core, self.processor.calls, self.elf.bits, files,
                                set_tls=lambda address: self.write(self.processor.tls, address))
        self.load(program)
        self.core.hook_add(unicorn.UC_HOOK_INTR, self.on_exception)
        self.core.hook_add(unicorn.UC_HOOK_MEM_INVALID, self.on_bad_access)
        self.core.hook_add(unicorn.UC_HOOK_INSN_INVALID, self.on_unknown)
        if self.elf.machine == "x86_64":
            self.core.hook_add(unicorn.UC_HOOK_INSN, self.on_system_call, aux1=x86_const.UC_X86_INS_SYSCALL)

    def read(self, name):
        return self.core.reg_read(*self.processor.registers(name))

    def write(self, name, value):
        self.core.reg_write(*self.processor.registers(name), value)

    def load(self, program):
        """Put the program's segments where they belong. A page of two segments gets the rights of both."""
        segments = [segment for segment in self.elf.segments if segment.type == PT_LOAD]
        rights = {}  # page -> read 4, write 2, execute 1
        for segment in segments:
            for page in range(segment.address // PAGE, -(-(segment.address + segment.memory_bytes) // PAGE)):
                rights[page] = rights.get(page, 0) | segment.flags
        runs = []  # [first page, page behind it, rights]
        for page, flags in sorted(rights.items()):
            if runs and runs[-1][1:] == [page, flags]:
                runs[-1][1] += 1
            else:
                runs.append([page, page + 1, flags])
        for first, end, flags in runs:
            self.core.mem_map(first * PAGE, (end - first) * PAGE, flags >> 2 & 1 | flags & 2 | flags << 2 & 4)
        for segment in segments:
            self.core.mem_write(segment.address, program[segment.offset:segment.offset + segment.file_bytes])

    def start_stack(self, arguments):
        """The stack as Linux leaves it to a program: argc, argv, an empty environment, the auxiliary vector. Returns its address."""
        self.core.mem_map(STACK_TOP - STACK_BYTES, STACK_BYTES, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        wide, argv = self.elf.bits == 64, []
        data = bytes(range(16))  # AT_RANDOM's, always the same: so are the runs
        start = STACK_TOP - 4096 * (1 + sum(map(len, arguments)) // 1024)
        for argument in arguments:
            argv.append(start + len(data))
            data += argument.encode() + b"\0"
        self.core.mem_write(start, data)
        auxiliary = {_AT_PHENT: 56 if wide else 32, _AT_PHNUM: len(self.elf.segments), _AT_PAGESZ: PAGE, _AT_ENTRY: self.elf.entry,
                     _AT_HWCAP: self.hwcap, _AT_RANDOM: start}
        auxiliary.update((_AT_PHDR, segment.address) for segment in self.elf.segments if segment.type == PT_PHDR)
        words = [len(argv), *argv, 0, 0, *(word for pair in auxiliary.items() for word in pair), 0, 0]
        pointer = start - 8 * len(words) & ~15
        self.core.mem_write(pointer, struct.pack(f"<{len(words)}{'Q' if wide else 'I'}", *words))
        return pointer

    def run(self, arguments):
        self.write(self.processor.stack, self.start_stack(arguments))
        try:
            self.core.emu_start(self.elf.entry, _NEVER)
        except unicorn.UcError as error:
            self.failure = self.failure or f"{error}, {self.here()}"
        output = self.linux.output.decode("utf-8", "replace")
        if self.linux.code is None:
            why = self.failure or f"stopped without an exit status, {self.here()}"
            raise RuntimeError(why + (f"; it printed: {output.strip()[-200:]}" if output else ""))
        return Ended(self.linux.code, output, self.linux.contents())

    def on_system_call(self, core, _):
        call, *arguments = (core.reg_read(r) for r in self.processor.registers(f"{self.processor.call} {self.processor.arguments}"))
        try:
            result = self.linux(call, arguments)
        except RuntimeError as error:
            self.stop(str(error))
        else:
            self.write("RAX" if self.elf.machine == "x86_64" else self.processor.arguments.split()[0], result % (1 << self.elf.bits))

    def on_exception(self, core, number, _):
        what = self.processor.exceptions.get(number, f"exception {number}")
        if what == _SYSTEM_CALL:
            self.on_system_call(core, _)
        elif what == _UNKNOWN:
            self.on_unknown(core, _)
        else:
            self.stop(what)

    def on_unknown(self, core, _):
        at = self.read(self.processor.counter)
        self.stop(f"{_UNKNOWN} {int.from_bytes(core.mem_read(at, 4), 'little'):#010x} at {at:#x}")
        return False

    def on_bad_access(self, core, access, address, size, value, _):
        self.stop(_ACCESSES.get(access, "access of {} bytes at {:#x}").format(size, address))
        return False

    def stop(self, why):
        self.failure = self.failure or f"{why}, {self.here()}"
        self.core.emu_stop()

    def here(self):
        """Where the program is, by the nearest symbol before it: "in tsm_stream_step+0x1c"."""
        at = self.read(self.processor.counter)
        if self.place(at) or not self.processor.link:
            return f"in {self.place(at) or hex(at)}"
        caller = self.read(self.processor.link)
        return f"called from {self.place(caller) or hex(caller)}"

    def place(self, address):
        """"name+offset" of an address in the program's code, "" elsewhere."""
        if not any(s.type == PT_LOAD and s.flags & 1 and s.address <= address < s.address + s.memory_bytes for s in self.elf.segments):
            return ""
        odd = self.elf.bits == 32  # set in the addresses of Thumb functions
        symbols = sorted((s.address & ~odd, s.name) for s in self.elf.symbols if s.defined and s.name and s.name[0] != "$")
        start, name = symbols[bisect.bisect(symbols, (address, chr(sys.maxunicode))) - 1]
        return f"{name}+{address - start:#x}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
