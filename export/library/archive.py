"""Archives of object files, and the visibility of their symbols."""
from __future__ import annotations

import os
import struct

from tsm_edge.errors import InputError

from .elf import DEFAULT, GLOBAL, HIDDEN, SHT_SYMTAB, WEAK, _Reader, read_elf


def write_archive(path, members):
    """Write a static library: System V format with a symbol index, no times, no owners.

    Parameters
    ----------
    path : path
    members : list of (str, bytes)
        Names of at most 15 characters, object files.
    """
    symbols = []
    for number, (_, data) in enumerate(members):
        symbols += [(s.name, number) for s in read_elf(data).symbols if s.name and s.defined and not s.local]
    names = b"".join(name.encode() + b"\0" for name, _ in symbols)
    index_size = 4 + 4 * len(symbols) + len(names)
    at = 8 + 60 + index_size + index_size % 2
    starts = []
    for _, data in members:
        starts.append(at)
        at += 60 + len(data) + len(data) % 2
    index = struct.pack(f">{1 + len(symbols)}I", len(symbols), *(starts[n] for _, n in symbols)) + names
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, data in [("", index), *members]:
            if len(name) > 15:
                raise ValueError(f"{name}: longer than 15 characters")
            file.write(f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{644 if name else 0:<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))


def read_archive(path):
    """Members of a static library: list of (name, bytes); the symbol index is left out."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != b"!<arch>\n":
        raise InputError(f"{os.fspath(path)} is not an archive", found=f"begins with {data[:8]!r}",
                         expected="a static library (.a)", do="export again")
    members, at = [], 8
    while at + 60 <= len(data):
        name, size = data[at:at + 16].decode().rstrip().rstrip("/"), int(data[at + 48:at + 58])
        if name:
            members.append((name, data[at + 60:at + 60 + size]))
        at += 60 + size + size % 2
    return members


def hide_symbols(data, keep=()):
    """The object file with all its defined global symbols hidden, so that no library made of it exports them.

    data : bytes of an object file. keep : names that stay visible.
    """
    return _set_visibility(data, HIDDEN, keep)


def show_symbols(data):
    """The inverse of `hide_symbols`: all defined global symbols of an object file are visible."""
    return _set_visibility(data, DEFAULT)


def _set_visibility(data, visibility, keep=()):
    reader, out = _Reader(data, "the object"), bytearray(data)
    shoff = reader.unpack("Q", 40)[0] if reader.wide else reader.unpack("I", 32)[0]
    shsize, shcount = reader.unpack("HH", 58 if reader.wide else 46)
    sections = [reader.section(shoff + i * shsize) for i in range(shcount)]
    for section in sections:
        if section["type"] != SHT_SYMTAB:
            continue
        strings, step = sections[section["link"]]["offset"], 24 if reader.wide else 16
        for at in range(section["offset"], section["offset"] + section["size"], step):
            name = reader.text(strings, reader.unpack("I", at)[0])
            place = at + (4 if reader.wide else 12)
            info, other, where = reader.unpack("BBH", place)
            if where != 0 and info >> 4 in (GLOBAL, WEAK) and name not in keep:
                out[place + 1] = (other & ~3) | visibility
    return bytes(out)
