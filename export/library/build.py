"""Kernels -> memory plan, object files, plan.c -> library for the target."""
from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

from tsm_edge.export.kernels.calls import Chosen
from tsm_edge.runtimes.c_sources import EXPORTS, HEADER, library_sources

from . import archive, toolchain
from .audit import Audit, audit
from .memory import MemoryPlan, make_plan
from .objects import compile_each, functions_of, import_tvm
from .plan_c import PLAN_FILE, WEIGHTS_FILE, write_plan

SHARED_NAME, STATIC_NAME = "libtsm_model.so", "libtsm_model.a"


@dataclass(frozen=True)
class LibraryReport:
    """What `build_library` made; all sizes in bytes.

    path : of the library; the objects that it was linked from, plan.c and the weights lie beside it.
    functions : compiled ones; calls of the same shape share one.
    """

    path: Path
    chosen: Chosen
    plan: MemoryPlan
    functions: int
    audit: Audit
    compiler: str

    @property
    def size(self):
        return self.path.stat().st_size

    @property
    def macs(self):
        """Useful multiply-accumulates of a step."""
        return sum(call.kernel.macs for call in self.plan.calls)

    @property
    def kernels(self):
        """Kind of kernel -> calls in a step."""
        return dict(Counter(call.kernel.kind for call in self.plan.calls))

    @property
    def workspace_bytes(self):
        """Memory of one stream besides its two cache blocks; kernels' own small scratch is not in it."""
        return self.plan.arena_bytes


def build_library(chosen, manifest, target, workdir, cc=None, progress=None):
    """Compile the kernels of a step into a library for a target.

    Parameters
    ----------
    chosen : kernels.calls.Chosen
    manifest : dict
        As manifest.json, without files and verification; it is embedded.
    target : Target
        link "shared" gives libtsm_model.so, "static" libtsm_model.a (kernels, plan and weights, without the runtime).
    workdir : path
        Folder for what is made on the way, and for the library.
    cc : str or None
        C compiler; see toolchain.find_compiler.
    progress : callable or None
        Given a line of text at every step.

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
    say = progress or (lambda text: None)
    compiler = toolchain.find_compiler(target, cc)
    import_tvm()
    say("memory plan")
    plan = make_plan(chosen.calls, chosen.program)
    (workdir / PLAN_FILE).write_bytes(write_plan(plan, manifest, target).encode())
    (workdir / WEIGHTS_FILE).write_bytes(plan.weights)
    say(f"compiling {len(functions_of(chosen.calls))} kernels")
    objects = compile_each(chosen.calls, target, workdir)
    say("linking")
    path = _link(compiler, target, workdir, objects)
    return LibraryReport(path=path, chosen=chosen, plan=plan, functions=len(objects), audit=audit(path, target).require(),
                         compiler=f"{compiler.describe()}; apache-tvm {package_version('apache-tvm')}")


def _link(compiler, target, workdir, kernel_objects):
    # the sources are copied beside the plan and compiled by relative names: nothing of this machine's paths gets in
    sources, headers = library_sources()
    for header in (HEADER, *headers):
        shutil.copyfile(header, workdir / header.name)
    toolchain.compile_object(compiler, PLAN_FILE, "plan.o", workdir, include=["."])
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
