"""Step program -> kernels -> one object file -> library for the target."""
from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from tsm_edge.errors import InputError, MissingComponentError

from . import elf, fallback, kernels, toolchain
from .audit import Audit, audit
from .codegen import WEIGHTS_FILE, write_plan
from .plan import make_plan
from .program import Conv, Fallback, Layout

RUNTIME_SOURCES = ("tsm_edge.c", "tsm_run.c", "tsm_threads.c", "tsm_convert.c", "tsm_preprocess.c")
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


def build_kernels(program, target, precision="fp32"):
    """Kernels of a program, ours where there is one, else TVM's legalisation.

    Returns
    -------
    (Program, list of (operation, Kernel), dict)
        The program after fusion; calls in order; ONNX operations that fell back, with how often.
    """
    program = kernels.fuse(program, target)
    calls, fell_back = [], Counter()
    for op in program.ops:
        kernel = _kernel(op, program.shapes, target, precision)
        if kernel is not None:
            calls.append((op, kernel))
            continue
        if precision != "fp32":
            raise InputError(f"{op.name} has no {precision} kernel", found=_op_names(op),
                             expected="operations with kernels of ours", do="leave --precision out for fp32")
        calls += [(op, part) for part in fallback.lower(op, program.shapes, target)]
        if not isinstance(op, Layout):
            fell_back.update(op.ops if isinstance(op, Fallback) else [type(op).__name__])
    return program, calls, fell_back


def _kernel(op, shapes, target, precision):
    """The kernel of ours for an operation, or None."""
    if isinstance(op, Fallback):
        return None
    kernel = kernels.build(op, shapes, target, precision)
    if kernel is None and isinstance(op, Conv) and 1 < op.groups <= MOST_GROUPS:
        kernel = kernels.build(_ungrouped(op), shapes, target, precision)
        kernel = kernel and replace(kernel, macs=kernel.macs // op.groups)
    return kernel


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


def compile_kernels(calls, target, output):
    """Compile the TensorIR functions of `calls` into one object file for the target; returns how many there are."""
    tvm = _tvm()
    functions = {}
    for _, kernel in calls:
        functions.setdefault(kernel.symbol, kernel.func.with_attr("global_symbol", kernel.symbol))
    module = tvm.IRModule({name: functions[name] for name in sorted(functions)})
    # TVM's storage rewrite moves a buffer that belongs to one thread of a parallel launch out of the launch, where all
    # threads share it. Our kernels place their buffers themselves.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        compiled = tvm.compile(module, target=target.tvm_target())
    compiled.mod.write_to_file(str(output), "o")
    data = Path(output).read_bytes()
    Path(output).write_bytes(elf.hide_symbols(data))  # they are called from within the same library only
    return len(functions)


def build_library(program, manifest, target, workdir, cc=None, progress=None):
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
        program, calls, fell_back = build_kernels(program, target, manifest.get("precision", "fp32"))
    with timer.stage("memory plan"):
        plan = make_plan(calls, program)
        (workdir / "plan.c").write_text(write_plan(plan, manifest, target), encoding="utf-8")
        (workdir / WEIGHTS_FILE).write_bytes(plan.weights)
    with timer.stage(f"compiling {len({k.symbol for _, k in calls})} kernels"):
        functions = compile_kernels(calls, target, workdir / "kernels.o")
    with timer.stage("linking"):
        path = _link(compiler, target, workdir)
        report = audit(path, target).require()
    return LibraryReport(
        path=path, size=path.stat().st_size,
        calls=[CallReport(c.name, c.kernel.kind, c.kernel.symbol, c.kernel.macs, c.bytes) for c in plan.calls],
        kernels=dict(Counter(c.kernel.kind for c in plan.calls)), functions=functions, arena_bytes=plan.arena_bytes,
        cache_bytes=plan.cache_bytes, weight_bytes=plan.weight_bytes, macs=sum(c.kernel.macs for c in plan.calls),
        fallbacks=[f"{name} ({count})" if count > 1 else name for name, count in sorted(fell_back.items())],
        audit=report, compiler=f"{compiler.describe()}; apache-tvm {package_version('apache-tvm')}",
        timings=timer.seconds)


def runtime_folder():
    """Folder of the C runtime's sources."""
    import tsm_edge.runtimes

    return Path(tsm_edge.runtimes.__file__).resolve().parent / "c"


def _link(compiler, target, workdir):
    # the sources are copied beside the plan and compiled by relative names: nothing of this machine's paths gets in
    runtime = runtime_folder()
    for header in sorted(runtime.glob("*.h")):
        shutil.copyfile(header, workdir / header.name)
    toolchain.compile_object(compiler, "plan.c", "plan.o", workdir, include=["."])
    if target.link == "static":
        members = [(name, (workdir / name).read_bytes()) for name in ("plan.o", "kernels.o")]
        path = workdir / STATIC_NAME
        elf.write_archive(path, members)
        return path
    objects = ["plan.o", "kernels.o"]
    for name in RUNTIME_SOURCES:
        shutil.copyfile(runtime / name, workdir / name)
        toolchain.compile_object(compiler, name, Path(name).stem + ".o", workdir, include=["."])
        objects.append(Path(name).stem + ".o")
    shutil.copyfile(runtime / "tsm_edge.map", workdir / "tsm_edge.map")
    toolchain.link_shared(compiler, target, objects, SHARED_NAME, workdir, "tsm_edge.map")
    return workdir / SHARED_NAME
