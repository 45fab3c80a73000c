"""Tuning: try other tiles, strips and loop orders than the cost model's, and keep what was faster in a small text file.

A tuning record is JSON lines: first what it was measured for, then a line for each kernel. Later exports read it; the
same record gives the same library.
"""
from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tsm_edge.errors import InputError
from tsm_edge.export.kernels.choose import choices as choosing
from tsm_edge.export.kernels.choose.choices import Choices

from . import clock

SCHEMA = 1
MARGIN = 0.03  # what a candidate must gain before it is taken: less is noise
_LARGEST = 4 << 20
_LONGEST = 3600  # seconds of one call
_AT_ONCE = 8  # candidates compiled before they are timed; the budget is looked at in between
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
        """Write the file, in one piece."""
        os.replace(_write_part(path, self.text()), path)


def _write_part(path, text):
    """Write the file beside `path` that will replace it, and return its path."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"the tuning record {path} cannot be written", found=str(error), expected="a folder with room to write to",
                         do="name another file with --tuning-record") from error
    return part


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


def prepare(tuning, target):
    """What an export is to use, checked before any work: a Record, a Tuner, or None.

    Parameters
    ----------
    tuning : path of a record, Record, Tuner, or None for the record that comes with the package, if there is one.
    target : Target
    """
    if tuning is None:
        return shipped(target)
    if isinstance(tuning, Tuner):
        tuning.check(target)
        return tuning
    record = tuning if isinstance(tuning, Record) else read_record(tuning)
    check(record, target)
    return record


def shipped(target):
    """The record that comes with the package for the target of this name; None if there is none, or none that fits."""
    path = Path(__file__).resolve().parents[1] / "tuning_records" / f"{target.name}.jsonl"
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


def parse_budget(text):
    """What --tune is given: "all" -> (None, None), "40" -> (40 candidates, None), "90s" -> (None, 90.0 seconds)."""
    match = re.fullmatch(r"(\d{1,6})(s?)", text.strip())
    if text == "all":
        return None, None
    if not match or int(match[1]) == 0:
        raise InputError("--tune cannot be used", found=f"'{text}'", expected="a number of candidates, or of seconds: 90s",
                         do="for example --tune 40, --tune 90s, or --tune alone to try all")
    return (None, float(match[1])) if match[2] else (int(match[1]), None)


@dataclass(frozen=True)
class _Task:
    """One kernel of a program. make(choices) builds it; outputs: names of the tensors that it writes."""

    kernel: object
    make: object
    outputs: frozenset
    rows: int
    calls: int


@dataclass(frozen=True)
class Tuner:
    """Measures candidates and writes a record.

    path : file to write, after each kernel. candidates, seconds : how many to try, how long to go on; None: all.
    tracker : (host, port) of TVM's RPC tracker, with `key` of the board; None measures in this process.
    """

    path: str
    candidates: int | None = None
    seconds: float | None = None
    tracker: tuple | None = None
    key: str | None = None
    cc: str | None = None
    rounds: int = clock.ROUNDS

    def check(self, target):
        """Refuse, before any work, a file that is something else or cannot be written, and a place to measure that is none."""
        if os.path.lexists(self.path):
            try:
                read_record(self.path)
            except InputError as error:
                if "another version" not in error.problem:
                    raise InputError(f"{self.path} is in the way of the tuning record", found=error.found,
                                     expected="no file, or an older tuning record",
                                     do="name another file with --tuning-record") from error
        clock.check_place(target, self.tracker, self.key)
        _write_part(self.path, "").unlink()

    def run(self, program, target, precision="fp32", note=lambda text: None):
        """Measure, write the record and return it, with what an older one in its place knew of other kernels."""
        record = Record(features(target), target.threads, f"RPC key {self.key}" if self.tracker else "this machine",
                        _versions(), self._older(target, note), name=str(self.path))
        tasks = _tasks(program, target, precision)
        begin, left = time.monotonic(), self.candidates
        if self.tracker:
            note(f"measuring on board '{self.key}': each time waiting up to {clock.BOARD_SECONDS} s until it is free")

        def over():
            return self.seconds is not None and time.monotonic() - begin > self.seconds

        for number, task in enumerate(tasks):
            if over():
                note(f"time is over: {len(tasks) - number} kernels were not tried")
                break
            if left == 0:
                note(f"the budget is spent: {len(tasks) - number} kernels were not tried")
                break
            limit = None if left is None else -(-left // (len(tasks) - number))  # rounded up: most work comes first
            try:
                entry = self._tune(task, target, limit, over, note)
            except InputError:
                if record.entries:
                    note(f"the kernels measured so far are in {self.path}")
                raise
            if entry is None:
                continue
            left = None if left is None else max(0, left - entry.tried)
            record.entries[entry.kernel] = entry
            record.write(self.path)
            gain = entry.default_seconds / entry.seconds
            note(f"{entry.kernel}: {entry.seconds * 1e6:.0f} us, {gain:.2f}x, {entry.tried} tried, {entry.choices.as_dict()}")
        record.write(self.path)
        return record

    def _older(self, target, note):
        """The entries of the record that lies where this one will be written, if it was measured for the same."""
        if not os.path.lexists(self.path):
            return {}
        try:
            record = read_record(self.path)
            check(record, target)
        except InputError as error:
            note(f"it will be replaced: {error.problem}")
            return {}
        note(f"{self.path} keeps its {len(record.entries)} kernels until they are measured again")
        return record.entries

    def _tune(self, task, target, limit, over, note):
        """One group of parameters at a time, then the best of each together."""
        default, best, tried = task.kernel, {}, 0
        variants = _variants(task, target, limit)
        while variants and not (tried and over()):
            part, variants = variants[:_AT_ONCE], variants[_AT_ONCE:]
            first, *timings = self._measure(task, [kernel for _, _, kernel in part], target)
            tried += len(part)
            for (group, chosen, kernel), timing in zip(part, timings):
                ratio = timing.best / first.best
                if not timing.agrees:
                    note(f"{kernel.symbol} gave other results than {default.symbol}: not used; please report it")
                elif ratio < min(1, best[group][0] if group in best else 1):
                    best[group] = ratio, chosen, kernel
        if not tried:
            return None
        finals = [(chosen, kernel) for _, chosen, kernel in best.values()]
        if not finals:
            return Entry(default.symbol, default.kind, Choices(), _short(first.best), _short(first.best), tried)
        if len(finals) > 1:
            together = {key: value for chosen, _ in finals for key, value in vars(chosen).items() if value is not None}
            finals.append((Choices(**together), task.make(Choices(**together))))
        # measured once more: the fastest of many was lucky, too
        first, *timings = self._measure(task, [kernel for _, kernel in finals], target)
        chosen, seconds = Choices(), first.best
        for (candidate, _), timing in zip(finals, timings):
            wins = sum(mine < its for mine, its in zip(timing.seconds, first.seconds))
            if timing.agrees and timing.best < min(seconds, first.best * (1 - MARGIN)) and 2 * wins > self.rounds:
                chosen, seconds = candidate, timing.best
        return Entry(default.symbol, default.kind, chosen, _short(seconds), _short(first.best), tried)

    def _measure(self, task, others, target):
        return clock.measure([task.kernel, *others], task.outputs, target, self.tracker, self.key, self.cc, self.rounds)


def _short(seconds):
    return float(f"{seconds:.4g}")


def _versions():
    from importlib.metadata import version

    return {"apache-tvm": version("apache-tvm"), "tsm-edge": version("tsm-edge")}


def _tasks(program, target, precision):
    """The kernels of a program that have something to choose, those with most work first."""
    from tsm_edge.export import kernels
    from tsm_edge.export.library.build import make_kernel

    program = kernels.fuse(program, target)
    tasks = {}
    for op in program.ops:
        kernel = make_kernel(op, program.shapes, target, precision)
        if kernel is None or kernel.kind not in choosing.OF_KIND:
            continue
        known = tasks.get(kernel.symbol)
        if known:
            tasks[kernel.symbol] = replace(known, calls=known.calls + 1)
            continue

        def make(chosen, op=op):
            return make_kernel(op, program.shapes, target, precision, lambda kernel: chosen)

        tasks[kernel.symbol] = _Task(kernel, make, _outputs(op), program.shapes[op.out][0], 1)
    return sorted(tasks.values(), key=lambda task: (-task.kernel.macs * task.calls, task.kernel.symbol))


def _outputs(op):
    splices = [getattr(conv, "splice", None) for conv in (op, getattr(op, "expand", None))]
    return frozenset([op.out, *(splice.next_cache for splice in splices if splice)])


def _variants(task, target, limit):
    """[(group, Choices, Kernel)] whose code differs from the default's and from one another's; at most `limit`."""
    from tvm_ffi import structural_equal

    groups = {name: list(options) for name, options in
              choosing.candidates(task.kernel.kind, target, task.rows).items()}
    seen, found = [task.kernel.func.with_attr("global_symbol", "f")], []
    while any(groups.values()) and (limit is None or len(found) < limit):
        for name, options in groups.items():  # in turns, so that a small limit leaves no group out
            if not options or (limit is not None and len(found) >= limit):
                continue
            chosen = options.pop(0)
            kernel = task.make(chosen)
            func = kernel.func.with_attr("global_symbol", "f")
            if not any(structural_equal(func, other) for other in seen):
                seen.append(func)
                found.append((name, chosen, kernel))
    return found
