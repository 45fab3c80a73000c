"""The whole way of a network into a bundle: step network, ONNX, kernels, library, proof, folder."""
from __future__ import annotations

import contextlib
import json
import numbers
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError
from tsm_edge.export.bundle.folder import check_output, list_files, new_folder
from tsm_edge.export.bundle.report import ExportReport, Progress
from tsm_edge.export.targets.boards import TARGETS, get_target

from .proof import traces as verify

GOLDEN_FRAMES, GOLDEN_FRAMES_LEAST, GOLDEN_CACHE_BYTES = 6, 3, 8 << 20


@dataclass(frozen=True)
class Bundle:
    """What `export_bundle` wrote.

    path : folder of the bundle. manifest : its manifest.json as a dict. report : measurements of this export.
    """

    path: Path
    manifest: dict
    report: ExportReport


def runtime_folder(name):
    """A folder of the installed runtimes: "c" or "device"."""
    import tsm_edge.runtimes

    return Path(tsm_edge.runtimes.__file__).resolve().parent / name


def check_precision(precision, target):
    """Refuse an unknown precision, and one that the target's CPU does not compute in."""
    choose(precision, verify.RELATIVE_TOLERANCE, "precision")
    if precision == "fp16" and not target.fp16:
        able = ", ".join(t.name for t in TARGETS.values() if t.fp16)
        raise InputError(f"{target.name} cannot compute in fp16", found=f"{target.cpu}, without half precision",
                         expected=f"a CPU that computes in it: {able}", do="leave --precision out for fp32")


def verification_frames(manifest, count=verify.FRAMES, seed=0):
    """Raw frames with image-like, moving content and one cut: uint8 [count, H0, W0, 3] RGB, larger than the input.

    The cut is there for trained networks: their answers move most when the scene changes.
    """
    from tsm_edge.sensitive import image_like_frames

    size = manifest["input"]
    shape = round(size["width"] * 10 / 7), round(size["height"] * 15 / 14)
    first = (count + 1) // 2
    scenes = [image_like_frames(first, shape, seed, "uint8"), image_like_frames(count - first, shape, seed + 1, "uint8")]
    return np.concatenate(scenes)


def check_frames(frames):
    """The first frames of what was given to verify with; refused where they are no moving RGB pictures."""
    try:
        frames = np.asarray(frames)
    except ValueError as error:  # frames of different sizes
        raise InputError("the frames to verify with cannot be used", found=str(error)[:200], expected="one array, uint8 [T, H, W, 3] RGB",
                         do="bring them to one size and stack them") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < verify.FRAMES:
        raise InputError("the frames to verify with cannot be used", found=f"{frames.dtype} {list(frames.shape)}",
                         expected=f"uint8 [T, H, W, 3] RGB with T >= {verify.FRAMES}",
                         do="pass other frames, or none to have some generated")
    frames = frames[:verify.FRAMES]
    if (frames == frames[0]).all():
        raise InputError("the frames to verify with stand still", found=f"{len(frames)} frames, all the same",
                         expected="moving pictures", do="pass other frames, or none to have some generated")
    return frames


def network_inputs(frames, manifest):
    """Frames uint8 [T, H0, W0, 3] -> network inputs float32 [T, 3, H, W], by the manifest's preprocessing rule."""
    from tsm_edge.runtimes.preprocess import preprocess

    return np.stack([preprocess(frame, manifest["input"]) for frame in frames]).astype(np.float32)


def cache_size(manifest):
    """Bytes of all caches in float32."""
    return sum(4 * int(np.prod(cache["shape"])) for cache in manifest["caches"])


def golden_count(cache_bytes):
    """How many frames golden.npz keeps: fewer for networks with large caches."""
    return int(min(GOLDEN_FRAMES, max(GOLDEN_FRAMES_LEAST, GOLDEN_CACHE_BYTES // max(1, cache_bytes))))


def write_golden(path, frames, inputs, reference):
    """golden.npz: what `tsm-verify` and the device runner replay. The same content gives the same bytes."""
    arrays = {"frames": frames, "inputs": inputs, "logits": reference.logits, **reference.caches}
    np.savez_compressed(path, **{name: np.ascontiguousarray(value) for name, value in arrays.items()})


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

    clip : verify.Trace of the clip network over `inputs`.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if len(clip.logits) != len(inputs):
        return "return logits for every frame: leave the mean over the frames of a clip to the caller"
    if not np.isfinite(clip.logits).all():
        return "look for NaN or infinity in the weights, and for logarithms, roots and divisions"
    norms = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is None]
    if norms:
        return f"{norms[0]} takes the statistics of the whole clip, of which a step sees one frame: train with track_running_stats=True"
    if not np.array_equal(verify.clip_trace(net, inputs).logits, clip.logits):
        return "the network gives other answers each time, also in evaluation mode: F.dropout needs training=self.training"
    return "the network does something over time that is no shift: report its structure"


def notes_of(step):
    """What the report says of a step network besides numbers."""
    alone = ["nothing is shifted in this network: it judges every frame by itself"]
    return [*(step.tsm_info.get("notes") or []), *([] if step.cache_specs else alone)]


def verify_torch(net, step, inputs, progress):
    """The reference trace and the checks that need no export: step equals clip, logits move, caches matter.

    Raises
    ------
    CheckFailedError
    """
    with progress.stage(f"step network vs clip network ({len(inputs)} frames)"), verify.one_thread():
        reference = verify.step_trace(step, inputs)
        clip = verify.clip_trace(net, inputs, step.cache_specs)
        checks = [verify.compare("step network vs clip network", clip, reference)]
        if checks[0].status == verify.FAILED:
            verify.require(checks, do=why_other_steps(net, inputs, clip))
        checks.append(verify.check_movement(reference))
        verify.require(checks[-1:], do="use weights and frames for which the network answers differently: pass frames "
                                       "of its own kind (--frames), or train it")
        checks.append(verify.check_teeth(step, inputs, reference))
        verify.require(checks[-1:], do="pass frames that move every cache (--frames), or look at the layers named")
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
        What the manifest says; default: what the network says of itself (`net.tsm_info`). input_size: (width, height).
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
        with progress.stage("step network"), verify.one_thread():
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
            checks.append(verify.compare("ONNX vs torch", reference, verify.onnx_trace(work / "model.onnx", inputs)))
            verify.require(checks, do="torch.onnx.export writes some operations as others: find the one that it gets wrong by leaving "
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
            with progress.stage("what rounding to half precision costs"), verify.one_thread():
                rounding = verify.rounding_trace(step, inputs)
                moved = float(np.max(np.abs(rounding.logits - reference.logits)))
                progress.note(f"logits move by {moved:.2g} by rounding alone")
        traces = []
        with progress.stage(f"library vs torch ({len(inputs)} frames)"):
            checks.append(check_library(library, target, manifest, inputs, reference, work / "replay", precision,
                                        cc, rounding, traces.append))
            verify.require(checks)
        relax = None
        if runtime == "tvm":
            with progress.stage("library for TVM's runtime"):
                relax = build_relax_library(library, manifest, target, work / "relax", cc)
            with progress.stage(f"TVM library vs torch ({len(inputs)} frames)"):
                checks.append(check_relax(relax.path, target, manifest, inputs, reference, work / "tvm replay", tvm_runtime, cc))
                verify.require(checks)

        with progress.stage("bundle"):
            results = verify.summary(checks)
            if precision == "fp16":
                count = golden_count(cache_size(manifest))
                measured = (traces[0], verify.HALF_REPEAT) if traces else (rounding, verify.HALF_FACTOR * verify.HALF_REPEAT)
                results["tolerances"] = verify.half_tolerances(reference.head(count), measured[0].head(count), measured[1])
            report = _write(shown, work, manifest, target, library, checks, results, frames, inputs, reference, notes_of(step), relax)
    report.stages, report.seconds = list(progress.stages), time.perf_counter() - begin
    manifest = json.loads((Path(shown) / "manifest.json").read_text(encoding="utf-8"))
    return Bundle(Path(shown), manifest, report)


def _write(shown, work, manifest, target, library, checks, results, frames, inputs, reference, notes, relax=None):
    """Fill the folder and rename it into place; returns the report."""
    from tsm_edge.export.bundle.android import write_cmake_package
    from tsm_edge.export.bundle.readme import bundle_readme
    from tsm_edge.manifest import Manifest

    cache_bytes = cache_size(manifest)
    count, half = golden_count(cache_bytes), manifest["precision"] == "fp16"  # caches are as wide as the activations
    with new_folder(shown) as folder:
        shutil.copyfile(work / "model.onnx", folder / "model.onnx")
        if target.link == "static":
            write_cmake_package(folder, library.path, runtime_folder("c"), target)
        else:
            shutil.copyfile(library.path, folder / library.path.name)
            shutil.copyfile(runtime_folder("c") / "tsm_edge.h", folder / "tsm_edge.h")
        write_golden(folder / "golden.npz", frames[:count], inputs[:count], reference.head(count))
        if target.os == "linux":
            (folder / "device").mkdir()
            for file in sorted(runtime_folder("device").glob("*.py")):
                if file.name != "__init__.py":
                    shutil.copyfile(file, folder / "device" / file.name)
        if relax:
            shutil.copyfile(relax.path, folder / relax.path.name)
            manifest = dict(manifest, runtime="tvm", tvm=relax.as_dict())
        manifest = dict(manifest, verification=results)
        names = [entry["path"] for entry in list_files(folder)]
        readme = bundle_readme(manifest, target, Path(shown).name, names)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        manifest["files"] = list_files(folder)
        (folder / "manifest.json").write_text(Manifest(manifest).to_json(), encoding="utf-8")
    return ExportReport(
        name=manifest["name"], target=target.name, output=shown, trained=manifest["trained"],
        precision=manifest["precision"], threads=manifest["threads"], status=manifest["verification"]["status"],
        checks=checks, files=manifest["files"], library=library.path.name, library_bytes=library.path.stat().st_size,
        macs=library.macs, cache_bytes=cache_bytes // (2 if half else 1), workspace_bytes=library.workspace_bytes,
        weight_bytes=library.weight_bytes, needs=library.audit.summary(), kernels=dict(library.kernels), fallbacks=list(library.fallbacks),
        notes=[*notes, *library.notes], runtime=manifest.get("runtime", "native"), tvm=relax.as_dict() if relax else {})
