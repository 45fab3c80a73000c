"""Step program -> kernels -> one object file -> library for the target."""
from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path

from tsm_edge.export.kernels.calls import build_kernels
from tsm_edge.export.kernels.choose.record import Applied
from tsm_edge.runtimes.c_sources import EXPORTS, HEADER, library_sources

from . import archive, toolchain
from .audit import Audit, audit
from .memory import make_plan
from .objects import compile_each, import_tvm
from .plan_c import WEIGHTS_FILE, write_plan

SHARED_NAME, STATIC_NAME = "libtsm_model.so", "libtsm_model.a"


@dataclass(frozen=True)
class CallReport:
    """One kernel call of a step, for tables. macs: useful multiply-accumulates; bytes: operands, each once."""

    name: str
    kind: str
    symbol: str
    macs: int
    bytes: int


@dataclass
class LibraryReport:
    """What `build_library` made. Sizes in bytes; timings in seconds by stage."""

    path: Path
    size: int
    calls: list
    kernels: dict  # kind -> calls in a step
    functions: int  # compiled ones; calls of the same shape share one
    arena_bytes: int
    cache_bytes: int
    weight_bytes: int
    macs: int
    fallbacks: list  # ONNX operations that TVM's own legalisation computes, "Sigmoid (3)"
    audit: Audit
    compiler: str
    timings: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    program: object = None  # after fusion
    kernel_calls: list = field(default_factory=list)  # (operation, Kernel), in order; their objects lie beside the library

    @property
    def workspace_bytes(self):
        """Memory of one stream besides its two cache blocks; kernels' own small scratch is not in it."""
        return self.arena_bytes


class _Timer:
    def __init__(self, progress):
        self.progress, self.seconds = progress or (lambda text: None), {}

    @contextlib.contextmanager
    def stage(self, title):
        self.progress(title)
        begin = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - begin


def build_library(program, manifest, target, workdir, cc=None, progress=None, tuning=None):
    """Compile a step program into a library for a target.

    Parameters
    ----------
    program : Program
    manifest : dict
        As manifest.json, without files and verification; it is embedded.
    target : Target
        link "shared" gives libtsm_model.so, "static" libtsm_model.a (kernels, plan and weights, without the runtime).
    workdir : path
        Folder for what is made on the way, and for the library.
    cc : str or None
        C compiler; see toolchain.find_compiler.
    progress : callable or None
        Given a line of text at every stage.
    tuning : tuning.Record or None
        What to choose in kernels instead of what their cost model would.

    Returns
    -------
    LibraryReport
        Equal inputs and versions give the same bytes.

    Raises
    ------
    InputError, MissingComponentError
        An operation cannot be compiled; the C compiler is missing or fails.
    CheckFailedError
        The library asks for something that the target does not offer.
    """
    workdir = Path(workdir).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    timer = _Timer(progress)
    compiler = toolchain.find_compiler(target, cc)
    import_tvm()
    with timer.stage("schedules"):
        applied = Applied(tuning) if tuning else None
        program, calls, fell_back = build_kernels(program, target, manifest.get("precision", "fp32"), applied)
    with timer.stage("memory plan"):
        plan = make_plan(calls, program)
        (workdir / "plan.c").write_bytes(write_plan(plan, manifest, target).encode())
        (workdir / WEIGHTS_FILE).write_bytes(plan.weights)
    with timer.stage(f"compiling {len({k.symbol for _, k in calls})} kernels"):
        objects = compile_each(calls, target, workdir)
    with timer.stage("linking"):
        path = _link(compiler, target, workdir, objects)
        report = audit(path, target).require()
    return LibraryReport(
        path=path, size=path.stat().st_size,
        calls=[CallReport(c.name, c.kernel.kind, c.kernel.symbol, c.kernel.macs, c.bytes) for c in plan.calls],
        kernels=dict(Counter(c.kernel.kind for c in plan.calls)), functions=len(objects), arena_bytes=plan.arena_bytes,
        cache_bytes=plan.cache_bytes, weight_bytes=plan.weight_bytes, macs=sum(c.kernel.macs for c in plan.calls),
        fallbacks=[f"{name} ({count})" if count > 1 else name for name, count in sorted(fell_back.items())],
        audit=report, compiler=f"{compiler.describe()}; apache-tvm {package_version('apache-tvm')}",
        timings=timer.seconds, notes=[applied.note()] if applied else [], program=program, kernel_calls=calls)


def _link(compiler, target, workdir, kernel_objects):
    # the sources are copied beside the plan and compiled by relative names: nothing of this machine's paths gets in
    sources, headers = library_sources()
    for header in (HEADER, *headers):
        shutil.copyfile(header, workdir / header.name)
    toolchain.compile_object(compiler, "plan.c", "plan.o", workdir, include=["."])
    if target.link == "static":
        members = [(name, (workdir / name).read_bytes()) for name in ("plan.o", *kernel_objects)]
        path = workdir / STATIC_NAME
        archive.write_archive(path, members)
        return path
    objects = ["plan.o", *kernel_objects]
    for source in sources:
        shutil.copyfile(source, workdir / source.name)
        toolchain.compile_object(compiler, source.name, source.stem + ".o", workdir, include=["."])
        objects.append(source.stem + ".o")
    shutil.copyfile(EXPORTS, workdir / EXPORTS.name)
    toolchain.link_shared(compiler, target, objects, SHARED_NAME, workdir, EXPORTS.name)
    return workdir / SHARED_NAME
