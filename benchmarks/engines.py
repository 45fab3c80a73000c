"""The engines of a benchmark, ours and the peers, opened the same way."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from tsm_edge.errors import InputError

from .peers import PEERS, StepModel

OURS = "tsm-edge"
HERE = Path(__file__).parent


class Ours:
    """The bundle's own library (or the engine asked for), stepped as an application steps it."""

    def __init__(self, bundle, threads, engine=None, profile=False):
        import tsm_edge

        self.model = tsm_edge.load(bundle, engine=engine or "native", threads=threads)
        if profile:
            from tsm_edge.runtimes.engines.native import NativeStream

            self.stream = NativeStream(self.model, "RGB", None, None, profile=True)
        else:
            self.stream = self.model.stream()
        self.step, self.reset = self.stream.step_tensor, self.stream.reset


def step_model(bundle):
    """The bundle's ONNX step graph, for the peers.

    Raises
    ------
    InputError
        The bundle was written without model.onnx.
    """
    if "model.onnx" not in bundle:
        raise InputError(f"{bundle.source} holds no model.onnx to give to other engines", found=", ".join(sorted(bundle.files)),
                         expected="model.onnx", do="export the bundle with its ONNX file, or leave out --against")
    size = bundle.manifest["input"]
    caches = tuple((c["name"], tuple(c["shape"])) for c in bundle.manifest["caches"])
    return StepModel(bundle.file("model.onnx"), (1, 3, size["height"], size["width"]), caches)


def open_engine(name, bundle, threads, workdir):
    """An object with `step(frame)` and `reset()`.

    Parameters
    ----------
    name : OURS, "tsm-edge:ENGINE" or one of PEERS
    """
    if name.startswith(OURS):
        return Ours(bundle, threads, name.partition(":")[2] or None)
    folder = Path(workdir) / name
    folder.mkdir(exist_ok=True)
    return PEERS[name](step_model(bundle), folder, threads)


def with_tvm(bundle, engines):
    """The engines asked for, and tvm where the bundle holds a library for TVM's runtime and TVM is installed."""
    from tsm_edge.runtimes.engines.tvm_library import LIBRARY

    if "tvm" in engines or LIBRARY not in bundle or importlib.util.find_spec("tvm") is None:
        return engines
    return [*engines, "tvm"]


def measured_peak():
    """GFLOP/s of multiply-adds on one core of this machine, or None where no C compiler is at hand."""
    commands = [["cc"], [sys.executable, "-m", "ziglang", "cc"]]
    best = None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        for cc in commands:
            flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=fast"]
            for options in (flags, [f for f in flags if "vector-width" not in f]):
                try:
                    built = subprocess.run([*cc, *options, "-o", program, HERE / "peak.c"], capture_output=True)
                except OSError:
                    break
                if built.returncode == 0:
                    rate = float(subprocess.run([program], capture_output=True, encoding="utf-8", check=True).stdout.split()[0])
                    best = max(best or 0.0, rate)
                    break
    return best


def check_names(names):
    """Refuse unknown peers; returns the list."""
    from tsm_edge.cli import choose

    return [choose(name, PEERS, "engine") for name in names]


