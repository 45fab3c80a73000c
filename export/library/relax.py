"""The step as a library for TVM's own runtime: our kernels, called by a function of the Relax virtual machine.

The library holds the object files of `libtsm_model.so`'s kernels, so both compute the same, bit for bit. `main` has the
step graph's interface: frame [1, 3, H, W] and the caches in, (logits, next caches) out, all float32, nothing kept in between.

Kernels take compact tensors that begin where their memory begins, in an order of their own. So `main` is written in the
virtual machine's instructions and not as Relax expressions, whose `call_tir` wants a function's outputs last: memory comes
from our own plan, in blocks which tensors that are never alive together share.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError
from tsm_edge.export.graph.ops import Layout, Program
from tsm_edge.export.kernels.calls import make_kernel
from tsm_edge.export.kernels.generic import lower
from tsm_edge.manifest import RUNTIMES
from tsm_edge.runtimes.engines.tvm_library import ENTRY, LIBRARY

from . import archive, toolchain
from .audit import Audit, audit
from .memory import SLACK, make_plan, round_up
from .objects import compile_each

EXPORTS = ("__tvm_ffi_", "__TVM")
RUNTIME_SYMBOLS = frozenset(["TVMFFIErrorSetRaisedFromCStrParts"])  # of TVM's runtime, which loads the library
_FIRST_CHANNELS = ":nchw"


@dataclass
class RelaxReport:
    """What `build_relax_library` made. Sizes in bytes."""

    path: Path
    size: int
    kernels: dict  # kind -> calls in a step
    functions: tuple  # symbols of the TensorIR functions that `main` calls
    fallbacks: list  # as in LibraryReport
    audit: Audit

    def as_dict(self):
        """For the manifest."""
        return {"library": self.path.name, "entry": ENTRY, "kernels": self.kernels, "functions": list(self.functions),
                "fallbacks": self.fallbacks}


def check_runtime(runtime, target, precision="fp32"):
    """Refuse an unknown runtime, and targets and precisions for which there is no library for TVM's.

    Raises
    ------
    InputError
    """
    if choose(runtime, RUNTIMES, "runtime") == "native":
        return
    if target.link != "shared":
        raise InputError(f"--runtime tvm cannot serve {target.name}", found="a target whose library is linked by the app (static)",
                         expected="a target with a shared library: TVM's runtime loads one from a file",
                         do="leave --runtime out: the native library needs nothing of TVM")
    if precision != "fp32":
        raise InputError(f"--runtime tvm cannot compute in {precision}", found=f"--precision {precision}", expected="fp32",
                         do="leave --precision out, or --runtime: the native library computes in fp16")


def with_outer_layout(program, calls, target):
    """The step with its ends channels first, as in the step graph.

    Parameters
    ----------
    program : Program
        After fusion.
    calls : list of (operation, Kernel)
    target : Target

    Returns
    -------
    (Program, list of (operation, Kernel))
        Its ends are called `<name>:nchw`, with shapes (c, h, w).
    """
    shapes = dict(program.shapes)

    def change(name, to):
        outer = name + _FIRST_CHANNELS
        height, width, channels = shapes[name]
        shapes[outer] = channels, height, width
        op = Layout(outer, outer, name, "hwc") if to == "hwc" else Layout(outer, name, outer, "chw")
        kernel = make_kernel(op, shapes, target)
        return [(op, kernel)] if kernel else [(op, part) for part in lower.lower(op, shapes, target)]

    before, after, caches = change(program.frame, "hwc"), [], []
    for splice in program.caches:
        before += change(splice.cache, "hwc")
        after += change(splice.next_cache, "chw")
        caches.append(replace(splice, cache=splice.cache + _FIRST_CHANNELS, next_cache=splice.next_cache + _FIRST_CHANNELS))
    calls = [*before, *calls, *after]
    ops = list(dict.fromkeys(op for op, _ in calls))
    return Program(ops, shapes, program.frame + _FIRST_CHANNELS, program.logits, caches), calls


def place_in_blocks(spans):
    """As `plan.place`, but two buffers lie either at the same place or wholly apart: kernels take no offsets.

    Parameters
    ----------
    spans : list of (key, bytes, first, last)

    Returns
    -------
    (dict, int)
        Offset of each key: the beginning of its block; size of all blocks.
    """
    blocks, offsets, total = [], {}, 0  # a block: (offset, lives of the buffers in it); the first one is its largest
    for key, size, first, last in sorted(spans, key=lambda s: (-s[1], s[2], str(s[0]))):
        block = next((b for b in blocks if all(until < first or last < since for since, until in b[1])), None)
        if block is None:
            block = total, []
            blocks.append(block)
            total += round_up(max(size, 1)) + SLACK
        block[1].append((first, last))
        offsets[key] = block[0]
    return offsets, total


def build_relax_library(library, manifest, target, workdir, cc=None):
    """Make the library for TVM's runtime out of the kernels of the native one.

    Parameters
    ----------
    library : LibraryReport
        Of the shared native library, with its kernels' object files beside it.
    manifest : dict
    target : Target
    workdir : path
        Folder for what is made on the way, and for the library.
    cc : str or None
        C compiler to link with.

    Returns
    -------
    RelaxReport

    Raises
    ------
    InputError, MissingComponentError, CheckFailedError
    """
    check_runtime("tvm", target, manifest.get("precision", "fp32"))
    workdir = Path(workdir).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    compiler = toolchain.find_compiler(target, cc)
    native = {kernel.symbol for _, kernel in library.chosen.calls}
    program, calls = with_outer_layout(library.chosen.program, library.chosen.calls, target)
    plan = make_plan(calls, program, place_in_blocks)

    objects = []
    for path in sorted(library.path.parent.glob("kernel.*.o")):
        objects.append("native." + path.name)
        (workdir / objects[-1]).write_bytes(archive.show_symbols(path.read_bytes()))
    objects += compile_each([call for call in calls if call[1].symbol not in native], target, workdir, hidden=False)

    names = ["frame", *(cache["name"] for cache in manifest["caches"])]
    pack = _pack(_write_main(plan, names, manifest), target, workdir, objects[-1])
    (workdir / "tvm.map").write_bytes(("{ global: " + " ".join(f"{p}*;" for p in EXPORTS) + " local: *; };\n").encode())
    toolchain.link_shared(compiler, target, [*objects, pack], LIBRARY, workdir, "tvm.map", soname=LIBRARY, closed=False)
    path = workdir / LIBRARY
    return RelaxReport(path, path.stat().st_size, dict(Counter(kernel.kind for _, kernel in calls)),
                       tuple(sorted({kernel.symbol for _, kernel in calls})), list(library.chosen.fallbacks),
                       audit(path, target, EXPORTS, RUNTIME_SYMBOLS).require())


def _write_main(plan, names, manifest):
    """The virtual machine's executable: `main`, which makes the plan's calls."""
    from tvm import DataType, relax
    from tvm.runtime import tensor

    builder = relax.ExecBuilder()
    registers, made = iter(range(len(names), 1 << 20)), {}
    number = {cache.offset: i for i, cache in enumerate(plan.caches)}

    def call(function, *args):
        result = builder.r(next(registers))
        builder.emit_call(function, list(args), result)
        return result

    def storage(size):
        return call("vm.builtin.alloc_storage", builder.vm_state(), (size,), builder.convert_constant(0), DataType("uint8"),
                    builder.convert_constant("global"))

    def tensor_in(memory, shape, dtype):
        return call("vm.builtin.alloc_tensor", memory, builder.convert_constant(0), tuple(shape), DataType(dtype))

    def argument(operand):
        if operand not in made:
            made[operand] = make(operand)
        return made[operand]

    def make(operand):
        if operand.space == "weights":
            values = np.frombuffer(plan.weights, operand.dtype, int(np.prod(operand.shape)), operand.offset)
            return builder.convert_constant(tensor(values.reshape(operand.shape)))
        if operand.space in ("frame", "cache"):
            source = builder.r(0 if operand.space == "frame" else 1 + number[operand.offset])
            return call("vm.builtin.reshape", source, tuple(operand.shape))
        return tensor_in(memory[operand.space, operand.offset], operand.shape, operand.dtype)

    with builder.function(ENTRY, len(names), names):
        sizes = {}
        for operand in (operand for step in plan.calls for operand in step.operands):
            if operand.space in ("arena", "logits", "next_cache"):
                key, size = (operand.space, operand.offset), int(np.prod(operand.shape)) * np.dtype(operand.dtype).itemsize
                sizes[key] = max(sizes.get(key, 0), size + SLACK)
        memory = {key: storage(size) for key, size in sizes.items()}
        results = [tensor_in(memory["logits", 0], (1, len(manifest["classes"])), "float32")]
        results += [tensor_in(memory["next_cache", place.offset], cache["shape"], "float32")
                    for place, cache in zip(plan.caches, manifest["caches"])]
        for step in plan.calls:
            builder.emit_call(step.kernel.symbol, [argument(operand) for operand in step.operands])
        builder.emit_ret(call("vm.builtin.make_tuple", *results))
    return builder.get()


def _pack(executable, target, workdir, member):
    """Write the executable (instructions and weights) into an object file; returns its name.

    TVM packs what a library imports; for that, one of the kernels' object files stands for all.
    """
    import tvm

    found = []

    def keep(output, files, **options):
        found.extend(files)

    keep.get_target_triple = lambda: target.triple
    executable.mod.import_module(tvm.runtime.load_static_library(str(workdir / member), [ENTRY]))
    folder = workdir / "pack"
    folder.mkdir(exist_ok=True)
    executable.export_library(str(workdir / LIBRARY), fcompile=keep, workspace_dir=str(folder))
    return str(Path(found[-1]).relative_to(workdir))
