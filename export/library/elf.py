"""Reads ELF files in plain Python, so that libraries can be audited without binutils."""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from tsm_edge.errors import InputError

MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l"}
PT_LOAD, PT_PHDR, PT_GNU_STACK = 1, 6, 0x6474E551
SHT_SYMTAB, SHT_DYNSYM, SHT_GNU_VERNEED, SHT_GNU_VERSYM = 2, 11, 0x6FFFFFFE, 0x6FFFFFFF
DT_NEEDED, DT_SONAME, DT_TEXTREL, DT_FLAGS, DT_RUNPATH, DT_RPATH = 1, 14, 22, 30, 29, 15
WEAK, GLOBAL = 2, 1
DEFAULT, HIDDEN = 0, 2


@dataclass(frozen=True)
class Symbol:
    """One symbol. version: "GLIBC_2.17" and the file it comes from, "" where it has none. size in bytes."""

    name: str
    defined: bool
    weak: bool
    local: bool
    hidden: bool
    size: int = 0
    version: str = ""
    file: str = ""
    address: int = 0


@dataclass(frozen=True)
class Segment:
    """One program header. The file's bytes from offset on stand at the address, followed by zeros; sizes in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    file_bytes: int
    memory_bytes: int
    align: int


@dataclass(frozen=True)
class Elf:
    """What an audit and a loader need. symbols: of the dynamic table of a library, else of the symbol table."""

    machine: str
    bits: int
    kind: str  # "object", "executable" or "shared"
    symbols: tuple
    needed: tuple = ()
    soname: str = ""
    rpath: str = ""
    load_alignments: tuple = ()
    executable_stack: bool = False
    text_relocations: bool = False
    entry: int = 0
    segments: tuple = ()

    def undefined(self):
        """Symbols that others must supply."""
        return [s for s in self.symbols if s.name and not s.defined and not s.local]

    def exported(self):
        """Names others can see."""
        return sorted(s.name for s in self.symbols if s.name and s.defined and not s.local and not s.hidden)


def _bad(name, why):
    return InputError(f"{name} is not a usable ELF file", found=why, expected="a little-endian ELF library or object",
                      do="look at the compiler's messages above it")


def read_elf(source):
    """Read a library, program or object file.

    Parameters
    ----------
    source : path or bytes

    Returns
    -------
    Elf

    Raises
    ------
    InputError
        Not ELF, truncated, or of an architecture this package does not know.
    """
    name = "the object" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    try:
        return _Reader(source, name).read()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise _bad(name, f"truncated or damaged: {error}") from error


class _Reader:
    def __init__(self, data, name):
        if data[:4] != b"\x7fELF" or len(data) < 52:
            raise _bad(name, f"begins with {data[:4]!r}")
        if data[5] != 1 or data[4] not in (1, 2):
            raise _bad(name, "big-endian or of an unknown class")
        self.data, self.name, self.wide = data, name, data[4] == 2

    def unpack(self, form, offset):
        return struct.unpack_from("<" + form, self.data, offset)

    def text(self, table, offset):
        start = table + offset
        return self.data[start:self.data.index(b"\0", start)].decode()

    def read(self):
        kind, machine = self.unpack("HH", 16)
        if machine not in MACHINES:
            raise _bad(self.name, f"machine {machine}")
        phoff, shoff = self.unpack("QQ", 32) if self.wide else self.unpack("II", 28)
        sizes = self.unpack("HHHHH", 54 if self.wide else 42)
        phsize, phcount, shsize, shcount, _ = sizes
        sections = [self.section(shoff + i * shsize) for i in range(shcount)]
        segments = [self.segment(phoff + i * phsize) for i in range(phcount)]
        dynamic = self.dynamic(sections)
        shared = kind == 3
        wanted = SHT_DYNSYM if shared else SHT_SYMTAB
        return Elf(
            machine=MACHINES[machine], bits=64 if self.wide else 32,
            kind={1: "object", 2: "executable", 3: "shared"}.get(kind, "object"),
            symbols=tuple(self.symbols(sections, wanted)),
            needed=tuple(v for t, v in dynamic if t == DT_NEEDED),
            soname=next((v for t, v in dynamic if t == DT_SONAME), ""),
            rpath=next((v for t, v in dynamic if t in (DT_RPATH, DT_RUNPATH)), ""),
            load_alignments=tuple(s.align for s in segments if s.type == PT_LOAD),
            executable_stack=any(s.type == PT_GNU_STACK and s.flags & 1 for s in segments),
            text_relocations=any(t == DT_TEXTREL or (t == DT_FLAGS and v & 4) for t, v in dynamic),
            entry=self.unpack("Q" if self.wide else "I", 24)[0], segments=tuple(segments),
        )

    def section(self, at):
        if self.wide:
            _, kind, _, _, offset, size, link, info, _, entry = self.unpack("IIQQQQIIQQ", at)
        else:
            _, kind, _, _, offset, size, link, info, _, entry = self.unpack("IIIIIIIIII", at)
        return {"type": kind, "offset": offset, "size": size, "link": link, "info": info, "entry": entry}

    def segment(self, at):
        if self.wide:
            kind, flags, offset, address, _, in_file, in_memory, align = self.unpack("IIQQQQQQ", at)
        else:
            kind, offset, address, _, in_file, in_memory, flags, align = self.unpack("IIIIIIII", at)
        return Segment(kind, flags, offset, address, in_file, in_memory, align)

    def dynamic(self, sections):
        out = []
        for section in sections:
            if section["type"] != 6:  # SHT_DYNAMIC
                continue
            strings = sections[section["link"]]["offset"]
            step = 16 if self.wide else 8
            for at in range(section["offset"], section["offset"] + section["size"], step):
                tag, value = self.unpack("qQ" if self.wide else "iI", at)
                if tag == 0:
                    break
                if tag in (DT_NEEDED, DT_SONAME, DT_RPATH, DT_RUNPATH):
                    value = self.text(strings, value)
                out.append((tag, value))
        return out

    def symbols(self, sections, wanted):
        versions = self.version_names(sections)
        index = next((s for s in sections if s["type"] == SHT_GNU_VERSYM), None)
        for section in sections:
            if section["type"] != wanted:
                continue
            strings = sections[section["link"]]["offset"]
            step = 24 if self.wide else 16
            for number in range(section["size"] // step):
                at = section["offset"] + number * step
                if self.wide:
                    name, info, other, where, address, size = self.unpack("IBBHQQ", at)
                else:
                    name, address, size, info, other, where = self.unpack("IIIBBH", at)
                version = file = ""
                if index is not None and wanted == SHT_DYNSYM:
                    key = self.unpack("H", index["offset"] + 2 * number)[0] & 0x7FFF
                    version, file = versions.get(key, ("", ""))
                bind = info >> 4
                yield Symbol(self.text(strings, name), where != 0, bind == WEAK, bind not in (GLOBAL, WEAK, 10),
                             other & 3 in (1, HIDDEN), size, version, file, address)

    def version_names(self, sections):
        """Version index -> (version, file) of .gnu.version_r."""
        names = {}
        for section in sections:
            if section["type"] != SHT_GNU_VERNEED:
                continue
            strings, at = sections[section["link"]]["offset"], section["offset"]
            for _ in range(section["info"]):
                _, count, file, aux, following = self.unpack("HHIII", at)
                entry = at + aux
                for _ in range(count):
                    _, _, key, name, after = self.unpack("IHHII", entry)
                    names[key] = self.text(strings, name), self.text(strings, file)
                    entry += after
                at += following
        return names
