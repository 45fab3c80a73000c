"""What an export says while it works and when it is done."""
from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from tsm_edge.cli import columns


class Progress:
    """Stages with their times. The plain one keeps them; a subclass shows them (see cli.py)."""

    def __init__(self):
        self.stages = []  # (title, seconds)

    @contextlib.contextmanager
    def stage(self, title):
        """Time what happens inside the block."""
        begin = time.perf_counter()
        self.began(title)
        try:
            yield
        except BaseException:
            self.ended(title, time.perf_counter() - begin, failed=True)
            raise
        seconds = time.perf_counter() - begin
        self.stages.append((title, seconds))
        self.ended(title, seconds)

    def began(self, title):
        pass

    def ended(self, title, seconds, failed=False):
        pass

    def note(self, text):
        """One line about what the current stage does or found."""


@dataclass
class ExportReport:
    """Everything the final table shows, as plain values (bytes, counts, seconds)."""

    name: str
    target: str
    output: str
    trained: bool
    precision: str
    threads: int
    status: str = "not executed"
    checks: list = field(default_factory=list)  # verify.Check
    files: list = field(default_factory=list)  # {"path", "size", "sha256"}
    library: str = ""
    library_bytes: int = 0
    macs: int = 0
    cache_bytes: int = 0
    workspace_bytes: int = 0
    weight_bytes: int = 0
    needs: str = ""  # what the library asks of the device
    kernels: dict = field(default_factory=dict)  # kind -> calls in a step
    fallbacks: list = field(default_factory=list)  # ops that TVM's own legalisation computes
    stages: list = field(default_factory=list)
    seconds: float = 0.0
    notes: list = field(default_factory=list)
    runtime: str = "native"
    tvm: dict = field(default_factory=dict)  # of the library for TVM's runtime, as in the manifest

    def as_dict(self):
        """JSON-ready."""
        values = {key: value for key, value in vars(self).items() if key not in ("checks", "stages")}
        values["checks"] = [check.as_dict() for check in self.checks]
        values["stages"] = [{"title": title, "seconds": round(seconds, 3)} for title, seconds in self.stages]
        return values

    def only_tvm_is_open(self):
        """Whether the library for TVM's runtime is all that was not run here."""
        return bool(self.tvm) and [check.name for check in self.checks if check.status == "not executed"] == ["TVM library vs torch"]

    def verdict(self):
        """The last line: PASSED, FAILED or NOT VERIFIED, greppable."""
        word = {"passed": "PASSED", "failed": "FAILED"}.get(self.status, "NOT VERIFIED")
        tail = "" if self.trained else " UNTRAINED: random weights, it recognises nothing."
        library = self.tvm["library"] if self.only_tvm_is_open() else "the library"
        why = {"passed": "verified against the torch network",
               "failed": "a check failed"}.get(self.status, f"{library} was not run here: verify it on the device")
        return f"{word} {self.name} for {self.target} in {self.output}: {why}.{tail}"


def size_text(count):
    """Bytes for people: 108,192 -> "105.7 KB"."""
    for unit in ("B", "KB", "MB"):
        if count < 1024 or unit == "MB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024


def rows(report):
    """The final table as (what, value) pairs."""
    kernels = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kernels.items(), key=lambda kv: -kv[1]))
    pairs = [(entry["path"], size_text(entry["size"])) for entry in report.files if "/" not in entry["path"]]
    rooms = {}
    for entry in report.files:
        if "/" in entry["path"]:
            room = entry["path"].split("/")[0] + "/"
            rooms[room] = rooms.get(room, 0) + entry["size"]
    pairs += [(room, size_text(size)) for room, size in rooms.items()]
    pairs += [
        ("weights", size_text(report.weight_bytes)),
        ("caches", size_text(report.cache_bytes)),
        ("workspace", size_text(report.workspace_bytes)),
        ("multiply-accumulates a frame", f"{report.macs / 1e6:,.1f} M"),
        ("kernels", kernels or "none"),
        ("left to TVM's legalisation", ", ".join(report.fallbacks) or "nothing"),
        ("audit", report.needs or "none"),
    ]
    if report.tvm:
        calls = sum(report.tvm["kernels"].values())
        pairs.append((report.tvm["library"], f"for TVM's virtual machine: {calls} calls of {len(report.tvm['functions'])} functions"))
    return pairs


def lines(report):
    """The final tables as lines of text."""
    def number(value, form="{:.2g}"):
        return "-" if value is None else form.format(value)

    out = [] if report.trained else ["UNTRAINED (random weights)"]
    out += columns(rows(report)) + [""]
    out += columns([("check", "result", "frames", "max difference", "tolerance", "argmax flips")] + [
        (check.name, check.status, str(check.frames), number(check.max_abs_diff), number(check.tolerance),
         number(check.argmax_flips, "{}")) for check in report.checks])
    out += [f"  {check.name}: {check.detail}" for check in report.checks if check.detail]
    return out + [f"note: {note}" for note in report.notes]
