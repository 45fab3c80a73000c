"""Filling a bundle's folder, and what the report says of it."""
from __future__ import annotations

import shutil
from pathlib import Path

from tsm_edge.runtimes import c_sources

from .folder import list_files, new_folder
from .golden import cache_size, golden_count, write_golden
from .report import ExportReport


def runtime_folder(name):
    """A folder of the installed runtimes: "device"."""
    import tsm_edge.runtimes

    return Path(tsm_edge.runtimes.__file__).resolve().parent / name


def notes_of(step):
    """What the report says of a step network besides numbers."""
    alone = ["nothing is shifted in this network: it judges every frame by itself"]
    return [*step.card.notes, *([] if step.cache_specs else alone)]


def fill_folder(shown, work, manifest, target, library, checks, results, frames, inputs, reference, notes, relax=None):
    """Fill the folder and rename it into place; returns the report."""
    from tsm_edge.export.bundle.android import write_cmake_package
    from tsm_edge.export.bundle.readme import bundle_readme
    from tsm_edge.manifest import Manifest

    cache_bytes = cache_size(manifest)
    count, half = golden_count(cache_bytes), manifest["precision"] == "fp16"  # caches are as wide as the activations
    with new_folder(shown) as folder:
        shutil.copyfile(work / "model.onnx", folder / "model.onnx")
        if target.link == "static":
            write_cmake_package(folder, library.path, target)
        else:
            shutil.copyfile(library.path, folder / library.path.name)
            shutil.copyfile(c_sources.HEADER, folder / c_sources.HEADER.name)
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
