"""Step program -> kernels -> one object file -> library for the target."""
from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.export import kernels
from tsm_edge.export.graph.ops import Conv, Fallback, Layout
from tsm_edge.export.kernels.generic import lower
from tsm_edge.export.tuning.tuner import Applied

from . import elf, toolchain
from .audit import Audit, audit
from .memory import make_plan
from .plan_c import WEIGHTS_FILE, write_plan

RUNTIME_SOURCES = ("tsm_edge.c", "tsm_stream.c", "tsm_run.c", "tsm_threads.c", "tsm_convert.c", "tsm_preprocess.c")
STACK_BYTES = 256 << 20  # of a compiling thread: TVM's passes go as deep as an unrolled kernel is long
MOST_GROUPS = 8  # grouped convolutions are computed as full ones up to this many groups
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


def build_kernels(program, target, precision="fp32", choose=None):
    """Kernels of a program, ours where there is one, else TVM's legalisation. choose: see `make_kernel`.

    Returns
    -------
    (Program, list of (operation, Kernel), dict)
        The program after fusion; calls in order; ONNX operations that fell back, with how often.
    """
    program = kernels.fuse(program, target)
    calls, fell_back = [], Counter()
    for op in program.ops:
        kernel = make_kernel(op, program.shapes, target, precision, choose)
        if kernel is not None:
            calls.append((op, kernel))
            continue
        if precision != "fp32":
            raise InputError(f"{op.name} has no {precision} kernel", found=_op_names(op),
                             expected="operations with kernels of ours", do="leave --precision out for fp32")
        calls += [(op, part) for part in lower.lower(op, program.shapes, target)]
        if not isinstance(op, Layout):
            fell_back.update(op.ops if isinstance(op, Fallback) else [type(op).__name__])
    return program, calls, fell_back


def make_kernel(op, shapes, target, precision="fp32", choose=None):
    """The kernel of ours for an operation, or None.

    choose : given the kernel as its cost model has it, returns the kernels.choices.Choices to build it with, or None.
    """
    if isinstance(op, Fallback):
        return None
    kernel, groups = kernels.build(op, shapes, target, precision), 1
    if kernel is None and isinstance(op, Conv) and 1 < op.groups <= MOST_GROUPS:
        op, groups = _ungrouped(op), op.groups
        kernel = kernels.build(op, shapes, target, precision)
    choices = choose(kernel) if choose and kernel else None
    if choices:
        kernel = kernels.build(op, shapes, target, precision, choices)
    return replace(kernel, macs=kernel.macs // groups) if kernel and groups > 1 else kernel


def _ungrouped(op):
    """The same convolution with one group: zeros where groups do not meet. Dearer, yet far below a loop nest as it is."""
    oc, per_group, kh, kw = op.weight.shape
    weight = np.zeros((oc, per_group * op.groups, kh, kw), op.weight.dtype)
    for group in range(op.groups):
        rows = slice(group * oc // op.groups, (group + 1) * oc // op.groups)
        weight[rows, group * per_group:(group + 1) * per_group] = op.weight[rows]
    return replace(op, weight=weight, groups=1)


def _op_names(op):
    return ", ".join(op.ops) if isinstance(op, Fallback) else type(op).__name__


def _tvm():
    try:
        import tvm
    except ImportError as error:
        raise MissingComponentError("compiling needs the package apache-tvm", found=str(error),
                                    expected="apache-tvm>=0.27,<0.28", do="pip install 'tsm-edge[export]'") from error
    return tvm


def _functions(calls):
    """The TensorIR functions of calls, by symbol."""
    functions = {}
    for _, kernel in calls:
        functions.setdefault(kernel.symbol, kernel.func.with_attr("global_symbol", kernel.symbol))
    return {symbol: functions[symbol] for symbol in sorted(functions)}


def compile_kernels(calls, target, output, hidden=True):
    """Compile the TensorIR functions of `calls` into one object file `output`; returns how many there are.

    hidden : no library made of it shows them; they are called from within.
    """
    functions = _functions(calls)
    _compile(functions, target.tvm_target(), Path(output), hidden)
    return len(functions)


def compile_each(calls, target, folder, hidden=True):
    """Compile the TensorIR functions of `calls`, each into an object file of its own, on all cores.

    One file per function, however many cores there are: the same functions give the same bytes everywhere.

    Parameters
    ----------
    calls : list of (operation, Kernel)
    target : Target
    folder : Path
    hidden : as for `compile_kernels`

    Returns
    -------
    list of str
        Names of the object files in `folder`, in the order of the functions' symbols.
    """
    functions = _functions(calls)
    for old in folder.glob("kernel.*.o"):
        old.unlink()
    names = {symbol: f"kernel.{number:03d}.o" for number, symbol in enumerate(functions)}
    compiling = target.tvm_target()
    usual = threading.stack_size(STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=cpu_count()) as pool:  # TVM compiles without Python's lock
            jobs = [pool.submit(_compile, {symbol: function}, compiling, folder / names[symbol], hidden)
                    for symbol, function in functions.items()]
            try:
                for job in jobs:
                    job.result()
            except BaseException:  # Ctrl-C as well: what is compiled now comes to its end, no other begins
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        threading.stack_size(usual)
    return list(names.values())


def cpu_count():
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile(functions, target, output, hidden=True):
    tvm = _tvm()
    # TVM's storage rewrite moves a buffer that belongs to one thread of a parallel launch out of the launch, where all
    # threads share it. Our kernels place their buffers themselves.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        compiled = tvm.compile(tvm.IRModule(functions), target=target)
    compiled.mod.write_to_file(str(output), "o")
    if hidden:
        output.write_bytes(elf.hide_symbols(output.read_bytes()))


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
    _tvm()
    with timer.stage("schedules"):
        applied = Applied(tuning) if tuning else None
        program, calls, fell_back = build_kernels(program, target, manifest.get("precision", "fp32"), applied)
    with timer.stage("memory plan"):
        plan = make_plan(calls, program)
        (workdir / "plan.c").write_text(write_plan(plan, manifest, target), encoding="utf-8")
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


def runtime_folder():
    """Folder of the C runtime's sources."""
    import tsm_edge.runtimes

    return Path(tsm_edge.runtimes.__file__).resolve().parent / "c"


def _link(compiler, target, workdir, kernel_objects):
    # the sources are copied beside the plan and compiled by relative names: nothing of this machine's paths gets in
    runtime = runtime_folder()
    for header in sorted(runtime.glob("*.h")):
        shutil.copyfile(header, workdir / header.name)
    toolchain.compile_object(compiler, "plan.c", "plan.o", workdir, include=["."])
    if target.link == "static":
        members = [(name, (workdir / name).read_bytes()) for name in ("plan.o", *kernel_objects)]
        path = workdir / STATIC_NAME
        elf.write_archive(path, members)
        return path
    objects = ["plan.o", *kernel_objects]
    for name in RUNTIME_SOURCES:
        shutil.copyfile(runtime / name, workdir / name)
        toolchain.compile_object(compiler, name, Path(name).stem + ".o", workdir, include=["."])
        objects.append(Path(name).stem + ".o")
    shutil.copyfile(runtime / "tsm_edge.map", workdir / "tsm_edge.map")
    toolchain.link_shared(compiler, target, objects, SHARED_NAME, workdir, "tsm_edge.map")
    return workdir / SHARED_NAME
