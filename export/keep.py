"""tsm-export --keep DIR: what every stage of an export made, as files that a person can read.

One folder for each stage, in their order. The files are for looking at and comparing: nothing reads them back.
"""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from tsm_edge.cli import columns
from tsm_edge.errors import InputError

INDEX = "stages.txt"


class Keeper:
    """Writes the values of an export's stages into a folder: keep(title, job).

    Parameters
    ----------
    folder : path
        New, empty, or one that an earlier export kept its stages in: those are replaced.
    titles : iterable of str
        Of all stages, in their order.
    output : path
        Of the bundle, which must lie elsewhere.

    Raises
    ------
    InputError
        The folder holds other things, or cannot be written.
    """

    def __init__(self, folder, titles, output):
        self.folder = Path(os.path.abspath(os.path.expanduser(os.fspath(folder))))
        self.titles = list(titles)
        inside = Path(os.path.abspath(output))
        if self.folder == inside or inside in self.folder.parents or self.folder in inside.parents:
            raise self._refusal(f"--keep {folder}, and the bundle in {output}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strangers = sorted({path.name for path in self.folder.iterdir()} - {INDEX, *map(self._name, self.titles)})
            if strangers:
                raise self._refusal(f"{folder} with {', '.join(strangers[:4])}")
            for title in self.titles:
                shutil.rmtree(self.folder / self._name(title), ignore_errors=True)
            self._write(self.folder / INDEX, [])
        except OSError as error:
            raise self._refusal(str(error)) from error

    def _refusal(self, found):
        return InputError("the stages cannot be kept there", found=found, expected="a new or empty folder, or one that --keep made",
                          do="give --keep a folder of its own")

    def _name(self, title):
        return f"{self.titles.index(title) + 1}-{title.replace(' ', '-')}"

    def _write(self, path, lines):
        path.write_bytes("".join(line + "\n" for line in lines).encode())

    def __call__(self, title, job):
        folder = self.folder / self._name(title)
        try:
            folder.mkdir()
            for name, value in KEPT[title](job).items():
                path = folder / name
                if isinstance(value, Path):
                    shutil.copyfile(value, path)
                elif isinstance(value, dict):
                    np.savez_compressed(path, **value)
                else:
                    self._write(path, value)
            with open(self.folder / INDEX, "a", encoding="utf-8", newline="\n") as index:
                index.writelines(f"{folder.name}/{path.name}\n" for path in sorted(folder.iterdir()))
        except OSError as error:
            raise self._refusal(str(error)) from error


# --- one function a stage: {file name: lines of text, a dict of arrays, or a file to copy} ----------------------------


def _trace(job):
    caches = [("cache", "layer", "shape", "channels from the past")]
    caches += [(c["name"], c["layer"], "x".join(map(str, c["shape"])), "{}:{} of {}".format(*c["slice"], c["channels"]))
               for c in job.manifest["caches"]]
    return {"manifest.json": json.dumps(job.manifest, indent=2, ensure_ascii=False).splitlines(), "caches.txt": columns(caches),
            "network.txt": str(job.step.net).splitlines(), "frames.npz": {"frames": job.frames, "inputs": job.inputs}}


def _prove_step(job):
    return {"logits.csv": _logits(job, job.reference), "reference.npz": _arrays(job.reference), "checks.txt": _checks(job)}


def _read_operations(job):
    rows = [("operation", "kind", "reads", "writes", "shape", "details"), *(_operation(op, job.program) for op in job.program.ops)]
    return {"model.onnx": job.onnx, "operations.txt": columns(rows), "checks.txt": _checks(job)}


def _choose_kernels(job):
    rows = [("operation", "kind", "kernel", "M multiply-accumulates")]
    rows += [(op.name, kernel.kind, kernel.symbol, f"{kernel.macs / 1e6:.3f}") for op, kernel in job.chosen.calls]
    files = {"calls.txt": [*columns(rows), "", *(f"left to TVM: {name}" for name in job.chosen.fallbacks), *job.chosen.notes]}
    for _, kernel in job.chosen.calls:
        files[f"{_file(kernel.symbol)}.tir.py"] = kernel.func.script().splitlines()
    return files


def _build_library(job):
    from tsm_edge.export.library.objects import assembly
    from tsm_edge.export.library.plan_c import PLAN_FILE

    plan, beside = job.library.plan, job.library.path.parent
    rows = [("call", "kernel", "space", "offset", "bytes", "shape")]
    for call in plan.calls:
        rows += [(call.name, call.kernel.symbol, operand.space, str(operand.offset),
                  str(int(np.prod(operand.shape)) * np.dtype(operand.dtype).itemsize), "x".join(map(str, operand.shape)))
                 for operand in call.operands]
    sizes = [f"arena {plan.arena_bytes} bytes, caches {plan.cache_bytes}, weights {plan.weight_bytes}", ""]
    files = {"memory.txt": [*sizes, *columns(rows)], PLAN_FILE: beside / PLAN_FILE, job.library.path.name: job.library.path,
             "audit.txt": [job.library.audit.summary(), job.library.compiler]}
    files.update({f"{_file(symbol)}.s": text.splitlines() for symbol, text in assembly(job.chosen.calls, job.target).items()})
    return files


def _prove_library(job):
    files = {"checks.txt": _checks(job)}
    if job.trace is not None:
        rows = [("frame", "logits", *job.reference.caches)]
        for frame in range(len(job.inputs)):
            pairs = [(job.reference.logits, job.trace.logits), *((v, job.trace.caches[n]) for n, v in job.reference.caches.items())]
            rows.append((str(frame), *(f"{np.abs(a[frame] - b[frame]).max():.2e}" for a, b in pairs)))
        files.update({"logits.csv": _logits(job, job.trace), "differences.txt": columns(rows), "library.npz": _arrays(job.trace)})
    return files


def _write_bundle(job):
    from tsm_edge.export.bundle.report import lines

    return {"report.txt": lines(job.report)}


KEPT = {"trace": _trace, "prove the step": _prove_step, "read the operations": _read_operations, "choose kernels": _choose_kernels,
        "build the library": _build_library, "prove the library": _prove_library, "write the bundle": _write_bundle}


def _checks(job):
    return columns([("check", "result", "frames", "max difference", "tolerance", "detail"), *(
        (check.name, check.status, str(check.frames), *("-" if v is None else f"{v:.3g}" for v in (check.max_abs_diff, check.tolerance)),
         check.detail) for check in job.checks)])


def _logits(job, trace):
    yield ",".join(["frame", "best", *('"' + name.replace('"', '""') + '"' for name in job.manifest["classes"])])
    for frame, logits in enumerate(trace.logits):
        yield ",".join([str(frame), str(int(logits.argmax())), *(f"{value:.9g}" for value in logits)])


def _arrays(trace):
    return {"logits": trace.logits, **trace.caches}


def _file(symbol):
    """A symbol as a file name: the longest ones are cut, and stay apart by what they are made from."""
    import hashlib

    return symbol if len(symbol) <= 120 else f"{symbol[:100]}-{hashlib.sha256(symbol.encode()).hexdigest()[:12]}"


def _operation(op, program):
    from tsm_edge.export.graph.ops import inputs_of, outputs_of

    details = []
    for name, value in vars(op).items():
        if name in ("name", "x", "a", "b", "out", "inputs", "outputs", "model") or value is None:
            continue
        if isinstance(value, np.ndarray):
            value = f"{value.dtype}[{'x'.join(map(str, value.shape))}]"
        elif hasattr(value, "weight"):
            value = f"{value.name} {'x'.join(map(str, value.weight.shape))}"
        elif hasattr(value, "cache"):
            value = f"{value.start}:{value.stop} from {value.cache}"
        details.append(f"{name}={value}")
    out = outputs_of(op)
    shape = "x".join(map(str, program.shapes.get(out[-1], ())))
    return op.name, type(op).__name__, " ".join(inputs_of(op)), " ".join(out), shape, " ".join(details)
