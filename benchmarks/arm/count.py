"""Run a bundle's library under QEMU with our counting plugin and turn the counts into figures.

Counts are exact and repeat; they are not time. The cycle estimate is llvm-mca's: every executed block's steady-state cycles
on the target's scheduling model times how often the block ran. It knows no memory (every load hits L1) and no branch misses,
so it is a lower bound; it was never compared with a board.
"""
from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tsm_edge.errors import CheckFailedError, InputError, MissingComponentError
from tsm_edge.runtimes.c_sources import FOLDER

from .classify import CLASSES, classify

HERE = Path(__file__).parent


def open_arm_bundle(path):
    """A bundle whose library runs under the emulator.

    Raises
    ------
    InputError
        It has no library for AArch64 Linux.
    """
    from tsm_edge.runtimes.bundle import open_bundle

    bundle = open_bundle(path)
    target = bundle.manifest["target"]
    if not str(target.get("triple", "")).startswith("aarch64") or "libtsm_model.so" not in bundle.files:
        raise InputError("this runs AArch64 Linux libraries", found=f"a bundle for {target.get('name')} ({target.get('triple')})",
                         expected="a bundle with libtsm_model.so for aarch64", do="tsm-export --target jetson-nano")
    return bundle


@dataclass
class Block:
    """One translated block in one segment: how often it ran in all marked steps, where it lies, its instruction words."""

    runs: int
    segment: int
    path: str
    offset: int  # bytes into the file
    words: np.ndarray  # uint32 [n]


@dataclass
class Call:
    """One kernel call of the plan; segment i + 1 of the counts."""

    name: str
    kind: str
    macs: int
    bytes: int


@dataclass
class Counts:
    """Figures of one step (the mean over the marked steps)."""

    steps: int
    blocks: list[Block]
    calls: list[Call] = field(default_factory=list)
    cache_counts: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)  # segment -> L1, L2 accesses and misses

    def cache(self, segment=None):
        """(L1 accesses, L1 misses, L2 accesses, L2 misses) a step, of all segments or one."""
        rows = [v for k, v in self.cache_counts.items() if segment in (None, k)]
        return tuple(sum(column) / self.steps for column in zip(*rows)) if rows else (0.0,) * 4

    def segment(self, number):
        """The blocks of one segment."""
        return [b for b in self.blocks if b.segment == number]

    @property
    def instructions(self):
        return sum(b.runs * len(b.words) for b in self.blocks) / self.steps

    def by_class(self, blocks=None):
        """Dict of class -> instructions a step, and "simd_macs" -> multiply-accumulates done by SIMD instructions."""
        totals, macs = np.zeros(len(CLASSES)), 0.0
        for b in self.blocks if blocks is None else blocks:
            kinds, lanes = classify(b.words)
            totals += b.runs * np.bincount(kinds, minlength=len(CLASSES))
            macs += b.runs * lanes.sum()
        return dict(zip(CLASSES, (totals / self.steps).tolist())) | {"simd_macs": macs / self.steps}


def _tool(name, package):
    path = shutil.which(name)
    if path is None:
        raise MissingComponentError(f"{name} is not installed", found=f"no {name} on PATH", expected=f"the Debian package {package}",
                                    do=f"apt-get install {package}")
    return path


def _compile(command, what):
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise CheckFailedError(f"{what} does not compile", found=(run.stderr.strip().splitlines() or ["no output"])[0],
                               expected="exit code 0 from " + " ".join(map(str, command[:4])), do="see the compiler's message above")


def count(library: Path, *, cpu="cortex-a57", steps=2, l1="32768:2", l2="2097152:16", sysroot=Path("/usr/aarch64-linux-gnu")):
    """Count `steps` steps of a compiled AArch64 model library, caches warm.

    Parameters
    ----------
    library : Path
        libtsm_model.so for aarch64-linux-gnu.
    cpu : str
        QEMU's -cpu.
    l1, l2 : str
        "BYTES:WAYS" of the simulated data caches.

    Raises
    ------
    MissingComponentError
        qemu-aarch64, a host compiler, an AArch64 compiler or the AArch64 C library is missing.
    CheckFailedError
        The run under QEMU failed.
    """
    qemu, host_cc = _tool("qemu-aarch64", "qemu-user"), _tool("cc", "gcc")
    cross = _tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plugin, driver, out = work / "counter.so", work / "driver", work / "counts.txt"
        _compile([host_cc, "-O2", "-shared", "-fPIC", "-o", plugin, HERE / "counter.c"], "the counting plugin")
        _compile([cross, "-O2", "-I", FOLDER, "-o", driver, HERE / "driver.c", "-ldl"], "the step driver")
        command = [qemu, "-L", sysroot, "-cpu", cpu, "-plugin", f"{plugin},out={out},l1={l1},l2={l2}", driver,
                   Path(library).resolve(), str(steps)]
        run = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8")
        if run.returncode or not out.exists():
            if "unable to find CPU model" in run.stderr:
                raise InputError(f"QEMU has no CPU '{cpu}'", found=run.stderr.strip(), expected="one of `qemu-aarch64 -cpu help`",
                                 do="for example --cpu cortex-a57")
            raise CheckFailedError("the step did not run under QEMU", found=run.stderr.strip() or f"exit code {run.returncode}",
                                   expected="exit code 0", do=f"check that {library} is an AArch64 Linux library (tsm-verify)")
        return _parse(out.read_text(encoding="utf-8"), run.stdout, steps)


def _parse(text, listing, steps):
    counts = Counts(steps, [])
    for line in text.splitlines():
        first, segment, *rest = line.split()
        if first == "cache":
            counts.cache_counts[int(segment)] = tuple(int(v) for v in rest)
        else:
            words = np.array([int(w, 16) for w in rest[2:]], np.uint32)
            counts.blocks.append(Block(int(first), int(segment), rest[0], int(rest[1], 16), words))
    for line in listing.splitlines():
        macs, size, kind, name = line.split(" ", 3)
        counts.calls.append(Call(name, kind, int(macs), int(size)))
    return counts


def estimate_cycles(blocks, cpu, steps, cover=0.995):
    """Cycles a step by llvm-mca (see the module's text), or None where llvm-mca is not installed.

    The blocks that hold `cover` of all instructions are estimated; the rest is taken as alike.
    """
    versions = (*(f"-{v}" for v in range(29, 13, -1)), "")  # the newest: old ones do not know half precision
    mc, mca = (next(filter(None, (shutil.which(tool + v) for v in versions)), None) for tool in ("llvm-mc", "llvm-mca"))
    if not mc or not mca or not blocks:
        return None
    ordered = sorted(blocks, key=lambda b: -b.runs * len(b.words))
    total = sum(b.runs * len(b.words) for b in ordered)
    chosen, covered = [], 0
    for b in ordered:
        if covered >= cover * total:
            break
        chosen.append(b)
        covered += b.runs * len(b.words)
    words = sorted({int(w) for b in chosen for w in b.words})
    text = dict(zip(words, _disassemble(mc, words)))
    regions = []
    for i, b in enumerate(chosen):
        body = "\n".join("\t" + text[int(w)] for w in b.words)
        regions.append(f"# LLVM-MCA-BEGIN b{i}\n{body}\n# LLVM-MCA-END\n")
    run = subprocess.run([mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-iterations=100", "-json"], input="".join(regions),
                         capture_output=True, encoding="utf-8")
    if run.returncode:
        raise CheckFailedError("llvm-mca failed", found=run.stderr.strip()[:300], expected="exit code 0", do="leave the estimate out")
    regions = json.loads(run.stdout)["CodeRegions"]
    cycles = sum(b.runs * r["SummaryView"]["TotalCycles"] / r["SummaryView"]["Iterations"] for b, r in zip(chosen, regions))
    return cycles / steps * total / covered


def _disassemble(mc, words):
    """One line of assembly a word; control flow and system instructions become neutral ones that llvm-mca accepts."""
    lines = []
    source = "".join(" ".join(f"0x{(w >> s) & 255:02x}" for s in (0, 8, 16, 24)) + "\n" for w in words)
    run = subprocess.run([mc, "--disassemble", "-triple=aarch64", "-mattr=+all"], input=source, capture_output=True, encoding="utf-8")
    lines = [" ".join(x.split()) for x in run.stdout.splitlines() if x.strip() and not x.strip().startswith(".")]
    if len(lines) != len(words):
        raise CheckFailedError("llvm-mc could not disassemble the step", found=f"{len(lines)} of {len(words)} instructions",
                               expected="all of them", do="use a newer LLVM")
    jumps, odd = {"bl", "blr", "br", "ret", "svc", "b"}, {"mrs", "msr", "udf", "hint", "dmb", "isb"}
    return ["b #4" if x.split()[0] in jumps else "nop" if x.split()[0] in odd else x for x in lines]
