"""The whole way of a network into a bundle: step network, ONNX, kernels, library, proof, folder."""
from __future__ import annotations

import contextlib
import json
import numbers
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError
from tsm_edge.export.bundle.folder import check_output
from tsm_edge.export.bundle.golden import cache_size, check_frames, golden_count, network_inputs, verification_frames
from tsm_edge.export.bundle.report import ExportReport, Progress
from tsm_edge.export.bundle.write import fill_folder, notes_of
from tsm_edge.export.targets.boards import TARGETS, get_target

from .proof import tolerances, traces


@dataclass(frozen=True)
class Bundle:
    """What `export_bundle` wrote.

    path : folder of the bundle. manifest : its manifest.json as a dict. report : measurements of this export.
    """

    path: Path
    manifest: dict
    report: ExportReport


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


@contextlib.contextmanager
def evaluating(net):
    """A context in which `net` is in evaluation mode; afterwards each of its modules is in its mode of before."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def why_other_steps(net, inputs, clip):
    """What to do about a network whose steps give something else than its clips, by what is usually the reason.

    clip : traces.Trace of the clip network over `inputs`.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if len(clip.logits) != len(inputs):
        return "return logits for every frame: leave the mean over the frames of a clip to the caller"
    if not np.isfinite(clip.logits).all():
        return "look for NaN or infinity in the weights, and for logarithms, roots and divisions"
    norms = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is None]
    if norms:
        return f"{norms[0]} takes the statistics of the whole clip, of which a step sees one frame: train with track_running_stats=True"
    if not np.array_equal(traces.clip_trace(net, inputs).logits, clip.logits):
        return "the network gives other answers each time, also in evaluation mode: F.dropout needs training=self.training"
    return "the network does something over time that is no shift: report its structure"


def verify_torch(net, step, inputs, progress):
    """The reference trace and the checks that need no export: step equals clip, logits move, caches matter.

    Raises
    ------
    CheckFailedError
    """
    with progress.stage(f"step network vs clip network ({len(inputs)} frames)"), traces.one_thread():
        reference = traces.step_trace(step, inputs)
        clip = traces.clip_trace(net, inputs, step.cache_specs)
        checks = [tolerances.compare("step network vs clip network", clip, reference)]
        if checks[0].status == tolerances.FAILED:
            tolerances.require(checks, do=why_other_steps(net, inputs, clip))
        checks.append(traces.check_movement(reference))
        tolerances.require(checks[-1:], do="use weights and frames for which the network answers differently: pass frames "
                                       "of its own kind (--frames), or train it")
        checks.append(traces.check_teeth(step, inputs, reference))
        tolerances.require(checks[-1:], do="pass frames that move every cache (--frames), or look at the layers named")
    return reference, checks


def export_bundle(net, target="host", output=None, *, name=None, classes=None, input_size=None, precision="fp32",
                  threads=None, cc=None, frames=None, seed=0, progress=None, tuning=None, runtime="native", tvm_runtime=None,
                  **description):
    """Compile a network with shifts for a device, prove the result, and write the bundle.

    Parameters
    ----------
    net : torch.nn.Module
        Clip network made with our shift (past only), [T, 3, H, W] -> logits [T, classes]: one of ours, or your own. It is
        left as it is.
    target : str or Target
        A name of `tsm-export --list-targets`.
    output : path or None
        Folder of the bundle; dist/<target> when None. Replaced if it is a bundle, refused if it is anything else.
    name, classes, input_size, **description :
        What the manifest says; default: what the network's card says (`net.card`, see `tsm_edge.card`). input_size: (width, height).
    precision : "fp32" or "fp16"
    threads : int or None
        Default number of threads on the device; the target's when None.
    cc : str or None
        C compiler to link with.
    frames : array or None
        uint8 [T, H, W, 3] RGB to verify with, T >= 16; generated, image-like ones when None.
    seed : int
        Of the generated frames.
    progress : Progress or None
        Told of every stage and its time.
    tuning : path, tuning.Record, tuning.Tuner or None
        A tuning record, or what measures one first; None takes the one that comes with the package, if there is one.
    runtime : "native" or "tvm"
        "tvm": the bundle also holds a library of the same kernels for TVM's own runtime (see relax.py).
    tvm_runtime : path or None
        Folder with TVM's runtime for the target, to run that library under an emulator.

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
    from tsm_edge.export.bundle.describe import describe
    from tsm_edge.export.graph.to_ops import import_onnx
    from tsm_edge.export.graph.write import export_onnx
    from tsm_edge.export.library.build import build_library
    from tsm_edge.export.library.relax import build_relax_library, check_runtime
    from tsm_edge.export.proof.on_target import check_library
    from tsm_edge.export.proof.relax_check import check_relax, find_tvm_runtime
    from tsm_edge.export.tuning.tuner import Tuner, prepare
    from tsm_edge.sensitive import check_seed
    from tsm_edge.step import StepNetwork

    from .library import toolchain

    begin = time.perf_counter()
    progress = progress or Progress()
    target = get_target(target)
    check_precision(precision, target)
    check_runtime(runtime, target, precision)
    tvm_runtime = find_tvm_runtime(tvm_runtime, target) if tvm_runtime else None
    shown = os.path.expanduser(output) if output is not None else os.path.join("dist", target.name)
    check_output(shown)
    check_seed(seed)
    if threads is not None:
        if not isinstance(threads, numbers.Integral) or not 1 <= threads <= 64:
            raise InputError("the number of threads cannot be used", found=repr(threads), expected="1 to 64",
                             do="leave it out for the target's default")
        target = replace(target, threads=int(threads))
    tuning = prepare(tuning, target)
    toolchain.find_compiler(target, cc)  # a missing compiler is said now and not after the work

    with tempfile.TemporaryDirectory(prefix="tsm-export-") as work:
        work = Path(work)
        with progress.stage("step network"), traces.one_thread():
            step = StepNetwork(net, input_size)
            check_plain(net)
            manifest = describe(net, step, target, step.num_classes, name=name, classes=classes, input_size=step.input_size,
                                precision=precision, **description)
            frames = verification_frames(manifest, seed=seed) if frames is None else check_frames(frames)
            inputs = network_inputs(frames, manifest)
        with evaluating(net):
            reference, checks = verify_torch(net, step, inputs, progress)

        with progress.stage("ONNX file"):
            export_onnx(step, work / "model.onnx", manifest)
        with progress.stage(f"ONNX vs torch ({len(inputs)} frames)"):
            checks.append(tolerances.compare("ONNX vs torch", reference, traces.onnx_trace(work / "model.onnx", inputs)))
            tolerances.require(checks, do="torch.onnx.export writes some operations as others: find the one that it gets wrong by leaving "
                                      "layers out, write it in another way, and report it")

        if isinstance(tuning, Tuner):
            with progress.stage("tuning"):
                tuning = tuning.run(import_onnx(work / "model.onnx"), target, precision, progress.note)
        with progress.stage("kernels and library"):
            program = import_onnx(work / "model.onnx")
            library = build_library(program, manifest, target, work / "library", cc=cc, progress=progress.note,
                                    tuning=tuning)
        rounding = None
        if precision == "fp16":
            with progress.stage("what rounding to half precision costs"), traces.one_thread():
                rounding = traces.rounding_trace(step, inputs)
                moved = float(np.max(np.abs(rounding.logits - reference.logits)))
                progress.note(f"logits move by {moved:.2g} by rounding alone")
        traced = []
        with progress.stage(f"library vs torch ({len(inputs)} frames)"):
            checks.append(check_library(library, target, manifest, inputs, reference, work / "replay", precision,
                                        cc, rounding, traced.append))
            tolerances.require(checks)
        relax = None
        if runtime == "tvm":
            with progress.stage("library for TVM's runtime"):
                relax = build_relax_library(library, manifest, target, work / "relax", cc)
            with progress.stage(f"TVM library vs torch ({len(inputs)} frames)"):
                checks.append(check_relax(relax.path, target, manifest, inputs, reference, work / "tvm replay", tvm_runtime, cc))
                tolerances.require(checks)

        with progress.stage("bundle"):
            results = tolerances.summary(checks)
            if precision == "fp16":
                count = golden_count(cache_size(manifest))
                measured = (traced[0], tolerances.HALF_REPEAT) if traced else (rounding, tolerances.HALF_FACTOR * tolerances.HALF_REPEAT)
                results["tolerances"] = tolerances.half_tolerances(reference.head(count), measured[0].head(count), measured[1])
            report = fill_folder(shown, work, manifest, target, library, checks, results, frames, inputs, reference, notes_of(step), relax)
    report.stages, report.seconds = list(progress.stages), time.perf_counter() - begin
    manifest = json.loads((Path(shown) / "manifest.json").read_text(encoding="utf-8"))
    return Bundle(Path(shown), manifest, report)


