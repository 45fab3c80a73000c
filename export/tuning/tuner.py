"""Tuning: try other tiles, strips and loop orders than the cost model's, and keep what was faster in a small text file.

A tuning record is JSON lines: first what it was measured for, then a line for each kernel. Later exports read it; the
same record gives the same library.
"""
from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace

from tsm_edge import __version__
from tsm_edge.errors import InputError
from tsm_edge.export.kernels.choose import choices as choosing
from tsm_edge.export.kernels.choose.choices import Choices
from tsm_edge.export.kernels.choose.record import ANOTHER_FILE, Entry, Record, check, features, read_record, shipped
from tsm_edge.files import made_beside

from . import clock

MARGIN = 0.03  # what a candidate must gain before it is taken: less is noise
_AT_ONCE = 8  # candidates compiled before they are timed; the budget is looked at in between


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
                                     do=ANOTHER_FILE) from error
        clock.check_place(target, self.tracker, self.key)
        with made_beside(self.path, parents=True, do=ANOTHER_FILE):
            pass  # where this can be made, the record can

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

    return {"apache-tvm": version("apache-tvm"), "tsm-edge": __version__}


def _tasks(program, target, precision):
    """The kernels of a program that have something to choose, those with most work first."""
    from tsm_edge.export import kernels
    from tsm_edge.export.kernels.calls import make_kernel

    program = kernels.fuse(program)
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
