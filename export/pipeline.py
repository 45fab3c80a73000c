"""The export as one sentence: a job goes through the stages, and each returns it with one thing more."""
from __future__ import annotations

import json
import numbers
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError
from tsm_edge.export.bundle import golden
from tsm_edge.export.bundle.folder import check_output
from tsm_edge.export.bundle.report import ExportReport, Progress
from tsm_edge.export.bundle.write import fill_folder
from tsm_edge.export.proof import tolerances, traces
from tsm_edge.export.targets.boards import TARGETS, get_target
from tsm_edge.export.targets.target import Target

if TYPE_CHECKING:
    from torch import nn


MORE_FRAMES = 20  # how often other frames are generated where a network says the same to all


@dataclass(frozen=True)
class Bundle:
    """What `export_bundle` wrote.

    path : folder of the bundle. manifest : its manifest.json as a dict. report : measurements of this export.
    """

    path: Path
    manifest: dict
    report: ExportReport


@dataclass(frozen=True)
class Job:
    """One export: what was asked for, and what the stages have made of it so far (None: not yet).

    checks : every comparison so far. advice : what to do if the last stage's checks failed.
    """

    net: object  # the clip network, torch
    target: Target
    output: str  # folder of the bundle, as it was named
    work: Path  # folder for what is made on the way
    progress: Progress = field(default_factory=Progress)
    precision: str = "fp32"
    cc: str | None = None
    frames: np.ndarray | None = None  # uint8 [T, H0, W0, 3] to verify with; None: `trace` makes some
    generated: bool = False  # whether it made them
    seed: int = 0
    tuning: object = None  # Record, Tuner or None
    runtime: str = "native"
    tvm_runtime: list | None = None
    description: dict = field(default_factory=dict)  # what the manifest shall say instead of what the network says of itself

    step: object = None  # StepNetwork
    manifest: dict | None = None  # without files and verification
    inputs: np.ndarray | None = None  # float32 [T, 3, H, W]
    reference: traces.Trace | None = None
    checks: tuple = ()
    advice: str = ""
    program: object = None  # graph.ops.Program
    chosen: object = None  # kernels.calls.Chosen
    library: object = None  # library.build.LibraryReport
    tvm_library: object = None  # library.relax.RelaxReport
    rounding: traces.Trace | None = None  # fp16: what rounding alone gives
    trace: traces.Trace | None = None  # what the library gave; None where it was not run
    report: ExportReport | None = None

    @property
    def onnx(self):
        return self.work / "model.onnx"


def trace(job):
    """The step network, what the manifest says of it, and the frames to prove it with."""
    from tsm_edge.export.bundle.describe import describe
    from tsm_edge.step import StepNetwork

    options = dict(job.description)
    with traces.one_thread():
        step = StepNetwork(job.net, options.pop("input_size", None))
        check_plain(job.net)
        manifest = describe(job.net, step, job.target, step.num_classes, input_size=step.input_size, precision=job.precision, **options)
        frames = golden.verification_frames(manifest, seed=job.seed) if job.frames is None else golden.check_frames(job.frames)
        return replace(job, step=step, manifest=manifest, frames=frames, generated=job.frames is None,
                       inputs=golden.network_inputs(frames, manifest))


def prove_step(job):
    """The reference that all else is compared with, and proof that it is the clip network's.

    A well trained network may say the same to all of the generated frames: then others are tried, as many as MORE_FRAMES times.
    """
    from tsm_edge.export.proof import step

    reference, checks, advice = step.prove_step(job.net, job.step, job.inputs)
    for seed in range(job.seed + 1, job.seed + 1 + (MORE_FRAMES if job.generated else 0)):
        if not traces.stands_still(checks[-1]):
            break
        if seed == job.seed + 1:
            job.progress.note("the network says nearly the same to all generated frames: others are tried")
        frames = golden.verification_frames(job.manifest, seed=seed)
        job = replace(job, frames=frames, inputs=golden.network_inputs(frames, job.manifest))
        reference, checks, advice = step.prove_step(job.net, job.step, job.inputs)
    return replace(job, reference=reference, checks=(*job.checks, *checks), advice=advice)


def read_operations(job):
    """The ONNX file, compared with torch, and the operations that it holds."""
    from tsm_edge.export.graph.to_ops import import_onnx
    from tsm_edge.export.graph.write import export_onnx

    export_onnx(job.step, job.onnx, job.manifest)
    check = tolerances.compare("ONNX vs torch", job.reference, traces.onnx_trace(job.onnx, job.inputs))
    return replace(job, program=import_onnx(job.onnx), checks=(*job.checks, check),
                   advice="torch.onnx.export writes some operations as others: find the one that it gets wrong by leaving layers out, "
                          "write it in another way, and report it")


def choose_kernels(job):
    """A kernel for each operation, by the cost model, by a tuning record, or by measuring now."""
    from tsm_edge.export.kernels.calls import choose_kernels as choose
    from tsm_edge.export.tuning.tuner import Tuner

    tuning = job.tuning
    if isinstance(tuning, Tuner):
        tuning = tuning.run(job.program, job.target, job.precision, job.progress.note)
    return replace(job, chosen=choose(job.program, job.target, job.precision, tuning))


def build_library(job):
    """The kernels compiled and linked; with runtime "tvm" once more, for TVM's virtual machine."""
    from tsm_edge.export.library import build, relax

    library = build.build_library(job.chosen, job.manifest, job.target, job.work / "library", job.cc, job.progress.note)
    if job.runtime != "tvm":
        return replace(job, library=library)
    job.progress.note("library for TVM's runtime")
    other = relax.build_relax_library(library, job.manifest, job.target, job.work / "relax", job.cc)
    return replace(job, library=library, tvm_library=other)


def prove_library(job):
    """What the compiled libraries give over the same frames, here or under an emulator."""
    from tsm_edge.export.proof.on_target import check_library
    from tsm_edge.export.proof.relax_check import check_relax

    rounding = None
    if job.precision == "fp16":
        with traces.one_thread():
            rounding = traces.rounding_trace(job.step, job.inputs)
        moved = float(np.max(np.abs(rounding.logits - job.reference.logits)))
        job.progress.note(f"logits move by {moved:.2g} by rounding to half precision alone")
    check, trace = check_library(job.library, job.target, job.manifest, job.inputs, job.reference, job.work / "replay", job.precision,
                                 job.cc, rounding, job.progress.note)
    checks = [check]
    if job.tvm_library and check.status != tolerances.FAILED:
        checks.append(check_relax(job.tvm_library.path, job.target, job.manifest, job.inputs, job.reference, job.work / "tvm replay",
                                  job.tvm_runtime, job.cc))
    return replace(job, rounding=rounding, trace=trace, checks=(*job.checks, *checks),
                   advice="report this: the bundle was not written")


def write_bundle(job):
    """The folder, whole or not at all, and the report of it."""
    return replace(job, report=fill_folder(job))


STAGES = {
    "trace": trace,
    "prove the step": prove_step,
    "read the operations": read_operations,
    "choose kernels": choose_kernels,
    "build the library": build_library,
    "prove the library": prove_library,
    "write the bundle": write_bundle,
}


def run(job, keep=None):
    """Send a job through all stages.

    keep : callable or None
        Given the title of each stage and the job as it then is, also where a check of that stage failed.

    Raises
    ------
    InputError, CheckFailedError
        As soon as a stage refuses the job or one of its checks fails; no bundle is written then.
    """
    for title, stage in STAGES.items():
        with job.progress.stage(title):
            job = stage(job)
            if keep:
                keep(title, job)
            tolerances.require(job.checks, do=job.advice)
    return job


def check_precision(precision, target):
    """Refuse an unknown precision, and one that the target's CPU does not compute in."""
    choose(precision, tolerances.RELATIVE_TOLERANCE, "precision")
    if precision == "fp16" and not target.fp16:
        able = ", ".join(t.name for t in TARGETS.values() if t.fp16)
        raise InputError(f"{target.name} cannot compute in fp16", found=f"{target.cpu}, without half precision",
                         expected=f"a CPU that computes in it: {able}", do="leave --precision out for fp32")


def check_plain(net):
    """Refuse a network whose weights are not float32 numbers in this machine's memory.

    Raises
    ------
    InputError
    """
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if value.device.type != "cpu" or (value.is_floating_point() and str(value.dtype) != "torch.float32"):
            raise InputError("the network cannot be exported as it is", found=f"{name} is {value.dtype} on {value.device}",
                             expected="torch.float32 on cpu, also for half precision on the device",
                             do="net.float().cpu(); precision='fp16' makes a library in half precision")


def with_threads(target, threads):
    """The target with another default number of threads; None leaves it as it is."""
    if threads is None:
        return target
    if not isinstance(threads, numbers.Integral) or not 1 <= threads <= 64:
        raise InputError("the number of threads cannot be used", found=repr(threads), expected="1 to 64",
                         do="leave it out for the target's default")
    return replace(target, threads=int(threads))


def export_bundle(net: nn.Module, target: str | Target = "host", output: str | os.PathLike[str] | None = None, *, precision: str = "fp32",
                  threads: int | None = None, cc: str | None = None, frames: np.ndarray | None = None, seed: int = 0,
                  progress: Progress | None = None, tuning: Any = None, runtime: str = "native",
                  tvm_runtime: str | os.PathLike[str] | None = None, keep: str | os.PathLike[str] | None = None,
                  **description: Any) -> Bundle:
    """Compile a network with shifts for a device, prove the result, and write the bundle.

    Parameters
    ----------
    net : torch.nn.Module
        Clip network made with our shift (past only), [T, 3, H, W] -> logits [T, classes]; it is left as it is.
    target : str or Target
        A name of `tsm-export --list-targets`.
    output : path or None
        Folder of the bundle; dist/<target> when None. Replaced if it is a bundle, refused if it is anything else.
    precision : "fp32" or "fp16"
    threads : int or None
        Default number of threads on the device; the target's when None.
    cc : str or None
        C compiler to link with.
    frames : array or None
        uint8 [T, H, W, 3] RGB to verify with, T >= 16; generated, image-like ones from `seed` when None.
    progress : Progress or None
        Told of every stage and its time.
    tuning : path, Record, Tuner or None
        A tuning record, or what measures one first; None takes the one that comes with the package, if there is one.
    runtime, tvm_runtime : "native", or "tvm" to add a library for TVM's own runtime (docs/tvm.md), and that runtime's folder to prove it
    keep : path or None
        A folder for what every stage made, as files that a person can read; also of an export that fails.
    **description :
        name, classes, input_size (width, height), trained, resize, filter, mean, std, fps, max_gap_seconds, events: what the
        manifest says; default: what the network's card says (`net.card`, see `tsm_edge.card`).

    Returns
    -------
    Bundle

    Raises
    ------
    InputError
        Something cannot be exported as asked; nothing is written.
    CheckFailedError
        A verification did not hold; nothing is written.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tsm-export-") as work:
        job = _job(net, target, output, precision, threads, cc, tuning, runtime, tvm_runtime, frames=frames, seed=seed,
                   progress=progress or Progress(), work=Path(work), description=description)
        job = run(job, _keeper(keep, job))
    job.report.stages, job.report.seconds = list(job.progress.stages), time.perf_counter() - begin
    manifest = json.loads((Path(job.output) / "manifest.json").read_text(encoding="utf-8"))
    return Bundle(Path(job.output), manifest, job.report)


def _job(net, target, output, precision, threads, cc, tuning, runtime, tvm_runtime, **given):
    """The job as it was asked for; all that can be refused without work is refused here."""
    from tsm_edge.export.library import relax, toolchain
    from tsm_edge.export.proof.relax_check import find_tvm_runtime
    from tsm_edge.export.tuning.tuner import prepare
    from tsm_edge.sensitive import check_seed

    target = get_target(target)
    check_precision(precision, target)
    relax.check_runtime(runtime, target, precision)
    tvm_runtime = find_tvm_runtime(tvm_runtime, target) if tvm_runtime else None
    output = os.path.expanduser(output) if output is not None else os.path.join("dist", target.name)
    check_output(output)
    check_seed(given["seed"])
    target = with_threads(target, threads)
    tuning = prepare(tuning, target)
    toolchain.find_compiler(target, cc)  # a missing compiler is said now and not after the work
    return Job(net, target, output, precision=precision, cc=cc, tuning=tuning, runtime=runtime, tvm_runtime=tvm_runtime, **given)


def _keeper(folder, job):
    if folder is None:
        return None
    from .keep import Keeper

    return Keeper(folder, STAGES, job.output)
