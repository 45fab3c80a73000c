"""Filling a bundle's folder, and what the report says of it."""
from __future__ import annotations

import shutil
from pathlib import Path

from tsm_edge.export.proof import tolerances
from tsm_edge.manifest import Manifest
from tsm_edge.runtimes import c_sources

from .android import write_cmake_package
from .device import write_device
from .folder import list_files, new_folder
from .golden import cache_size, golden_count, write_golden
from .readme import bundle_readme
from .report import ExportReport


def notes_of(step):
    """What the report says of a step network besides numbers."""
    alone = ["nothing is shifted in this network: it judges every frame by itself"]
    return [*step.card.notes, *([] if step.cache_specs else alone)]


def results_of(job, count):
    """The manifest's `verification`; in half precision with what replaying `count` frames elsewhere may be off by."""
    results = tolerances.summary(job.checks)
    if job.precision == "fp16":
        measured = (job.rounding, tolerances.HALF_FACTOR * tolerances.HALF_REPEAT) if job.trace is None else \
            (job.trace, tolerances.HALF_REPEAT)
        results["tolerances"] = tolerances.half_tolerances(job.reference.head(count), measured[0].head(count), measured[1])
    return results


def fill_folder(job):
    """Write everything of a proven job into a folder and rename it into place.

    Parameters
    ----------
    job : pipeline.Job
        After all stages but the last.

    Returns
    -------
    ExportReport
    """
    cache_bytes = cache_size(job.manifest)
    count = golden_count(cache_bytes)
    manifest = dict(job.manifest)
    with new_folder(job.output) as folder:
        shutil.copyfile(job.onnx, folder / job.onnx.name)
        _add_libraries(job, folder)
        write_golden(folder / "golden.npz", job.frames[:count], job.inputs[:count], job.reference.head(count))
        if job.target.os == "linux":
            write_device(folder / "device")
        if job.tvm_library:
            manifest.update(runtime="tvm", tvm=job.tvm_library.as_dict())
        manifest["verification"] = results_of(job, count)
        names = [entry["path"] for entry in list_files(folder)]
        _write(folder / "README.md", bundle_readme(manifest, job.target, Path(job.output).name, names))
        manifest["files"] = list_files(folder)
        _write(folder / "manifest.json", Manifest(manifest).to_json())
    return _report(job, manifest, cache_bytes)


def _write(path, text):
    path.write_bytes(text.encode())  # the same bytes on every system


def _add_libraries(job, folder):
    if job.target.link == "static":
        write_cmake_package(folder, job.library.path, job.target)
    else:
        shutil.copyfile(job.library.path, folder / job.library.path.name)
        shutil.copyfile(c_sources.HEADER, folder / c_sources.HEADER.name)
    if job.tvm_library:
        shutil.copyfile(job.tvm_library.path, folder / job.tvm_library.path.name)


def _report(job, manifest, cache_bytes):
    library, half = job.library, job.precision == "fp16"  # caches are as wide as the activations
    return ExportReport(
        name=manifest["name"], target=job.target.name, output=job.output, trained=manifest["trained"],
        precision=job.precision, threads=manifest["threads"], status=manifest["verification"]["status"],
        checks=list(job.checks), files=manifest["files"], library=library.path.name, library_bytes=library.size,
        macs=library.macs, cache_bytes=cache_bytes // (2 if half else 1), workspace_bytes=library.workspace_bytes,
        weight_bytes=library.plan.weight_bytes, needs=library.audit.summary(), kernels=library.kernels,
        fallbacks=list(job.chosen.fallbacks), notes=[*notes_of(job.step), *job.chosen.notes],
        runtime=manifest.get("runtime", "native"), tvm=manifest.get("tvm", {}))
