"""Tuning records: which choices were measured to be fast, for which device, as JSON lines."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from tsm_edge.errors import InputError
from tsm_edge.files import written_whole

from . import choices as choosing
from .choices import Choices

SCHEMA = 1
ANOTHER_FILE = "name another file with --tuning-record"
_LARGEST = 4 << 20
_LONGEST = 3600  # seconds of one call
_HEADER = {"tsm_tuning", "kernels", "target", "threads", "measured_on", "versions"}
_ENTRY = {"kernel", "kind", "choices", "seconds", "default_seconds", "tried"}
# what decides about speed; a record for a board serves every target that is the same in these
_FEATURES = ("triple", "cpu", "features", "vector_bits", "vector_registers", "fma_by_element", "l1_bytes", "l2_bytes")


@dataclass(frozen=True)
class Entry:
    """What was found for one kernel. choices is empty where the cost model's own were the fastest."""

    kernel: str  # symbol of the kernel without choices
    kind: str
    choices: Choices
    seconds: float  # of one call, with the choices
    default_seconds: float  # of one call, without
    tried: int

    def as_dict(self):
        return {"kernel": self.kernel, "kind": self.kind, "choices": self.choices.as_dict(), "seconds": self.seconds,
                "default_seconds": self.default_seconds, "tried": self.tried}


@dataclass
class Record:
    """A tuning record. name : where it comes from, for messages. target : name and features; see `features`."""

    target: dict
    threads: int
    measured_on: str = "this machine"
    versions: dict = field(default_factory=dict)
    entries: dict = field(default_factory=dict)  # kernel symbol -> Entry
    name: str = "tuning"

    def text(self):
        """The file's content."""
        header = {"tsm_tuning": SCHEMA, "kernels": choosing.VERSION, "target": self.target, "threads": self.threads,
                  "measured_on": self.measured_on, "versions": self.versions}
        return "".join(json.dumps(line) + "\n" for line in [header, *(e.as_dict() for e in self.entries.values())])

    def write(self, path):
        """Write the file, in one piece; folders above it are made."""
        with written_whole(path, parents=True, do=ANOTHER_FILE) as part:
            part.write_bytes(self.text().encode())


class Applied:
    """A record in use: give it the kernel without choices, it says what to choose. Counts what it knew."""

    def __init__(self, record):
        self.record, self.known, self.changed = record, set(), set()

    def __call__(self, kernel):
        entry = self.record.entries.get(kernel.symbol)
        if entry is None:
            return None
        if entry.kind != kernel.kind:
            raise _bad(self.record.name, f"{kernel.symbol} is of kind '{kernel.kind}', not '{entry.kind}'")
        self.known.add(kernel.symbol)
        if not entry.choices:
            return None
        self.changed.add(kernel.symbol)
        return entry.choices

    def note(self):
        """One line for the report."""
        if not self.known:
            return f"the tuning record {self.record.name} has no kernel of this network: it changes nothing"
        return (f"the tuning record {self.record.name} knows {len(self.known)} kernels of this network and builds "
                f"{len(self.changed)} of them other than the cost model would")


def features(target):
    """The target as a record names it."""
    return {"name": target.name, **{key: target.as_dict()[key] for key in _FEATURES}}


def shipped(target):
    """The record that comes with the package for the target of this name; None if there is none, or none that fits."""
    path = Path(__file__).with_name("records") / f"{target.name}.jsonl"
    if not path.is_file():
        return None
    try:
        record = read_record(path)
        check(record, target)
    except InputError:  # of other kernels or another number of threads: the cost model is as good a start
        return None
    record.name = f"shipped for {target.name}"
    return record


def check(record, target):
    """Refuse a record that was measured for something else.

    Raises
    ------
    InputError
    """
    wanted = features(target)
    other = [key for key in _FEATURES if record.target.get(key) != wanted[key]]
    if other:
        raise InputError(f"the tuning record {record.name} is for another target",
                         found=f"{record.target['name']}: " + ", ".join(f"{k} {record.target.get(k)}" for k in other),
                         expected=f"{target.name}: " + ", ".join(f"{k} {wanted[k]}" for k in other),
                         do=f"leave --tuning-record out, or measure for {target.name} with --tune")
    if record.threads != target.threads:
        raise InputError(f"the tuning record {record.name} is for another number of threads",
                         found=f"{record.threads}", expected=f"{target.threads}",
                         do=f"export with --threads {record.threads}, or measure again with --tune")


def read_record(path):
    """Read a tuning record. Nothing in it is believed unseen: unknown fields and odd values are refused.

    Raises
    ------
    InputError
        It cannot be read, is damaged, or is for kernels of another version.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST else None
        if data is None:
            raise ValueError(f"more than {_LARGEST >> 20} MB")
        lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise _bad(path, str(error)) from error
    values = [_line(path, number, line) for number, line in enumerate(lines, 1)]
    if not values or not _is_version(values[0].get("tsm_tuning"), SCHEMA):
        raise _bad(path, f"no line with \"tsm_tuning\": {SCHEMA} at its beginning")
    header = values[0]
    _fields(path, 1, header, _HEADER)
    if not _is_version(header["kernels"], choosing.VERSION):
        raise InputError(f"the tuning record {path} is for kernels of another version",
                         found=f"kernels {header['kernels']!r:.80}", expected=f"kernels {choosing.VERSION}",
                         do="leave --tuning-record out, or measure again with --tune")
    target = header["target"]
    if not isinstance(target, dict) or set(target) != {"name", *_FEATURES} or not isinstance(target["name"], str):
        raise _bad(path, "line 1: target")
    if type(header["threads"]) is not int or not isinstance(header["versions"], dict) \
            or not isinstance(header["measured_on"], str):
        raise _bad(path, "line 1: threads, versions or measured_on")
    record = Record(target, header["threads"], header["measured_on"], header["versions"], name=str(path))
    for number, line in enumerate(values[1:], 2):
        entry = _entry(path, number, line)
        if entry.kernel in record.entries:
            raise _bad(path, f"line {number}: {entry.kernel} a second time")
        record.entries[entry.kernel] = entry
    return record


def _is_version(value, wanted):
    return type(value) is int and value == wanted  # 1.0 and true equal 1, too


def _bad(path, found):
    return InputError(f"the tuning record {path} cannot be used", found=found,
                      expected="a file that `tsm-export --tune` wrote",
                      do="leave --tuning-record out, or write a new one with --tune")


def _line(path, number, line):
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"line {number}: {error}") from error
    if not isinstance(value, dict):
        raise _bad(path, f"line {number}: no JSON object")
    return value


def _fields(path, number, value, expected):
    unknown, missing = sorted(set(value) - expected), sorted(expected - set(value))
    if unknown or missing:
        raise _bad(path, f"line {number}: " + (f"unknown field '{unknown[0]}'" if unknown else f"no '{missing[0]}'"))


def _entry(path, number, value):
    _fields(path, number, value, _ENTRY)
    symbol, kind = value["kernel"], value["kind"]
    if not isinstance(symbol, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,299}", symbol):
        raise _bad(path, f"line {number}: kernel {symbol!r:.80}")
    if not isinstance(kind, str) or kind not in choosing.OF_KIND:
        raise _bad(path, f"line {number}: kind {kind!r:.80}")
    for key in ("seconds", "default_seconds"):
        if type(value[key]) not in (int, float) or not 0 < value[key] <= _LONGEST:
            raise _bad(path, f"line {number}: {key} {value[key]!r:.80}")
    if type(value["tried"]) is not int or value["tried"] < 0:
        raise _bad(path, f"line {number}: tried {value['tried']!r:.80}")
    try:
        chosen = choosing.from_dict(value["choices"], kind)
    except ValueError as error:
        raise _bad(path, f"line {number}: {error}") from error
    return Entry(symbol, kind, chosen, value["seconds"], value["default_seconds"], value["tried"])
